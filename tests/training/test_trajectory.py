"""The trajectory: what is kept, the same bits after a resume, and no effect on the training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilora import InputError, resume, run
from ilora.methods import Method
from ilora.model import adapters
from ilora.training import trajectory
from tests.helpers import FEW_SCORES, MakeConfig, after_each_step, difference, run_killed, settings, trained

TWO = ("data.tasks=[one, two]", *FEW_SCORES)  # of 6 steps each
ALL = "keep.trajectory=all"


def content(run_folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run_folder / "trajectory").iterdir()}


def test_steps_that_divide_a_task() -> None:
    assert trajectory.due(96, 8) == {12, 24, 36, 48, 60, 72, 84}
    assert trajectory.due(3, 8) == {1, 2}
    assert trajectory.due(1, 8) == trajectory.due(96, 1) == trajectory.due(96, 0) == trajectory.due(0, 8) == set()


def test_both_adapters_are_kept_and_training_is_the_same_without(make_config: MakeConfig, tmp_path: Path) -> None:
    kept = trained(make_config(*TWO, "training.trajectory=3", ALL), tmp_path / "kept")
    plain = trained(make_config(*TWO, "training.trajectory=0"), tmp_path / "plain")
    assert difference(kept, plain) == 0.0
    assert not (tmp_path / "plain" / "trajectory").exists()
    found = list(trajectory.snapshots(tmp_path / "kept" / "trajectory"))
    assert [file.file.name for file in found] == [
        f"{name}.safetensors" for name in ("01-one-000002", "01-one-000004", "02-two-000008", "02-two-000010")
    ]
    assert [(one.phase, one.step, round(one.share, 3)) for one in found[:3]] == [
        ("01-one", 2, 0.333), ("01-one", 4, 0.667), ("02-two", 8, 0.333),
    ]  # fmt: skip
    assert set(found[0].adapters) == {"fast", "slow"}
    assert found[0].tensors("fast").keys() == found[0].tensors("slow").keys()


def test_a_snapshot_is_of_its_step(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, torch.Tensor] = {}

    def look(method: Method) -> None:
        parameters = adapters.parameters(method.engine.model, "slow")
        seen[method.position.step] = torch.cat([value.detach().flatten().clone() for value in parameters.values()])

    after_each_step(monkeypatch, look)
    trained(make_config(*TWO, "training.trajectory=3", ALL), tmp_path / "run")
    for snapshot in trajectory.snapshots(tmp_path / "run" / "trajectory"):
        slow = [value.flatten() for value in snapshot.tensors("slow").values()]
        assert sorted(torch.cat(slow).tolist()) == sorted(seen[snapshot.step].tolist())


@pytest.mark.parametrize("count", [2, 4, 10, 11])
def test_a_resume_leaves_the_same_files(
    count: int, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More parts than steps: every step but the last.
    config = make_config(*TWO, "training.trajectory=8", ALL)
    whole = run(config, tmp_path / "whole", quiet=True)
    run_killed(config, tmp_path / "killed", monkeypatch, at="step", count=count)
    later = tmp_path / "killed/trajectory/02-two-000099.safetensors"  # of a step that will be done again
    later.parent.mkdir(exist_ok=True)
    later.write_bytes(b"x")
    (later.parent / ".02-two-000099.safetensors-writing").write_bytes(b"x")
    written: list[str] = []
    original = trajectory.write_atomic
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "write_atomic", lambda path, data: (written.append(path.name), original(path, data)))
        resume(tmp_path / "killed", quiet=True)
    assert content(tmp_path / "killed") == content(whole.path)
    steps = [int(name[:-12].rpartition("-")[2]) for name in written]
    assert min(steps) > 2 * ((count - 1) // 2)  # what the checkpoint (every 2 steps) covers is not written again


@pytest.mark.parametrize("name", ["olora", "individual", "l2p", "slao"])
def test_only_what_steps_move_and_is_saved_as_it_is(name: str, make_config: MakeConfig, tmp_path: Path) -> None:
    result = run(make_config(*TWO, ALL, method=settings(name)), tmp_path / "run", quiet=True)
    found = list(trajectory.snapshots(result.path / "trajectory"))
    kept = {name for snapshot in found for name in snapshot.adapters}
    assert kept == ({"fast"} if name == "slao" else set())


def test_a_changed_trajectory_is_no_changed_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_killed(make_config(*TWO, "training.trajectory=0"), tmp_path / "run", monkeypatch, at="step", count=5)
    file = tmp_path / "run/config.yaml"
    text = file.read_text().replace("trajectory: 0", "trajectory: 4").replace("log_every: null", "log_every: 1")
    assert "log_every: 1" in text  # what is shown may change, too
    file.write_text(text)
    resume(tmp_path / "run", quiet=True)
    file.write_text(file.read_text().replace("epochs: 2", "epochs: 3"))
    with pytest.raises(InputError, match=r"training\.epochs was 2, is 3\. "):
        resume(tmp_path / "run", quiet=True)


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    (tmp_path / "01-one-000002.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"01-one-000002\.safetensors: not a snapshot"):
        list(trajectory.snapshots(tmp_path))
