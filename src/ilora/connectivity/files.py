"""connectivity/*.json: one file for each result, with what it was made from.

A file whose origin is the same is kept (or gone on with, where it is not complete); one of another origin is never
overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ilora.errors import InputError
from ilora.files import write_atomic

SCHEMA = 2  # 1: similarity pooled over tasks, no uncertainty of a barrier
# What every result holds, and what a complete one of each kind holds.
COMMON = ("complete", "made_from", "ends")
KINDS = {
    "path": ("path", "space", "points", "profiles", "groups", "tasks"),
    "plane": ("space", "x", "y", "grid", "corners", "trail"),
    "similarity": ("cka", "angles", "distances", "tasks"),
    "selection": ("t", "adapter", "gain", "test"),
}


def load(path: Path) -> dict[str, Any]:
    """A result file. Raises InputError naming what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or content.get("kind") not in KINDS:
        raise InputError(f"{path}: not a result of schema {SCHEMA} ({', '.join(KINDS)}); move it away")
    needed = (*COMMON, *(KINDS[content["kind"]] if content.get("complete") else ()))
    missing = [key for key in needed if key not in content]
    if missing:
        raise InputError(f"{path}: a damaged result (no {', '.join(missing)} in it); move it away")
    return content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside the block a value that is missing or of another kind than expected is an InputError naming the file."""
    try:
        yield
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: a damaged result ({error!r}); move it away") from None


def earlier(path: Path, made_from: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a file of the same origin holds; None where there is no file. One that was also made from adapters that the
    run has since dropped (snapshots, see `keep`) is of the same origin.

    Raises InputError where it was made from something else.
    """
    if not path.exists():
        return None
    content = load(path)
    before, now = content["made_from"], json.loads(json.dumps(made_from))
    with reading(path):
        kept = {label: digest for label, digest in before["adapters"].items() if label in now["adapters"]}
        before = before | {"adapters": kept}
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        raise InputError(f"{path}: exists, made with other {', '.join(changed)}; --out names another folder")
    return content


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result whole."""
    write_atomic(path, json.dumps({"schema": SCHEMA, **content}, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def load_all(folder: Path) -> list[dict[str, Any]]:
    """Every result of a folder, by file name, each with its `file`."""
    return [{**load(path), "file": path.name} for path in sorted(folder.glob("*.json"))]
