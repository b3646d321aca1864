"""A repaired adapter in the place of a phase's own: what it replaces, going back, and being killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ilora import InputError, add
from ilora.releases import change
from ilora.releases.journal import events
from ilora.releases.opening import open_run
from ilora.releases.store import read_release
from ilora.results.scores import read_records
from ilora.training.checkpoint import load_latest
from tests.helpers import write_task
from tests.releases.conftest import no_report
from tests.releases.test_kills import killed_at, outside

pytestmark = pytest.mark.xdist_group("releases")

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def unpromoted(two_releases: Path) -> Path:
    """The run of three tasks whose third one is no release."""
    shutil.rmtree(two_releases / "releases/2")
    (two_releases / "current").unlink()
    (two_releases / "current").symlink_to("releases/1")
    lines = (two_releases / "releases/history.jsonl").read_text().splitlines(keepends=True)
    (two_releases / "releases/history.jsonl").write_text(lines[0])
    return two_releases


@pytest.fixture
def repaired(unpromoted: Path) -> Path:
    """As `gate --repair` writes one: half of the phase's adapter, whose answers are all right."""
    folder = Path(shutil.copytree(unpromoted / "adapters/03-three/slow", unpromoted / "gate/03-three/repaired"))
    halves = {key: value * (0.5 if "lora_B" in key else 1) for key, value in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    save_file(halves, folder / WEIGHTS)
    (folder / "repair.json").write_text(json.dumps({"candidate": "shrunk", "c": 0.5, "phase": "03-three"}))
    (folder / "predictions").mkdir()
    for task in ("one", "two", "three"):
        records = read_records(unpromoted / f"predictions/after-03-three/{task}.jsonl")
        lines = [json.dumps(record | {"score": 1.0}) + "\n" for record in records]
        (folder / f"predictions/{task}.jsonl").write_text("".join(lines))
    return folder


def test_the_run_becomes_what_it_would_be_if_the_phase_had_ended_there(
    unpromoted: Path, repaired: Path, tmp_path: Path
) -> None:
    halves = load_file(repaired / WEIGHTS)
    before, _ = load_latest(unpromoted / "checkpoints")
    change.adopt(unpromoted, repaired, report=no_report)
    now, _ = load_latest(unpromoted / "checkpoints")
    assert before is not None
    assert now is not None
    assert now.values == before.values
    tensors = {key: value for group in now.tensors.values() for key, value in group.items()}
    for variant in ("fast", "slow"):
        assert all(torch.equal(tensors[f"{variant}:{key}"], value) for key, value in halves.items())
    for group in ("memory", "method"):
        assert now.tensors[group].keys() == before.tensors[group].keys()
        assert all(torch.equal(value, before.tensors[group][key]) for key, value in now.tensors[group].items())
    results = json.loads((unpromoted / "results.json").read_text())
    assert [results["variants"][name]["R"][2] for name in ("slow", "fast")] == [[1.0] * 3] * 2
    release = change.promote(unpromoted, report=no_report)
    assert release.manifest.repaired == {"candidate": "shrunk", "c": 0.5, "phase": "03-three"}
    assert "repaired: candidate shrunk, c 0.5" in (release.folder / "card.md").read_text()
    result = add(unpromoted, [str(write_task(tmp_path / "tasks", "four", train=8, test=4))], quiet=True)
    assert result.results["variants"]["slow"]["R"][2][:3] == [1.0] * 3
    change.rollback(unpromoted, to=2, report=no_report)
    back, _ = load_latest(unpromoted / "checkpoints")
    assert back is not None
    restored = {key: value for group in back.tensors.values() for key, value in group.items()}
    assert all(torch.equal(restored[f"fast:{key}"], value) for key, value in halves.items())
    change.rollback(unpromoted, to=1, report=no_report)
    assert read_release(unpromoted).number == 1
    assert not (unpromoted / "adapters/03-three").exists()


def test_a_method_that_saves_a_sum_is_refused_by_name(unpromoted: Path, repaired: Path) -> None:
    file = unpromoted / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"method": "olora"}))
    with pytest.raises(InputError, match="olora saves the sum of an adapter for each task"):
        change.adopt(unpromoted, repaired, report=no_report)


def test_what_does_not_fit_changes_nothing(unpromoted: Path, repaired: Path) -> None:
    before = outside(unpromoted)
    weights = load_file(repaired / WEIGHTS)
    (repaired / WEIGHTS).unlink()
    save_file({key: value[:1] for key, value in weights.items()}, repaired / WEIGHTS)
    with pytest.raises(InputError, match="not of the form"):
        change.adopt(unpromoted, repaired, report=no_report)
    changed = {name for name in outside(unpromoted).items() - before.items() if "repaired" not in name[0]}
    assert not changed
    change.promote(unpromoted, report=no_report)
    with pytest.raises(InputError, match="is release 2 already"):
        change.adopt(unpromoted, repaired, report=no_report)


def test_killed_anywhere_it_is_done_or_not_begun(
    unpromoted: Path, repaired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(unpromoted, tmp_path / name, symlinks=True))

    def adopt(run: Path) -> None:
        change.adopt(run, run / "gate/03-three/repaired", report=no_report)

    done = copy("done")
    adopt(done)
    ends = [outside(unpromoted), outside(done)]
    seen = set[int]()
    for count in range(1, 1000, 25):
        run = copy("killed")
        if not killed_at(count, lambda run=run: adopt(run), monkeypatch):
            break
        open_run(run, no_report)
        found = outside(run)
        assert found in ends
        seen.add(ends.index(found))
        assert len(events(run)) == 1 + ends.index(found)
        assert read_release(run).number == 1
        shutil.rmtree(run)
    assert seen == {0, 1}
    assert repaired.is_dir()
