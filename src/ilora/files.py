"""Locks on folders, YAML, and writing that a kill or a power cut leaves whole: the old content or the new one."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ilora.errors import IloraError, InputError

# What ilora writes in a run folder.
RUN_ENTRIES = (
    "adapters", "checkpoints", "config.yaml", "connectivity", "contrast", "current", "data", "diffs",
    "environment.json", "evaluations", "gate", "gate.json", "gate.yaml", "general.json", "metrics.jsonl", "predictions",
    "releases", "report.html", "results.json", "trajectory", "trackers", ".lock", "comparison",
)  # fmt: skip


def expanded(place: str) -> str:
    """A place with `~` and variables such as `$HOME` written out. Raises ValueError for a variable that is not set."""
    written = os.path.expandvars(place)
    if written.startswith("~"):
        written = str(Path(written).expanduser())
    unset = re.findall(r"\$\{?\w+\}?", written)
    if unset:
        raise ValueError(f"the variable {unset[0]} is not set")
    return written


def pending_file(run: Path) -> Path:
    """Where a run notes a promotion, rollback or deletion of rows before it begins, until it is done."""
    return run / "releases" / "pending.json"


def refuse_own(path: Path | None, option: str) -> None:
    """Raises InputError where an option names a file of a run's own. A new one beside these may be written."""
    if path is None:
        return
    place = path.resolve()
    for run in place.parents:
        own = place.relative_to(run).parts[0] in RUN_ENTRIES
        if own and (run / "config.yaml").is_file() and (run / "results.json").is_file():
            raise InputError(f"{option} {path}: belongs to the run {run} and is not written over; name another file")


def cache_folder() -> Path:
    """What can be made again lies here: the bundled model's folder, states of frozen layers, tokens of large tasks."""
    return Path(os.environ.get("ILORA_CACHE") or Path.home() / ".cache" / "ilora")


def flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut (where the system can: not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def flush_tree(folder: Path) -> None:
    """Wait until the disk has every file below a folder, before it is renamed into its place."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_flushed(path: Path, data: bytes) -> None:
    """Write and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file whole: a reader, or a run that is killed, sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-writing")
    try:
        write_flushed(scratch, content.encode() if isinstance(content, str) else content)
        scratch.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise IloraError(f"{path}: cannot write: {error.strerror or error}") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` another name of a file that is only ever replaced, never changed in place; a copy where the file
    system knows no hard links. Complete or not there.
    """
    try:
        os.link(source, target)
    except OSError:
        scratch = target.with_name(f".{target.name}-writing")
        shutil.copyfile(source, scratch)
        scratch.replace(target)


def append_line(path: Path, text: str) -> None:
    """Add a line; where that fails it may stay behind cut off."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise IloraError(f"{path}: cannot write: {error.strerror or error}") from error


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait until no other process is at this file of the user's cache, and hold it; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def locked(folder: Path, *, what: str) -> Iterator[None]:
    """Hold a folder for this process; the system drops the lock when the process ends, however it ends.

    what: a word for the folder's content. Raises InputError where another process holds it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is working on this {what}") from None
        yield


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node.value, str) and key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' stands twice", key_node.start_mark
                )
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def from_yaml(text: str) -> Any:
    """What YAML says. Raises yaml.YAMLError, also where a key stands twice, ValueError or RecursionError."""
    return deepcopy(_read_once(text))


@lru_cache(maxsize=32)
def _read_once(text: str) -> Any:
    """A command reads a configuration several times, and for one with all its settings PyYAML takes 20 ms."""
    return yaml.load(text, _Loader)
