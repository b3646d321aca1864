"""What a command can refuse at once: before torch and transformers are imported, which takes seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ilora.changes import refuse_no_old
from ilora.config import is_data, problems, read_yaml, refuse_early
from ilora.data.tables import SUFFIXES
from ilora.data.task import name_after
from ilora.errors import InputError
from ilora.files import pending_file, refuse_own
from ilora.keeping import KeepConfig
from ilora.model.names import refuse_unknown_model
from ilora.overrides import read_overrides
from ilora.progress import first_line
from ilora.results.reader import read_results, refuse_no_results
from ilora.stream import REPLACE, refuse_duplicates, refuse_missing


def is_first() -> bool:
    """Whether this is, of several processes, the one that looks and speaks."""
    return os.environ.get("RANK", "0") == "0"


def before_run(config: Path, overrides: Iterable[str], out: Path | None, *, quiet: bool) -> None:
    """Check what `run` is given, and say that it begins. Raises InputError."""
    if is_first():
        found = refuse_early(config, overrides)
        refuse_existing(out if out is not None else Path("runs") / found.name)
        refuse_missing(found)
        first_line(quiet=quiet)
        from ilora.hub import refuse_unknown  # here, since it takes a second

        refuse_unknown_model(found.model.name, found.model.revision)
        for task in found.data.tasks or ():
            if task.dataset is not None:
                refuse_unknown(task.dataset, task.revision, kind="dataset")


def before_resume(run: Path, overrides: Iterable[str], *, quiet: bool) -> None:
    """Check what `resume` is given, and say that it begins. Raises InputError."""
    if is_first():
        refuse_early(config_of(own_run(run)), overrides)
        first_line(quiet=quiet)


def before_add(run: Path, tasks: Sequence[str], replaces: str | None, *, quiet: bool) -> None:
    """Check what `add` is given, and say that it begins. Raises InputError."""
    if is_first():
        found = refuse_early(config_of(own_run(run)))
        if not pending_file(run).is_file():  # `add` finishes what was interrupted first
            refuse_unfinished(run)
            if replaces is not None:
                refuse_no_old(found.data.tasks or [], replaces)
        for item in tasks:
            refuse_no_rows(item)
        if replaces is None:
            new = [name_after(Path(item)) if Path(item).exists() else item for item in tasks]
            refuse_duplicates([*(task.name for task in found.data.tasks or []), *new], note=REPLACE)
        first_line(quiet=quiet)


def before_init(source: Path, overrides: Iterable[str], out: Path | None, *, asks: bool) -> Path:
    """Check what `init` is given, and say that it begins; returns the file to write. Raises InputError."""
    if not source.exists():
        raise InputError(f"{source}: no such file or folder of rows")
    if not is_data(source):
        raise InputError(f"{source}: not rows ({', '.join(SUFFIXES)}, or a folder of such files)")
    found = refuse_early(source, overrides)
    target = out if out is not None else Path(f"{found.name}.yaml")
    if target.exists():
        raise InputError(f"{target}: exists already; --out names another file")
    if asks and not sys.stdin.isatty():
        raise InputError("init asks questions, and this is no terminal: --yes takes every default")
    first_line(quiet=False)
    return target


def rule_of(run: Path, changes: Iterable[str]) -> KeepConfig:
    """The rule `keep` of a run with `key=value` changes, such as `trajectory=none`; of an older run the defaults.

    Raises InputError where it is no run, one without any results, or a change cannot be.
    """
    section = read_yaml(config_of(own_run(run))).get("keep")
    refuse_no_results(run)
    values: dict[str, Any] = dict(section) if isinstance(section, dict) else {}
    for _, key, value in read_overrides(changes):
        values[key.removeprefix("keep.")] = value
    try:
        return KeepConfig.model_validate(values)
    except ValidationError as error:
        raise InputError("; ".join(f"keep.{line}" for line in problems(error, values, KeepConfig))) from None


def before_reading(run: Path, *, quiet: bool) -> None:
    """Check that a folder is that of a run, and say that the command begins. Raises InputError."""
    refuse_no_results(run)
    first_line(quiet=quiet or not is_first())


def before_connecting(places: Sequence[Path], *, quiet: bool) -> None:
    """Check that these are a run, or adapters, and say that the command begins. Raises InputError."""
    if len(places) == 1 and not (places[0] / ADAPTER).is_file():
        refuse_no_results(places[0])
    elif len(places) > 1:
        refuse_no_adapters(places)
    first_line(quiet=quiet or not is_first())


def before_check(source: Path, overrides: Iterable[str], *, quiet: bool) -> None:
    """Check what `data check` is given, and say that it begins. Raises InputError."""
    if is_data(source) and not source.exists():
        raise InputError(f"{source}: no such file or folder of rows")
    refuse_early(source, overrides)
    first_line(quiet=quiet)


ADAPTER = "adapter_config.json"


def refuse_no_adapters(folders: Sequence[Path]) -> None:
    """Raises InputError for anything but two or three adapters."""
    if not 2 <= len(folders) <= 3:
        raise InputError(f"{len(folders)} adapters: give a run folder, or two or three adapter folders")
    for folder in folders:
        refuse_no_adapter(folder)


def refuse_no_adapter(folder: Path) -> None:
    """Raises InputError for a folder that holds no PEFT adapter."""
    if not (folder / ADAPTER).is_file():
        raise InputError(f"{folder}: not a PEFT adapter folder (no {ADAPTER} in it)")


def refuse_existing(path: Path) -> None:
    """Raises InputError where a new run's folder is there already, or would be among another run's own files."""
    refuse_own(path, "--out")
    if path.exists():
        raise InputError(f"{path}: exists already; `ilora resume {path}` goes on with it, --out names another folder")


def refuse_unfinished(run: Path) -> None:
    """Raises InputError for a run that has something left to do."""
    if not (run / "results.json").is_file() or not read_results(run).get("complete"):
        raise InputError(f"{run}: not finished; `ilora resume {run}` first, then add")


def refuse_no_rows(place: str | Path) -> None:
    """Raises InputError for a task that is given as a path, where nothing is."""
    task = str(place)
    if (os.sep in task or Path(task).suffix in SUFFIXES) and not Path(task).exists():
        raise InputError(f"{task}: no such file or folder of rows")


def own_run(path: str | Path) -> Path:
    """A run folder that is not a part of another one, whose lock and configuration rule over it."""
    path = Path(path)
    whole = path.absolute().parent.parent
    if path.absolute().parent.name == "contrast" and (whole / "config.yaml").is_file():
        raise InputError(f"{path}: a contrast run is a part of {whole}; name that one")
    place = path.resolve()  # RUN/current is a link
    for folder in (place, *place.parents):
        in_release = folder.parent.name == "releases" and (folder / "manifest.json").is_file()
        aside = folder.parent.name == "withdrawn" and folder.parent.parent.name == "releases"
        if in_release or aside:
            whole = next(one.parent for one in folder.parents if one.name == "releases")
            raise InputError(f"{path}: a part of the releases of {whole}; name that run")
    return path


def config_of(run: Path) -> Path:
    """The configuration in a run's folder. Raises InputError where there is none."""
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run}: not a run folder (no config.yaml in it)")
    return run / "config.yaml"
