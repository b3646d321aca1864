"""The state of a sweep's runs, read from their folders. sweep.json is for people and for `ilora compare`."""

from __future__ import annotations

import fcntl
import fnmatch
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ilora.config import load_config
from ilora.errors import InputError
from ilora.files import locked, write_atomic
from ilora.sweeps.plan import Job

SCHEMA = 1
State = Literal["waiting", "running", "done", "failed"]


@dataclass
class Entry:
    """A run and its state. seconds: of its training and evaluation, once it is done."""

    job: Job
    path: Path
    state: State = "waiting"
    error: str = ""
    seconds: float | None = None

    @property
    def config_file(self) -> Path:
        """The configuration that the run is started with."""
        return self.path.with_name(f"{self.path.name}.yaml")

    @property
    def log(self) -> Path:
        """The output of its process."""
        return self.path.with_name(f"{self.path.name}.log")

    def look(self) -> None:
        """Read from its folder whether it is done."""
        results = _results(self.path)
        if results is not None and results.get("complete"):
            cost = results["cost"]
            self.state, self.error = "done", ""
            self.seconds = float(cost["train_seconds"] + cost["evaluation_seconds"])

    def fail(self, error: str) -> None:
        """Note that it ended without being done."""
        self.state, self.error = "failed", error

    @property
    def position(self) -> tuple[int, str]:
        """How many tasks are finished, and the step in progress, from the last line of its metrics."""
        line = _last_line(self.path / "metrics.jsonl")
        if line is None:
            return 0, "starting"
        return int(line["task_index"]) - 1, f"{line['task']}, step {line['step']}"

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.path / "config.yaml").is_file()

    def command(self) -> list[str]:
        """Arguments for `python -m ilora` that begin the run or go on with it."""
        if self.begun:
            return ["resume", str(self.path), "--quiet"]
        return ["run", str(self.config_file), "--out", str(self.path), "--quiet"]


class Book:
    """A sweep's folder."""

    def __init__(self, path: Path, jobs: Sequence[Job]) -> None:
        self.path = path
        self.entries: list[Entry] = []
        for job in jobs:
            self.add(job)

    def add(self, job: Job) -> Entry:
        """One run more, in the state in which its folder is."""
        entry = Entry(job, self.path / job.folder)
        entry.look()
        self.entries.append(entry)
        return entry

    def refuse_changes(self) -> None:
        """Raises InputError where a run was begun with other settings than the sweep now asks for."""
        for entry in self.entries:
            if entry.config_file.is_file():
                before = load_config(entry.config_file).dump()  # with defaults for settings that are newer than it
                different = _differences(before, entry.job.config.dump())
                if different:
                    raise InputError(
                        f"{entry.path}: begun with other settings: {'; '.join(different)}; "
                        "a changed sweep needs another --out (methods, orders, seeds and settings may be added)"
                    )

    def begin(self, sweep: dict[str, Any]) -> None:
        """Write the sweep and its runs' configurations; remove folders of runs killed before they had one.

        A configuration that is there already is the same: `refuse_changes` has seen to it.
        """
        write_atomic(self.path / "sweep.yaml", yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True))
        for entry in self.entries:
            if not entry.config_file.is_file():
                text = yaml.safe_dump(entry.job.config.dump(), sort_keys=False, allow_unicode=True)
                write_atomic(entry.config_file, text)
            if entry.path.is_dir() and not (entry.path / "config.yaml").is_file():
                shutil.rmtree(entry.path)
        self.write()

    def write(self) -> None:
        """sweep.json."""
        runs = [
            {
                "label": entry.job.label,
                "method": entry.job.config.method.name,
                "order": entry.job.order,
                "seed": entry.job.seed,
                "settings": entry.job.settings,
                "folder": entry.job.folder.as_posix(),
                "state": entry.state,
                "seconds": entry.seconds,
                "error": entry.error,
            }
            for entry in self.entries
        ]
        text = json.dumps({"schema": SCHEMA, "runs": runs}, ensure_ascii=False, indent=1)
        write_atomic(self.path / "sweep.json", text + "\n")

    def matching(self, patterns: Sequence[str]) -> list[Entry]:
        """The runs whose `<label>/<order>-<seed>...` fits one of these shell patterns; all where there is none.

        Raises InputError for a pattern that fits no run.
        """
        if not patterns:
            return self.entries
        names = ["/".join(entry.job.folder.parts[-2:]) for entry in self.entries]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise InputError(f"--only {pattern}: fits none of the {len(names)} runs; the first is {names[0]}")
        return [
            entry
            for entry, name in zip(self.entries, names, strict=True)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]

    def count(self, state: State) -> int:
        """Runs in this state."""
        return sum(entry.state == state for entry in self.entries)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time works on a sweep."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, what="sweep"):
            yield


def busy(path: Path) -> bool:
    """Whether a process that outlived its sweep still works on this run."""
    try:
        with (path / ".lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def last_words(log: Path) -> str:
    """The error that the command ended with, or the last line of a log, for a table."""
    if message := last_message(log):
        return message.splitlines()[0][:300]
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1][:300] if lines else "it said nothing"


def last_message(log: Path) -> str:
    """What the command said last, to its end: an error with its notes. Empty where it said nothing."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return f"\n{text}".rpartition("\nilora: ")[2] if "ilora: " in text else ""


def _results(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((path / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path / 'results.json'}: not JSON ({error}); remove it and the run goes on") from None
    return content if isinstance(content, dict) else None


def _last_line(file: Path) -> dict[str, Any] | None:
    """The last whole line; None where there is none yet."""
    if not file.is_file():
        return None
    with file.open("rb") as handle:
        handle.seek(max(0, file.stat().st_size - 8192))
        lines = handle.read().split(b"\n")[:-1]
    try:
        return dict(json.loads(lines[-1])) if lines else None
    except ValueError:
        return None


def _differences(before: Any, after: Any, above: str = "") -> list[str]:
    """Keys whose values differ, dotted."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [line for key in keys for line in _differences(before.get(key), after.get(key), f"{above}{key}.")]
    return [] if before == after else [f"{above.rstrip('.')}: {before!r} -> {after!r}"]
