"""The three months of docs/practice.md: every command is run as it stands there, with a tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ilora.releases.store import current, numbers
from tests.command import Command

ROOT = Path(__file__).parents[1]
SMALL = (
    "data.limit.train=16", "data.limit.eval=4", "data.limit.test=6", "evaluation.zero_shot=false",
    "evaluation.max_new_tokens=4", "evaluation.unseen=none", "model.dtype=float32",
)  # fmt: skip


def test_three_months(ilora: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "practice.md").read_text(encoding="utf-8")
    block = re.search(r"## Three months\n.*?```\n(.*?)```", page, flags=re.DOTALL)
    assert block is not None
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert len(lines) == 13
    for program, command, *arguments in lines:
        assert program == "ilora"
        more = [f"model.name={tiny_model}", *SMALL] if command == "run" else []
        done = ilora(command, *arguments, *more)
        assert done.code == 0, (command, arguments, done.err)
    run = tmp_path / "runs" / "months"
    assert numbers(run) == [1, 2, 3]
    assert current(run) == 2
    assert (tmp_path / "runs" / "handover" / "README.md").is_file()
    assert list((run / "diffs").glob("*.html"))
