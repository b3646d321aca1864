"""Resumable state: safetensors + JSON, complete or not there.

A checkpoint is written under a temporary name, flushed to disk, and renamed. `state.json` names every other file with
its size and SHA-256, and holds its own, so that one that was cut off or damaged is recognised, and the one before it
is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ilora.errors import IloraError, InputError
from ilora.files import flush_folder, flush_tree, link_or_copy, write_flushed

FORMAT = 1
KEPT = 2  # the newest, and the one before it for the case that the newest is damaged


@dataclass
class Checkpoint:
    """values: plain JSON. tensors: groups of named tensors, one file each. place: the folder it was read from."""

    values: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    place: Path | None = None


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the next numbered checkpoint, then drop all but the newest KEPT.

    Raises IloraError on a full disk; whatever was saved before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name) for path in complete(folder)]
    final = folder / f"{max(numbers, default=0) + 1:06d}"
    scratch = folder / f".{final.name}-writing"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        files, kept = {}, complete(folder)
        before = kept[-KEPT] if len(kept) >= KEPT else None  # never the newest: two that stay must not share a file
        for group, tensors in checkpoint.tensors.items():
            name, data, files[name] = _file(group, tensors)
            if before is None or not _linked(before / name, scratch / name, data):
                write_flushed(scratch / name, data)
        _write_state(scratch, files, checkpoint.values)
        scratch.rename(final)
        flush_folder(folder)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise IloraError(
            f"{final}: cannot write the checkpoint: {error.strerror or error}; the last good one stays"
        ) from error
    for old in complete(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _file(group: str, tensors: Mapping[str, Tensor]) -> tuple[str, bytes, dict[str, Any]]:
    """Name and content of a group's file, and what state.json says of it."""
    data = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    return f"{group}.safetensors", data, {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_state(folder: Path, files: dict[str, Any], values: dict[str, Any]) -> None:
    state = {"format": FORMAT, "files": files, "values": values}
    state["sha256"] = _digest(state)
    write_flushed(folder / "state.json", json.dumps(state, ensure_ascii=False, allow_nan=False).encode())


def rewrite(place: Path, change: Callable[[Checkpoint], Checkpoint | None]) -> None:
    """Put what `change` makes of a checkpoint in its place; None: it is right as it is. May be repeated after a kill.

    Groups that `change` hands back as they are keep their files. Raises InputError where the checkpoint is damaged.
    """
    scratch, before = (place.with_name(f".{place.name}-{word}") for word in ("rewritten", "before-writing"))
    if place.exists():  # else it was killed between the two renames, and the scratch folder is complete
        made = change(found := load(place))
        shutil.rmtree(scratch, ignore_errors=True)
        if made is None:
            return
        scratch.mkdir()
        files = dict(json.loads((place / "state.json").read_text(encoding="utf-8"))["files"])
        for group, tensors in made.tensors.items():
            if tensors is found.tensors[group]:
                link_or_copy(place / f"{group}.safetensors", scratch / f"{group}.safetensors")
            else:
                name, data, files[name] = _file(group, tensors)
                write_flushed(scratch / name, data)
        _write_state(scratch, files, made.values)
        flush_tree(scratch)
        shutil.rmtree(before, ignore_errors=True)
        place.rename(before)
    scratch.rename(place)
    flush_folder(place.parent)
    shutil.rmtree(before, ignore_errors=True)


def load(place: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises InputError where it is damaged."""
    try:
        return _load(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"checkpoint {place} is damaged ({error})") from None


def all_of(folder: Path) -> list[Path]:
    """The checkpoints in a folder, those set aside as damaged included, and any that a kill left halfway rewritten."""
    halfway = (path.with_name(path.name[1:].removesuffix("-rewritten")) for path in folder.glob(".[0-9]*-rewritten"))
    return sorted({*complete(folder), *folder.glob("damaged-*"), *halfway})


def _linked(earlier: Path, path: Path, data: bytes) -> bool:
    """Make `path` another name of an earlier checkpoint's file, if that holds just these bytes: nothing is written.

    A frozen adapter of a long stream is so written twice, not with every checkpoint.
    """
    try:
        if earlier.stat().st_size != len(data) or earlier.read_bytes() != data:
            return False
        os.link(earlier, path)
    except OSError:  # it is missing or damaged, or the file system knows no links
        return False
    return True


def newest(folder: Path) -> Path | None:
    """The last checkpoint that was written."""
    return max(complete(folder), default=None)


def set_aside(path: Path) -> None:
    """Take a damaged checkpoint out of the count, so that it does not push out a sound one."""
    target = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(target, ignore_errors=True)
    path.rename(target)


def load_latest(folder: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest sound checkpoint (None: there is none), and what is wrong with each one passed over."""
    passed: dict[Path, str] = {}
    for path in reversed(complete(folder)):
        try:
            return _load(path), passed
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            passed[path] = f"checkpoint {path} is damaged ({error})"
    return None, passed


def _load(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise InputError(f"{path}: checkpoint format {state['format']}, this version reads {FORMAT}")
    if state.pop("sha256") != _digest(state):
        raise ValueError("state.json is altered")
    tensors = {}
    for name, expected in state["files"].items():
        data = (path / name).read_bytes()
        if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise ValueError(f"{name} is cut off or altered: {len(data)} bytes, {expected['bytes']} expected")
        tensors[name.removesuffix(".safetensors")] = load_tensors(data)
    return Checkpoint(state["values"], tensors, path)


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def complete(folder: Path) -> list[Path]:
    """The checkpoints in the folder, oldest first; those that were set aside are none."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit() and path.is_dir())


def split_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A method's or optimizer's flat state into JSON values and tensors."""
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {key: value for key, value in state.items() if key not in tensors}, tensors
