"""manifest.json: what a release is, with the size and SHA-256 of every file in its folder, and its own SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ilora.errors import InputError
from ilora.files import write_atomic, write_flushed
from ilora.present.numbers import plain
from ilora.results.reader import read_text
from ilora.results.schema import Form, known_version, validated

FORMAT = 1
FILE = "manifest.json"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileEntry(Form):
    """What is known of a file of the release."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class Manifest(Form):
    """A release.

    number: its place in the run's releases, from 1; a number is never given twice.
    previous: the release that was current before it.
    phase, phases: the label of its last phase (`03-fomc`), and the names of all.
    adapter: the folder of the adapter that answers, within the release; None for a method that has no such thing.
    base: name, revision, alias and weights_sha256 of the base model, as in base_model.json; None where not known.
    tokenizer_sha256: of the tokenizer; None in a run of a version that did not note it.
    steps: optimizer steps of the run up to here.
    repaired: how the adapter was repaired after training (`candidate`, `t` or `c`); None: it is as training left it.
    gate: what the gate found, as plain JSON; None where it was not asked.
    run: what lay in the run folder at that moment, as paths in it; a rollback sets everything else aside.
    redactions: the tasks whose rows were deleted from the release since, each with the day, and the SHA-256 that the
        manifest had before.
    files: every file of the release but this one, by its path in it.
    """

    format: Annotated[int, known_version(FORMAT)]
    number: int = Field(ge=1)
    previous: int | None = Field(ge=1)
    phase: str
    phases: list[str] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    method: str
    answers_with: str
    adapter: str | None
    base: dict[str, Any] | None
    tokenizer_sha256: Sha256 | None
    template: str | None
    steps: int
    created: str
    ilora: str
    repaired: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None
    note: str = ""
    run: list[str]
    redactions: list[dict[str, Any]] = Field(default_factory=list)
    files: dict[str, FileEntry]


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write manifest.json into a folder that is complete without it. content: all fields but `format` and `files`."""
    write_flushed(folder / FILE, _text(folder, {"format": FORMAT, **content}).encode())


def redact(folder: Path, *, task: str, day: str) -> None:
    """Note in a release's manifest that a task's rows were deleted from it, with the digests of what is left.

    Where all files are as the manifest says, nothing is noted.
    """
    content = json.loads(read_text(folder / FILE))
    if content["files"] != _entries(folder):
        note = {"task": task, "day": day, "sha256_before": content.pop("sha256")}
        write_atomic(folder / FILE, _text(folder, content | {"redactions": [*content.get("redactions", []), note]}))


def _entries(folder: Path) -> dict[str, Any]:
    return {name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for name, path in sorted(_files(folder))}


def _text(folder: Path, content: dict[str, Any]) -> str:
    """The content of manifest.json, with the digests of the folder's other files as they are now."""
    kept = {key: value for key, value in content.items() if key not in ("files", "sha256")}
    whole: dict[str, Any] = kept | {"files": _entries(folder)}
    whole["sha256"] = _own_digest(whole)
    validated(Manifest, whole, str(folder / FILE))
    return json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of a release; the other files are not looked at. Raises InputError naming the file."""
    path = folder / FILE
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    manifest = validated(Manifest, content, str(path))
    if content.get("sha256") != _own_digest(content):
        raise InputError(f"{path}: it was altered since the release was made")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Raises InputError naming the first file of the folder that is extra, missing or changed."""
    found = dict(_files(folder))
    for name in sorted(found.keys() - manifest.files.keys()):
        raise InputError(f"{folder}: {plain(name)} does not belong to the release; move it away")
    for name in sorted(manifest.files.keys() - found.keys()):
        raise InputError(f"{folder}: {plain(name)} is missing")
    for name, expected in sorted(manifest.files.items()):
        size = found[name].stat().st_size
        if size != expected.bytes:
            raise InputError(f"{found[name]}: changed since the release was made: {size} bytes, were {expected.bytes}")
        if file_sha256(found[name]) != expected.sha256:
            raise InputError(f"{found[name]}: changed since the release was made: its SHA-256 is another one")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a release but its manifest. Raises InputError for a link or a device: it would lead elsewhere."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(f"{folder}: {plain(name)} is not a plain file; move it away")
        if path.is_file() and name != FILE:
            yield name, path


def _own_digest(content: dict[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
