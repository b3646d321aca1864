"""Places in a configuration file count from the folder of that file; those typed, from the working directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ilora.data.task import SPLITS
from ilora.errors import InputError
from ilora.files import expanded
from ilora.model.names import ALIASES, GIVEN

_TASK = "data.tasks.*"
PLACES = (
    "data.path",
    "data.start_rows",
    "adapter.start_from",
    "evaluation.perplexity_file",
    *(f"{_TASK}.{key}" for key in ("path", *SPLITS)),
)
NAMES = ("model", "model.name", f"{_TASK}.dataset")  # of a hub, or a place


def anchored(values: Mapping[str, Any], file: Path, typed: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a file, with its places as they are seen from the working directory.

    typed: the dotted keys that did not come from the file; what they name stays.
    Raises InputError for a place that is not beside the file, but in the working directory.
    """
    made = dict(values)
    for pattern in (*PLACES, *NAMES):
        for key, section, last in list(_found(made, pattern.split("."))):
            if not any(key == word or key.startswith(f"{word}.") for word in typed):
                with suppress(ValueError):  # a variable that is not set: the section itself says so
                    section[last] = place_of(section[last], key, file, hub=pattern in NAMES)
    return made


def without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that say where things lie, which differ from machine to machine."""
    made = dict(values)
    for pattern in PLACES:
        for _key, section, last in list(_found(made, pattern.split("."))):
            del section[last]
    return made


def place_of(value: str, key: str, file: Path, *, hub: bool) -> str:
    """One place of a file. hub: it may also be the name of a model or a data set on a hub."""
    written = expanded(value)
    if Path(written).is_absolute() or (hub and written in (*ALIASES, GIVEN)):
        return written
    # The same place whatever the working directory, which a sweep compares.
    beside = (file.parent.resolve() if ".." in file.parent.parts else file.parent) / written
    if beside.exists():
        return str(beside.absolute() if hub else beside)
    if Path(written).exists():
        raise InputError(
            f"{file}: {key}: no {beside}: a file's places count from its own folder. {written} is there in the working "
            f"directory: write {Path(written).absolute()}, or give {key}={written} on the command line"
        )
    return str(beside.absolute()) if hub and written.startswith(".") else written if hub else str(beside)


def _found(section: Any, keys: list[str], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each text at a dotted key: that key, the section or list that holds it, and its key there. Copies on the way."""
    key, *rest = keys
    if key == "*":
        places: list[Any] = list(range(len(section))) if isinstance(section, list) else []
    else:
        places = [key] if isinstance(section, dict) and key in section else []
    for place in places:
        inner = section[place]
        if not rest and isinstance(inner, str):
            yield f"{above}{place}", section, place
        elif rest and isinstance(inner, Mapping | list):
            section[place] = dict(inner) if isinstance(inner, Mapping) else list(inner)
            yield from _found(section[place], rest, f"{above}{place}.")
