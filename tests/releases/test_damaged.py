"""Damaged files of a line of months: each is refused by name, whatever stands in it, and nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ilora import InputError, gate, history, promote, read_gate, rollback
from ilora.files import pending_file
from tests.command import tree

pytestmark = pytest.mark.xdist_group("releases")

CONTENTS = {
    "empty": b"",
    "cut off": b'{"format": 1, "what": "rollb',
    "no UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "a number": b"3",
    "no keys": b"{}",
    "another version": b'{"format": 99}',
    "other types": b'{"format": 1, "what": 3, "number": "x", "event": [], "outcome": 1, "checks": 2, "files": []}',
    "deep": b"[" * 100_000,
}


def refused(run: Path, file: Path, *commands: Callable[[Path], object]) -> None:
    """Each command names the file and changes nothing."""
    before = tree(run)
    for command in commands:
        with pytest.raises(InputError) as told:
            command(run)
        assert str(file) in str(told.value)
    after = tree(run)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {".lock"}


def damages(file: Path) -> Iterator[None]:
    """Write each of the contents to the file."""
    for content in CONTENTS.values():
        file.write_bytes(content)
        yield


def test_pending_json(two_releases: Path) -> None:
    for _ in damages(file := pending_file(two_releases)):
        refused(two_releases, file, history, gate, promote, rollback)


def test_the_manifest_of_the_current_release(two_releases: Path) -> None:
    for _ in damages(file := two_releases / "releases" / "2" / "manifest.json"):
        assert any(str(file) in line for line in history(two_releases)["damaged"])
        refused(two_releases, file, lambda run: rollback(run, to=2))


def test_gate_json(two_releases: Path) -> None:
    for _ in damages(file := two_releases / "gate.json"):
        refused(two_releases, file, read_gate, promote)
    whole = gate(two_releases)  # it decides anew
    for checks in ([{}], [whole["checks"][0] | {"low": "x"}]):
        file.write_text(json.dumps(whole | {"checks": checks}))
        refused(two_releases, file, read_gate, promote)
    assert gate(two_releases)["outcome"] == whole["outcome"]
    assert json.loads(file.read_text())["format"] == 1
