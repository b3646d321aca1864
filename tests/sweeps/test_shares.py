"""Several runs on a GPU: one that its share is too small for waits, and goes on with more. Cards are simulated."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ilora import resume, run
from ilora.commands import sweep as command
from ilora.commands.sweep import RunsFailed, sweep
from ilora.errors import NoRoomError
from ilora.sweeps.book import Book
from ilora.sweeps.local import Processes
from ilora.sweeps.plan import expand, read_sweep
from ilora.sweeps.shares import NO_ROOM, parts_of
from ilora.training.processes import MEMORY_SHARE
from ilora.training.room import settle
from tests.command import Command
from tests.helpers import SMALL, MakeConfig, begin

CARD = 10**6  # bytes
Ending = Callable[[Path, float], int]


class Machine:
    """Processes that end when they are looked at for the second time, as `ending` says of a run's folder and share.

    begun: (run, card, share) of each start. used: of each card, now.
    """

    def __init__(self, ending: Ending) -> None:
        self.ending, self.begun, self.used = ending, list[tuple[str, str, float]](), dict[str, float]()

    def popen(self, words: list[str], *, env: dict[str, str], **_: object) -> _Process:
        assert words[0] == sys.executable
        out = Path(words[words.index("--out") + 1] if "--out" in words else words[words.index("resume") + 1])
        card, share = env.get("CUDA_VISIBLE_DEVICES", ""), float(env.get(MEMORY_SHARE, "0"))
        self.begun.append(("/".join(out.parts[-2:]), card, share))
        self.used[card] = self.used.get(card, 0.0) + share
        assert self.used[card] < 1.0001
        return _Process(self, card, share, out)


class _Process:
    def __init__(self, machine: Machine, card: str, share: float, out: Path) -> None:
        self.machine, self.card, self.share, self.out = machine, card, share, out
        self.looks, self.returncode = 0, None

    def poll(self) -> int | None:
        self.looks += 1
        if self.looks == 2:
            self.returncode = self.machine.ending(self.out, self.share)  # type: ignore[assignment]
            self.machine.used[self.card] -= self.share
        return self.returncode


def needing(needs: dict[str, float], *, unwritten: str = "") -> Ending:
    """Runs of a label need so many cards; one that needs more than its share notes it and ends, as does a whole card's.

    unwritten: this label's runs end before they have noted anything.
    """

    def ending(out: Path, share: float) -> int:
        need = needs[out.parent.name]
        if need > share and out.parent.name == unwritten:
            return NO_ROOM
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text("{}", encoding="utf-8")
        memory = {"predicted_bytes": need * CARD, "there_bytes": share * CARD, "gpu_share": share}
        (out / "environment.json").write_text(json.dumps({"packages": {}, "memory": memory}), encoding="utf-8")
        if need > share:
            return NO_ROOM
        done = {"complete": True, "cost": {"train_seconds": 1.0, "evaluation_seconds": 1.0}}
        (out / "results.json").write_text(json.dumps(done), encoding="utf-8")
        return 0

    return ending


@pytest.fixture
def file(make_config: MakeConfig, tmp_path: Path) -> Path:
    """Two small methods and a big one, two seeds each."""
    config = make_config(*SMALL, "data.tasks=[one, two]", "data.limit.train=8", "training.epochs=1").dump()
    methods = {"small": {"method": "sequential"}, "big": {"method": "sequential"}, "other": {"method": "sequential"}}
    path = tmp_path / "many.yaml"
    path.write_text(
        yaml.safe_dump({"config": config, "methods": methods, "seeds": 2}, sort_keys=False), encoding="utf-8"
    )
    return path


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Put the sweeps to come on a machine with so many GPUs."""

    def put(ending: Ending, *, processes: int = 2, gpus: int = 1) -> Machine:
        machine = Machine(ending)
        monkeypatch.setattr("ilora.sweeps.local.LOOK_EVERY", 0)
        monkeypatch.setattr("subprocess.Popen", machine.popen)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(command, "executor", lambda *_: Processes(processes, gpus=gpus))
        return machine

    return put


def states(folder: Path) -> list[tuple[str, str]]:
    runs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return [(one["folder"].removeprefix("runs/"), one["state"]) for one in runs]


EVERY = [f"{label}/1-{seed}" for seed in (0, 1) for label in ("small", "big", "other")]  # in the book's order


def test_a_run_that_does_not_fit_waits_until_others_have_ended(
    file: Path, tmp_path: Path, on: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one of its kind does not try first."""
    machine = on(needing({"small": 0.4, "big": 0.7, "other": 0.5}))
    sweep(file, out=tmp_path / "s")
    assert states(tmp_path / "s") == [(run, "done") for run in EVERY]
    assert [share for run, _, share in machine.begun if run == "big/1-0"] == [0.5, 1.0]
    assert [share for run, _, share in machine.begun if run == "big/1-1"] == [1.0]
    assert {share for run, _, share in machine.begun if "big" not in run} == {0.5}
    assert len(machine.begun) == len(EVERY) + 1
    assert "big 1-0: needs more of a GPU's memory" in capsys.readouterr().out


def test_more_than_a_share_need_not_be_a_whole_gpu(file: Path, tmp_path: Path, on: Callable[..., Machine]) -> None:
    machine = on(needing({"small": 0.2, "big": 0.4, "other": 0.25}), processes=4)
    sweep(file, out=tmp_path / "s", quiet=True)
    assert [share for run, _, share in machine.begun if "big" in run] in ([0.25, 0.25, 0.5, 0.5], [0.25, 0.5, 0.5])


def test_a_run_that_ends_before_it_knows_what_it_needs_gets_more_each_time(
    file: Path, tmp_path: Path, on: Callable[..., Machine]
) -> None:
    machine = on(needing({"small": 0.2, "big": 0.7, "other": 0.25}, unwritten="big"), processes=3)
    sweep(file, out=tmp_path / "s", quiet=True)
    shares = sorted({share for run, _, share in machine.begun if "big" in run})
    assert shares == pytest.approx([1 / 3, 2 / 3, 1.0], abs=1e-4)
    assert {state for _, state in states(tmp_path / "s")} == {"done"}


def test_what_no_gpu_holds_is_tried_alone_and_stops_no_other(
    file: Path, tmp_path: Path, on: Callable[..., Machine]
) -> None:
    machine = on(needing({"small": 0.4, "big": 1.5, "other": 0.5}))
    with pytest.raises(RunsFailed, match=r"(?s)2 of 6 runs failed.*big 1-0: exit code 75"):
        sweep(file, out=tmp_path / "s", quiet=True)
    assert states(tmp_path / "s") == [(run, "failed" if "big" in run else "done") for run in EVERY]
    assert [share for run, _, share in machine.begun if run == "big/1-0"] == [0.5, 1.0]


def test_a_sweep_that_was_killed_knows_what_its_runs_need(
    file: Path, tmp_path: Path, on: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a run was refused; the next call gives it enough at once."""
    asks = needing({"small": 0.4, "big": 0.7, "other": 0.5})
    refusals = list[int]()

    def killed(out: Path, share: float) -> int:
        if refusals:
            raise KeyboardInterrupt
        refusals.extend([code] if (code := asks(out, share)) else [])
        return code

    on(killed)
    monkeypatch.setattr(Processes, "stop", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        sweep(file, out=tmp_path / "s", quiet=True)
    assert dict(states(tmp_path / "s"))["big/1-0"] == "waiting"
    machine = on(asks)
    sweep(file, out=tmp_path / "s", quiet=True)
    assert {share for run, _, share in machine.begun if run == "big/1-0"} == {1.0}
    assert {state for _, state in states(tmp_path / "s")} == {"done"}


def test_each_process_sees_one_gpu_and_one_that_becomes_free_is_taken_again(
    file: Path, tmp_path: Path, on: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = on(needing({"small": 0.4, "big": 0.7, "other": 0.5}), processes=3, gpus=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    sweep(file, out=tmp_path / "s", quiet=True)
    assert machine.begun[:3] == [("small/1-0", "4", 0.5), ("big/1-0", "7", 1.0), ("other/1-0", "4", 0.5)]
    assert {state for _, state in states(tmp_path / "s")} == {"done"}


def test_one_run_at_a_time_has_all_gpus_and_without_one_nothing_is_divided(
    file: Path, tmp_path: Path, on: Callable[..., Machine]
) -> None:
    machine = on(lambda *_: 0, processes=1, gpus=2)
    entry = Book(tmp_path / "s", expand(read_sweep(file, ()), file)).entries[0]
    for processes in (Processes(1, gpus=2), Processes(3)):
        assert processes.has_room(entry)
        processes.start(entry)
        assert not processes.has_more(entry)
    assert machine.begun == [("small/1-0", "", 0.0)] * 2


def test_a_share_that_is_a_rounding_too_large_takes_no_part_more() -> None:
    assert [parts_of(share, 3) for share in (0.0, 0.333334, 0.34, 0.666667, 0.7, 9.9)] == [1, 1, 2, 2, 3, 3]


# -- the run itself ----------------------------------------------------------------------------------------------------


def test_a_run_with_a_part_of_a_gpu_is_not_begun_with_too_little(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It notes what it needs. With all of the GPU it is tried, and here it goes through."""
    config = make_config(*SMALL, "data.tasks=[one]", "model.gradient_checkpointing=false", "training.epochs=1")
    session = begin(config, tmp_path / "looked")
    whole = settle(session.method, session.config, session.stream)
    share = {"now": 0.5}
    missing = whole.bytes - whole.weights - whole.adapters - 1  # a byte too little
    monkeypatch.setattr("ilora.training.room.memory_share", lambda _: share["now"])
    monkeypatch.setattr("ilora.training.room.free_memory", lambda _: missing)
    with pytest.raises(NoRoomError, match="50% of the GPU's memory"):
        run(config, tmp_path / "run", quiet=True)
    noted: dict[str, Any] = json.loads((tmp_path / "run" / "environment.json").read_text(encoding="utf-8"))["memory"]
    assert (noted["gpu_share"], noted["predicted_bytes"]) == (0.5, whole.bytes)
    assert noted["there_bytes"] == whole.bytes - 1
    share["now"] = 1.0
    assert resume(tmp_path / "run", quiet=True).results["complete"]


def test_memory_that_ends_while_the_model_is_loaded_has_an_exit_code(
    ilora: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much\nand more")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    done = ilora("run", config, "--out", "run")
    assert (done.code, done.err.count("\n")) == (NO_ROOM, 1)
    assert done.err.startswith("ilora: out of memory (CUDA out of memory. Tried to allocate much)")
    assert not Path("run").exists()
