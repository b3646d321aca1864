"""Is anything torn? `kill -9` of a real process at random moments of what changes a run, or hands it over.

    .venv/bin/python bench/kills.py [--times 15] [what ...]

A small run with a memory and a contrast run is made once, with two releases. Each time it is copied, a process works on
the copy and is killed after a random time (between nothing and a little more than the whole takes). Then the current
release must be the old or the new one and every release sound; an exported folder must be whole or not there. Then
another process opens the run, as any command does (or prunes or exports again), and the run must be exactly what it was
before or what it is after, with nothing under way, and the server that was told must serve the current release alone.
What is not, is printed and counted as torn. A kill is no power cut: that the disk has what was flushed is not tested.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ilora import IloraError, InputError, add, export
from ilora import run as train
from ilora.commands.prune import prune
from ilora.model.load import resolve
from ilora.releases import change
from ilora.releases.history import history
from ilora.releases.opening import open_run
from ilora.releases.server import served_name
from ilora.releases.store import current, list_releases, read_release

WORDS = "red green blue black white small large old new fast slow warm cold".split()
NOT_COMPARED = (".lock", "pending.json", "report.html")


@dataclass(frozen=True)
class Kind:
    """What is killed.

    before: makes the run that it starts from out of the one with two releases.
    again: what the next process does, which must make the run whole.
    rewrites: it changes the releases themselves, which are sound again once it is finished.
    """

    act: Callable[[Path], object]
    before: Callable[[Path], object] = lambda _run: None
    again: Callable[[Path], object] = lambda run: open_run(run, no_report)
    rewrites: bool = False


class Engine(BaseHTTPRequestHandler):
    """vLLM's end points for adapters, as far as they are needed. served: names."""

    served: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        """Load or unload."""
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["lora_name"]
        known, loads = name in self.served, self.path.endswith("/load_lora_adapter")
        (self.served.add if loads else self.served.discard)(name)
        self.send_response(200 if known != loads else 400)
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever asked may be dead
            self.wfile.write(b"ok" if known != loads else b"already loaded" if loads else b"not loaded")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def no_report(_run: Path) -> None:
    """In place of report.html, which would take most of the time."""


def one_release_less(folder: Path) -> None:
    """The run as it was before its second release was made of the same phase."""
    shutil.rmtree(folder / "releases" / "2")
    (folder / "current").unlink()
    (folder / "current").symlink_to("releases/1")
    lines = folder / "releases" / "history.jsonl"
    lines.write_text(lines.read_text(encoding="utf-8").partition("\n")[0] + "\n", encoding="utf-8")


def repaired(folder: Path) -> Path:
    """Where an adapter lies that may take the place of the last phase's."""
    return folder / "gate" / "03-three" / "repaired"


def with_repaired(folder: Path) -> None:
    """As `one_release_less`, with the fast adapter in the place of a repaired one."""
    one_release_less(folder)
    shutil.copytree(folder / "adapters" / "03-three" / "fast", repaired(folder))
    shutil.copytree(folder / "predictions" / "after-03-three" / "fast", repaired(folder) / "predictions")
    told = json.dumps({"candidate": "fast", "phase": "03-three"})
    (repaired(folder) / "repair.json").write_text(told, encoding="utf-8")


def promote_to_server(folder: Path) -> None:
    """To the engine of this program."""
    change.promote(folder, server=ADDRESS[0], report=no_report)


def hand_over(folder: Path) -> None:
    """An export beside the run, unless there is one."""
    if not outside(folder).exists():
        export(folder, outside(folder), kind="peft")


def outside(folder: Path) -> Path:
    """Where a run is exported to."""
    return folder.with_name(f"{folder.name}-exported")


def drop_most(folder: Path) -> None:
    """Prune by the sharpest rule."""
    prune(folder, ["adapters=last", "trajectory=none", "predictions=compressed"])


ADDRESS: list[str] = []
KINDS = {
    "promote": Kind(lambda folder: change.promote(folder, report=no_report), one_release_less),
    "promote --server": Kind(promote_to_server, one_release_less),
    "rollback": Kind(lambda folder: change.rollback(folder, report=no_report)),
    "repair": Kind(lambda folder: change.adopt(folder, repaired(folder), report=no_report), with_repaired),
    "forget": Kind(lambda folder: change.forget(folder, "one", report=no_report), rewrites=True),
    "prune": Kind(drop_most, again=drop_most),
    "export": Kind(hand_over, again=hand_over),
}


def make_run(folder: Path) -> Path:
    """A finished run of three tasks on a tiny random model, its last two phases released."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(**sizes, **ends)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for task in ("one", "two", "three"):
        source = random.Random(task)
        for split, size in {"train": 16, "eval": 2, "test": 4}.items():
            texts = (" ".join(source.choices(WORDS, k=8)) for _ in range(size))
            rows = [{"prompt": f"{task}: {text}", "answer": text.split()[0]} for text in texts]
            (folder / "tasks" / task).mkdir(parents=True, exist_ok=True)
            (folder / "tasks" / task / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    config = {
        "name": "kills",
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "data": {"path": str(folder / "tasks"), "tasks": ["one", "two"], "max_length": 64, "template": "none"},
        "training": {"epochs": 1, "global_batch_size": 8},
        "evaluation": {"max_new_tokens": 2},
        "method": {"name": "ilora", "memory_size": 10},
        "contrast": [{"name": "er", "memory_size": 10}],
    }
    made = train(config, folder / "run", quiet=True).path
    change.promote(made, report=no_report)
    add(made, ["three"], quiet=True)
    change.promote(made, report=no_report)
    return made


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run outside its releases, but those that no run compares, and of what was exported of it."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in NOT_COMPARED)
    named = {file.relative_to(folder).as_posix(): file for file in files}
    own = {name: file.read_bytes() for name, file in named.items() if not name.startswith(("releases/", "current/"))}
    return own | exported(folder)


def exported(folder: Path) -> dict[str, bytes]:
    """Every file of the exported folder; none where there is none."""
    there = outside(folder)
    return {f"../{file.relative_to(there)}": file.read_bytes() for file in there.rglob("*") if file.is_file()}


State = tuple[int | None, dict[str, bytes]]  # the current release, and `content`


def torn(folder: Path, kind: Kind, ends: list[State]) -> str | None:
    """What is wrong with a run whose process was killed; None where nothing is. ends: the two states it may have."""
    whole = {name: data for name, data in ends[1][1].items() if name.startswith("../")}
    if exported(folder) not in ({}, whole):
        return "the exported folder is neither whole nor absent"
    try:
        now = [current(folder)]
        if not kind.rewrites:
            read_all(folder)
        kind.again(folder)
        read_all(folder)
        now.append(current(folder))
        history(folder)
    except (IloraError, InputError, OSError, ValueError) as error:
        return repr(error)
    if not {number for number, _ in ends} >= set(now):
        return f"current was {now}"
    if (now[-1], content(folder)) not in ends:
        return f"the run is neither what it was nor what it should become, at release {now[-1]}"
    if (folder / "releases" / "pending.json").exists():
        return "something is still under way"
    serving = {served_name(folder / "releases" / str(now[-1]))}
    if Engine.served and Engine.served != serving:
        return f"the server has {Engine.served}, not {serving}"
    return None


def read_all(folder: Path) -> None:
    """Every release, each file of it."""
    for manifest in list_releases(folder):
        read_release(folder, manifest.number)


def killed(folder: Path, act: Callable[[Path], object], seconds: float) -> bool:
    """Do it in a process of its own, and kill that after some time. Returns whether it was still at work."""
    child = multiprocessing.get_context("fork").Process(target=act, args=(folder,))
    child.start()
    child.join(seconds)
    working = child.is_alive()
    if working:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    return working


def measure(name: str, made: Path, folder: Path, times: int) -> int:
    """Kill it so often; returns how many runs were torn, and prints it."""
    kind, source = KINDS[name], random.Random(name)
    start = Path(shutil.copytree(made, folder / f"{name}-start", symlinks=True))
    kind.before(start)
    done = Path(shutil.copytree(start, folder / f"{name}-done", symlinks=True))
    began = time.perf_counter()
    assert not killed(done, kind.act, 60)  # so that the time includes that of beginning a process
    whole = time.perf_counter() - began
    ends = [(current(run), content(run)) for run in (start, done)]
    bad = early = late = 0
    for number in range(times):
        copy = Path(shutil.copytree(start, folder / f"{name}-{number}", symlinks=True))
        Engine.served = {served_name(copy / "releases" / str(current(copy)))} if "--server" in name else set()
        hit = killed(copy, kind.act, source.uniform(0, 1.2 * whole))
        pending = (copy / "releases" / "pending.json").exists()
        wrong = torn(copy, kind, ends)
        if wrong is not None:
            bad += 1
            print(f"  {name}, kill {number}: {wrong}")
        early, late = early + (hit and not pending), late + (hit and pending)
        shutil.rmtree(copy)
        shutil.rmtree(outside(copy), ignore_errors=True)
    rest = times - early - late
    print(f"{name}: {times} kills, {bad} torn ({early} before it was decided, {late} between, {rest} after its end)")
    return bad


def main() -> None:
    """Print a line for each kind; exit code 1 where anything was torn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--times", type=int, default=15)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    engine = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    ADDRESS.append(f"http://127.0.0.1:{engine.server_port}")
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as place:
        made = make_run(Path(place))
        if sum(measure(name, made, Path(place), chosen.times) for name in chosen.what):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
