"""A run folder of an earlier version can be resumed, added to, connected and compared (see old_run/make.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ilora import add, compare, connect, resume
from tests.helpers import difference, sealed, weights

pytestmark = pytest.mark.core

STORED = Path(__file__).parent / "old_run"
PLACE = "/ilora-old-run"  # where model and data lay when the runs were made


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy in which the model's place is the present one. Data may have moved, the model may not."""
    folder = tmp_path / "old"
    shutil.copytree(STORED, folder)
    for file in folder.glob("**/config.yaml"):
        file.write_text(file.read_text(encoding="utf-8").replace(PLACE, str(folder)), encoding="utf-8")
    for file in folder.glob("**/checkpoints/*/state.json"):
        state = json.loads(file.read_text(encoding="utf-8").replace(PLACE, str(folder)))
        file.write_text(sealed(state), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("report")
def test_an_interrupted_run_goes_on_to_the_same_end(old: Path) -> None:
    before = {file: file.read_bytes() for file in old.glob("interrupted/predictions/after-01-one/*.jsonl")}
    assert before
    torch.set_num_threads(2)
    made = resume(old / "interrupted", quiet=True)
    assert torch.get_num_threads() == 1  # as the run began
    assert made.results["complete"]
    assert [other["method"] for other in made.contrast] == ["sequential"]
    for folder in (".", "contrast/sequential"):
        # The last bits are another processor's or another library version's, and there were eight steps.
        assert difference(weights(old / "finished" / folder), weights(made.path / folder)) < 1e-3
    assert all(file.read_bytes() == content for file, content in before.items())
    assert made.report.is_file()


def test_a_finished_run_is_shown_added_to_connected_and_compared(old: Path, tmp_path: Path) -> None:
    run = old / "finished"
    stored = json.loads((run / "results.json").read_text(encoding="utf-8"))
    shown = resume(run, quiet=True)
    for name, variant in stored["variants"].items():
        assert shown.results["variants"][name] | variant == shown.results["variants"][name]
    assert shown.table(width=100).row_count
    longer = add(run, [str(old / "tasks" / "three")], quiet=True)
    assert [task["name"] for task in longer.results["tasks"]] == ["one", "two", "three"]
    assert longer.results["variants"]["slow"]["R"][:2] != []
    for row, earlier in zip(longer.results["variants"]["slow"]["R"], stored["variants"]["slow"]["R"], strict=False):
        assert row[:2] == earlier
    results = connect(run, paths=("factors",), points=3, quiet=True)
    assert all(result["complete"] for result in results)
    comparison, folder = compare([run, run / "contrast" / "sequential"], out=tmp_path / "comparison")
    assert comparison
    assert (folder / "index.html").is_file()


def test_the_base_model_is_a_model(old: Path) -> None:
    """Plain safetensors and JSON: nothing in the stored folder is pickled."""
    assert not [file for file in old.rglob("*") if file.suffix in (".bin", ".pt", ".pkl")]
    assert sum(file.stat().st_size for file in old.rglob("*") if file.is_file()) < 1_000_000
