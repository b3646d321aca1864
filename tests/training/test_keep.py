"""The rule `keep` in a run: what is left, and what it refuses later."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilora import InputError, add, run
from ilora.config import load_config
from ilora.training.checkpoint import load_latest
from tests.helpers import FEW_SCORES, MakeConfig, settings

TWO = ("data.tasks=[one, two]", "training.epochs=1", *FEW_SCORES)


def test_moments_that_no_step_needs_are_not_kept(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = run(make_config(*TWO, "method=sequential"), tmp_path / "run", quiet=True).path
    found, _ = load_latest(folder / "checkpoints")
    assert found is not None
    assert not found.tensors["optimizer"]
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"training\.reset_optimizer: .*keep\.moments=true"):
        add(folder, ["three"], ["training.reset_optimizer=false"], quiet=True)
    assert {file: file.read_bytes() for file in before} == before


def test_a_method_whose_tasks_need_their_own_adapters_keeps_them(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(*TWO, "keep.adapters=last", "keep.predictions=compressed", method=settings("individual"))
    folder = run(config, tmp_path / "run", quiet=True).path
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == ["01-one", "02-two"]
    assert not list((folder / "predictions").rglob("*.jsonl"))


def test_no_trajectory_is_written_that_would_not_be_kept(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = run(make_config(*TWO, "keep.trajectory=none", "keep.adapters=last"), tmp_path / "run", quiet=True).path
    assert not (folder / "trajectory").exists()
    assert [path.name for path in (folder / "adapters").iterdir()] == ["02-two"]


@pytest.mark.parametrize(
    "wrong", ["keep.checkpoints=0", "keep.checkpoints=3", "keep.trajectory=first", "keep.all=true"]
)
def test_a_rule_that_cannot_be(wrong: str) -> None:
    with pytest.raises(InputError, match=wrong.partition("=")[0].replace(".", r"\.")):
        load_config({"data": {"benchmark": "mini8"}}, [wrong])
