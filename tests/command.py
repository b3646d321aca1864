"""The command within the test's own process, and the check that bad input is refused with nothing changed on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilora.cli import main
from tests.helpers import MakeConfig, write_task
from tests.processes import Done, write_config

Command = Callable[..., Done]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the content of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`ilora ...` in this process."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["ilora", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return call


@pytest.fixture
def ilora(typed: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """`ilora ...` in this process, in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return typed


@pytest.fixture
def refused(ilora: Command, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused as bad input, with nothing changed on disk; returns the message."""

    def call(*arguments: object, says: list[str]) -> str:
        before = tree(tmp_path)
        done = ilora(*arguments)
        assert done.code == 2, done.err
        assert done.err.startswith("ilora: ")
        assert done.err.count("ilora: ") == 1
        assert "Traceback" not in done.err
        for part in says:
            assert part in done.err
        assert all("loading" in line or "prompts" in line for line in done.out.splitlines())
        assert tree(tmp_path) == before
        return done.err

    return call


Refused = Callable[..., str]


@pytest.fixture
def config(make_config: MakeConfig, tmp_path: Path) -> Path:
    """A small configuration file: two tasks of the test's own, one epoch."""
    write_task(tmp_path / "tasks", "one")
    write_task(tmp_path / "tasks", "two")
    values = make_config("training.epochs=1", "data.tasks=[one, two]", f"data.path={tmp_path / 'tasks'}")
    return write_config(tmp_path / "config.yaml", values)
