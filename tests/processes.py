"""The command in processes of its own, for tests that kill, signal or start several of them.

Nearly all of them are forked from a copy of the tests' own process, which has imported everything.
"""

from __future__ import annotations

import copy
import functools
import gc
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
import typer.main
import yaml
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from ilora.cli import PATIENCE, main
from ilora.config import Config

TINY = 2**20  # bytes of a model that is kept in memory
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["ilora.runner"])


def begin_forks() -> None:
    """Start the server of forks as a copy of this process: a new interpreter would import torch again, for 9 s.

    To be called before torch has computed anything here: its threads are not copied.
    """
    get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns, once
    gc.freeze()  # what the imports made is no garbage: a collection that looks at it takes 0.3 s
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
    """Leave out what takes longer than a tiny run: report.html, PEFT's model cards, the confirmation of each file.

    Read once are the command's parameters from its functions, a tiny model and its tokenizer from their folder.
    """
    patch.setattr("ilora.runner.write_report", lambda _path: None)
    patch.setattr("peft.PeftModel.create_or_update_model_card", lambda *_: None)
    patch.setattr("os.fsync", lambda _file: None)
    patch.setattr("typer.main.get_command", functools.cache(typer.main.get_command))
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        patch.setattr(f"transformers.{name}.from_pretrained", _read_once(getattr(transformers, name).from_pretrained))


def _read_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """`from_pretrained` that reads the files of a folder once as long as they stay the same, and returns copies."""
    made: dict[str, Any] = {}

    def copy_of(source: str | Path, **options: Any) -> Any:
        files = [(file.name, file.stat()) for file in Path(source).glob("*")]
        if not 0 < sum(state.st_size for _, state in files) < TINY or "distributed_config" in options:
            return load(source, **options)
        versions = sorted((name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in files)
        key = repr((source, versions, sorted(options.items())))
        if key not in made:
            made[key] = load(source, **options)
        return copy.deepcopy(made[key])

    return copy_of


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


@contextmanager
def _apart(log: Path, environment: dict[str, str]) -> Iterator[pytest.MonkeyPatch]:
    """A fork with output in `log.out` and `log.err`, whose children that are to run `ilora` are forks, too."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(log.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        setattr(sys, f"std{name}", open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
    _log_here()
    os.environ.update(environment)
    torch.set_num_threads(1)  # two spin while they wait for each other
    start = subprocess.Popen.__init__

    def start_copy(child: subprocess.Popen[Any], args: Sequence[str], **options: Any) -> None:
        if "ilora" in args:
            options["preexec_fn"] = partial(_go_on, args, options.get("env"), options.get("preexec_fn"))
        start(child, args, **options)

    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow(patch)
        patch.setattr("ilora.connectivity.pictures.drawings", lambda _result: {})
        patch.setattr(subprocess.Popen, "__init__", start_copy)
        yield patch


def _log_here() -> None:
    """Have loggers write to this process's standard error.

    Pytest's files belong to the tests' process: here the same numbers are other files, pipes among them.
    """
    for logger in [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]:
        logger.handlers = [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]
        for handler in logger.handlers:
            handler.setStream(sys.stderr)


def _go_on(command: Sequence[str], environment: dict[str, str] | None, prepare: Callable[[], None] | None) -> None:
    """Be the child that `python -m ilora ...` is to be, in place of a new interpreter, to the end of the process."""
    code: Any = 1
    try:
        if prepare is not None:
            prepare()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the end of a pipe says that the program has begun
        os.environ.clear()
        os.environ.update(environment or {})
        place = command.index("-m")
        assert command[0] == sys.executable
        assert command[place + 1] == "ilora"
        sys.argv = list(command[place + 1 :])
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _commands(
    commands: Sequence[Sequence[str]], log: Path, environment: dict[str, str], broken: str | None, patience: float
) -> None:
    """`ilora ...`, one after the other."""
    with _apart(log, environment) as patch:
        patch.setattr("ilora.cli.PATIENCE", patience)
        if broken is not None:
            patch.setattr(broken, _break)
        for number, arguments in enumerate(commands, 1):
            sys.argv = ["ilora", *arguments]
            try:
                main()
            except SystemExit as end:
                if end.code or number == len(commands):
                    raise


def _module(name: str, arguments: Sequence[str], log: Path, environment: dict[str, str]) -> None:
    with _apart(log, environment):
        sys.argv = [name, *arguments]
        runpy.run_module(name, run_name="__main__")


def _break(*_: object, **__: object) -> None:
    raise ZeroDivisionError("broken for the test")


def ilora_fork(*arguments: object, log: Path, broken: str | None = None, **environment: str) -> BaseProcess:
    """The command in a process of its own, which begins at once. broken: the name of a function that then fails."""
    return ilora_forks([arguments], log=log, broken=broken, **environment)


def ilora_forks(
    commands: Sequence[Sequence[object]],
    *,
    log: Path,
    broken: str | None = None,
    patience: float = PATIENCE,
    **environment: str,
) -> BaseProcess:
    """Several commands, one after the other, in one process; the first that fails ends it.

    patience: how long, in seconds, another process than the first waits before it says what it met.
    """
    lines = [[*map(str, arguments)] for arguments in commands]
    process = forks.Process(target=_commands, args=(lines, log, environment, broken, patience), daemon=True)
    process.start()
    return process


def module_fork(name: str, *arguments: object, log: Path, **environment: str) -> BaseProcess:
    """`python -m name ...` in a process of its own."""
    process = forks.Process(target=_module, args=(name, [*map(str, arguments)], log, environment), daemon=True)
    process.start()
    return process


def wait_for(moment: Moment, folder: Path, alive: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not moment(folder):
        if not alive() or time.monotonic() > end:
            pytest.fail("the process ended, or 90 s went by, before the moment")
        time.sleep(0.001)
