"""Checkpoints: complete or not there; a damaged one is recognised, said aloud, and the one before it is taken."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ilora import InputError, resume, run
from ilora.training import checkpoint
from ilora.training.checkpoint import Checkpoint, load_latest, newest, save, set_aside
from tests.helpers import MakeConfig, difference, run_killed, weights


def content(number: int) -> Checkpoint:
    return Checkpoint(
        values={"number": number, "text": "ä\u2028", "nested": {"list": [1, 0.1, None]}},
        tensors={
            "adapters": {"fast:a": torch.full((2, 3), float(number)), "slow:a": torch.arange(4).bfloat16()},
            "memory": {"tokens": torch.tensor([], dtype=torch.int32)},
            "method": {},
        },
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which three checkpoints were saved, the numbers 1, 2, 3."""
    for number in (1, 2, 3):
        save(tmp_path / "checkpoints", content(number))
    return tmp_path / "checkpoints"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_and_two_are_kept(folder: Path) -> None:
    assert names(folder) == ["000002", "000003"]
    assert newest(folder) == folder / "000003"
    found, passed = load_latest(folder)
    assert passed == {}
    assert found is not None
    assert found.values == content(3).values
    assert found.tensors.keys() == content(3).tensors.keys()
    for group, tensors in content(3).tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert found.tensors[group][key].dtype == tensor.dtype
            assert torch.equal(found.tensors[group][key], tensor)


def test_nothing_there(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "checkpoints") == (None, {})
    assert newest(tmp_path / "checkpoints") is None


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


Damage = Callable[[Path], None]
DAMAGES: list[tuple[Damage, str]] = [
    (cut_off, "adapters.safetensors"),
    (altered, "adapters.safetensors"),
    (emptied, "memory.safetensors"),
    (Path.unlink, "adapters.safetensors"),
    (cut_off, "state.json"),
    (zeroed, "state.json"),
    (emptied, "state.json"),
    (Path.unlink, "state.json"),
]


@pytest.mark.parametrize(("damage", "name"), DAMAGES, ids=lambda item: item if isinstance(item, str) else item.__name__)
def test_damaged_one_is_passed_over_and_said(damage: Damage, name: str, folder: Path) -> None:
    damage(folder / "000003" / name)
    found, passed = load_latest(folder)
    assert found is not None
    assert found.values["number"] == 2
    assert list(passed) == [folder / "000003"]
    assert passed[folder / "000003"].startswith(f"checkpoint {folder / '000003'} is damaged (")
    if name != "state.json":
        assert name in passed[folder / "000003"]


def test_both_damaged(folder: Path) -> None:
    for number in ("000002", "000003"):
        cut_off(folder / number / "state.json")
    found, passed = load_latest(folder)
    assert found is None
    assert list(passed) == [folder / "000003", folder / "000002"]


def test_damaged_one_set_aside_does_not_push_out_a_sound_one(folder: Path) -> None:
    altered(folder / "000003" / "adapters.safetensors")
    set_aside(folder / "000003")
    save(folder, content(4))
    assert names(folder) == ["000002", "000003", "damaged-000003"]
    altered(folder / "000003" / "adapters.safetensors")
    set_aside(folder / "000003")  # once more under the same name
    found, passed = load_latest(folder)
    assert found is not None
    assert (found.values["number"], passed) == (2, {})


def test_leftover_of_a_killed_writer_is_no_checkpoint(folder: Path) -> None:
    shutil.copytree(folder / "000003", folder / ".000004-writing")
    cut_off(folder / ".000004-writing" / "state.json")
    found, passed = load_latest(folder)
    assert found is not None
    assert (found.values["number"], passed) == (3, {})
    save(folder, content(4))
    assert names(folder) == ["000003", "000004"]


def test_other_format_is_refused_not_passed_over(folder: Path) -> None:
    state = json.loads((folder / "000003/state.json").read_text())
    (folder / "000003/state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(InputError, match="format 99, this version reads 1"):
        load_latest(folder)


def test_killed_while_writing_leaves_the_one_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(path: Path, data: bytes) -> None:
        path.write_bytes(data[:3])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_flushed", killed)
        with pytest.raises(Killed):
            save(folder, content(4))
    found, passed = load_latest(folder)
    assert found is not None
    assert (found.values["number"], passed) == (3, {})


@pytest.mark.parametrize("damaged", [1, 2], ids=["newest", "both"])
def test_resume_after_damage_warns_and_gives_the_same_bits(
    damaged: int,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config("data.tasks=[one, two]")
    whole = run(config, tmp_path / "whole", quiet=True)
    killed = tmp_path / "killed"
    run_killed(config, killed, monkeypatch, at="step", count=11)
    for path in sorted((killed / "checkpoints").iterdir())[-damaged:]:
        cut_off(path / "adapters-fast.safetensors")
    resumed = resume(killed)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("is damaged (adapters-fast.safetensors is cut off or altered") == damaged
    assert ("going on from the one before" in said) == (damaged == 1)
    assert ("there is none before it, beginning again" in said) == (damaged == 2)
    assert difference(weights(whole.path), weights(killed)) == 0.0
    assert resumed.results["variants"] == whole.results["variants"]
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_an_adapter_that_no_longer_changes_is_written_twice_alone(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file in a later checkpoint is another name of one that is dropped; no two that stay share a file."""
    written: Counter[str] = Counter()
    write = checkpoint.write_flushed

    def counting(path: Path, data: bytes) -> None:
        written[path.name] += 1
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_flushed", counting)
    run(
        make_config("training.checkpoint_every=1", "keep.checkpoints=2", method="individual"),
        tmp_path / "run",
        quiet=True,
    )
    assert written["adapters-task-0001.safetensors"] == written["adapters-task-0002.safetensors"] == 2
    assert written["adapters-fast.safetensors"] > 10
    first, second = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert not any(file.samefile(second / file.name) for file in first.iterdir())


def test_a_file_system_without_links_has_whole_checkpoints(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    run(make_config("training.epochs=1", method="individual"), tmp_path / "run", quiet=True)
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        assert len(list(folder.glob("adapters-*.safetensors"))) >= 4
    assert load_latest(tmp_path / "run" / "checkpoints")[1] == {}
