"""Every file of a run folder comes into being by a rename: a kill leaves the old content or the new one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ilora import add, compare, connect, run
from tests.helpers import MakeConfig, write_task

GROWS = {"metrics.jsonl", ".lock"}  # lines are added as they come, and a resume cuts a torn one off; a lock is empty
_renamed: set[str] = set()
_opened: set[str] = set()
_watching = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _watching:
        return
    if event == "os.rename":
        _renamed.add(str(Path(os.fsdecode(arguments[1])).absolute()))  # type: ignore[arg-type]
    elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        mode, flags = arguments[1], arguments[2]
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & os.O_WRONLY):
            _opened.add(str(Path(os.fsdecode(arguments[0])).absolute()))


sys.addaudithook(_hook)  # for good; it looks away unless a test asks


@pytest.fixture
def watched() -> Iterator[None]:
    global _watching
    _watching = True
    yield
    _watching = False
    _renamed.clear()
    _opened.clear()


@pytest.mark.usefixtures("watched")
def test_files_of_a_full_run_folder(make_config: MakeConfig, tmp_path: Path) -> None:
    short = ("data.tasks=[one]", "training.epochs=1")
    config = make_config(*short, method={"name": "er", "memory_size": 20}, contrast=["ilora"])
    folder = run(config, tmp_path / "run", quiet=True).path
    add(folder, [write_task(tmp_path / "more", "four")], quiet=True)
    connect(folder, paths=("factors",), points=2, rows=4, similarity=True, quiet=True)  # it writes the report, too
    compare([folder], out=folder / "comparison")
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".json", ".jsonl", ".yaml", ".html", ".safetensors", ".svg", ".png"}
    assert folder / "report.html" in files
    for file in files:
        places = [str(file), *map(str, file.parents)]
        if file.name not in GROWS:
            assert set(places) & _renamed, f"{file.relative_to(folder)} was not renamed into its place"
            assert str(file) not in _opened, f"{file.relative_to(folder)} was written in place"
