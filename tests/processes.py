"""The command in processes of its own, for tests that kill, signal or start several of them.

All but one or two of them are forked from a copy of the tests' own process, which has imported everything.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import typer.main
import yaml
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from ilora.cli import main
from ilora.config import Config

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["ilora.runner"])


def begin_forks() -> None:
    """Start the server of forks as a copy of this process: a new interpreter would import torch again, for 9 s.

    To be called before torch has computed anything here: its threads are not copied.
    """
    get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns, once
    resource_tracker.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.util.spawnv_passfds", _copy_of_this_process)
        forkserver.ensure_running()


def _copy_of_this_process(_path: bytes, arguments: Sequence[str], kept: Sequence[int]) -> int:
    """What an interpreter started with `-c program` would do, with these file descriptors; returns its process id."""
    if child := os.fork():
        return child
    try:
        for low, high in pairwise([2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]):
            os.closerange(low + 1, high)  # else the end of the tests' process would go unnoticed
        gc.freeze()  # what is here now is garbage in no fork
        exec(arguments[-1])
    finally:
        os._exit(1)


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def write_config(path: Path, config: Config) -> Path:
    path.write_text(yaml.safe_dump(config.dump()), encoding="utf-8")
    return path


def ilora_process(*arguments: object, **environment: str) -> Done:
    """`python -m ilora ...` as its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "ilora", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def leave_out_slow(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longer than a tiny run: report.html, PEFT's model cards, the disk's word for each file.

    And the command's parameters are read from its functions once, not for each `ilora ...`.
    """
    patch.setattr("ilora.runner.write_report", lambda _path: None)
    patch.setattr("peft.PeftModel.create_or_update_model_card", lambda *_: None)
    patch.setattr("os.fsync", lambda _file: None)
    patch.setattr("typer.main.get_command", functools.cache(typer.main.get_command))


Moment = Callable[[Path], bool]


def steps(count: int) -> Moment:
    """So many lines in metrics.jsonl."""

    def reached(run: Path) -> bool:
        file = run / "metrics.jsonl"
        return file.is_file() and file.read_bytes().count(b"\n") >= count

    return reached


def there(pattern: str) -> Moment:
    """Something in the run folder matches."""
    return lambda run: any(run.glob(pattern))


def outcome(run: Path) -> dict[str, bytes]:
    """Every byte of the final adapters and of all predictions."""
    files = [*run.glob("adapters/*/*/*.safetensors"), *run.glob("predictions/**/*.jsonl")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def _commands(commands: Sequence[Sequence[str]], log: Path, environment: dict[str, str], broken: str | None) -> None:
    """`ilora ...`, one after the other, with their output in `log.out` and `log.err`."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(log.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        setattr(sys, f"std{name}", open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
    os.environ.update(environment)
    torch.set_num_threads(1)  # two spin while they wait for each other
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow(patch)
        if broken is not None:
            patch.setattr(broken, _break)
        for number, arguments in enumerate(commands, 1):
            sys.argv = ["ilora", *arguments]
            try:
                main()
            except SystemExit as end:
                if end.code or number == len(commands):
                    raise


def _break(*_: object, **__: object) -> None:
    raise ZeroDivisionError("broken for the test")


def ilora_fork(*arguments: object, log: Path, broken: str | None = None, **environment: str) -> BaseProcess:
    """The command in a process of its own, which begins at once. broken: the name of a function that then fails."""
    return ilora_forks([arguments], log=log, broken=broken, **environment)


def ilora_forks(
    commands: Sequence[Sequence[object]], *, log: Path, broken: str | None = None, **environment: str
) -> BaseProcess:
    """Several commands, one after the other, in one process; the first that fails ends it."""
    lines = [[*map(str, arguments)] for arguments in commands]
    process = forks.Process(target=_commands, args=(lines, log, environment, broken), daemon=True)
    process.start()
    return process


def wait_for(moment: Moment, folder: Path, alive: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not moment(folder):
        if not alive() or time.monotonic() > end:
            pytest.fail("the process ended, or 90 s went by, before the moment")
        time.sleep(0.001)
