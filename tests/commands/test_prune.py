"""`ilora prune`: what goes, what stays possible, and what a kill leaves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilora import InputError, add, promote, resume, rollback, run
from ilora.commands.gate import gate
from ilora.commands.prune import plan, prune
from ilora.comparison.folders import read_folder, run_folders
from ilora.connectivity import sources
from ilora.files import locked
from ilora.keeping import EVERYTHING
from ilora.releases.store import read_release
from ilora.training import keep
from ilora.training.checkpoint import load_latest
from tests.helpers import SMALL, Killed, MakeConfig, difference, weights

pytestmark = [pytest.mark.usefixtures("sketched"), pytest.mark.xdist_group("prune")]  # one worker makes the run


@pytest.fixture(scope="module")
def everything(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tasks that has kept all, with sequential fine-tuning beside it."""
    config = make_config("data.tasks=[one, two]", *SMALL, contrast=["sequential"], keep=EVERYTHING.model_dump())
    return run(config, tmp_path_factory.mktemp("everything") / "run", quiet=True).path


@pytest.fixture
def whole(everything: Path, tmp_path: Path) -> Path:
    """A copy of it, whose configuration is one of a version without the rule."""
    folder = Path(shutil.copytree(everything, tmp_path / "run"))
    for file in (folder / "config.yaml", folder / "contrast/sequential/config.yaml"):
        values = yaml.safe_load(file.read_text())
        del values["keep"]
        file.write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def listed(folder: Path) -> set[str]:
    """The run's files but for checkpoints, whose numbers differ, and locks."""
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return {name for name in found if "checkpoints/" not in name and ".lock" not in name}


def test_what_goes_and_that_adding_gives_the_same_bits(whole: Path, everything: Path, tmp_path: Path) -> None:
    before = listed(whole)
    kinds = {kind for part in plan(whole) for kind, _ in part.kinds}
    assert kinds == {"checkpoints", "moments", "trajectory"}
    assert prune(whole) > 0
    gone = before - listed(whole)
    assert gone
    assert all("trajectory/01-one-" in name for name in gone)
    assert any("trajectory/02-two-" in name for name in listed(whole))
    for folder in (whole, whole / "contrast/sequential"):
        found, damaged = load_latest(folder / "checkpoints")
        assert found is not None
        assert not damaged
        assert not found.tensors["optimizer"]
        assert len(list((folder / "checkpoints").iterdir())) == 1
    assert not any(list(part.kinds) for part in plan(whole))
    assert prune(whole) == 0

    untouched = Path(shutil.copytree(everything, tmp_path / "untouched"))
    for folder in (whole, untouched):
        assert resume(folder, quiet=True).results["complete"]
        add(folder, ["three"], quiet=True)
    assert difference(weights(whole), weights(untouched)) == 0.0
    assert difference(weights(whole / "contrast/sequential"), weights(untouched / "contrast/sequential")) == 0.0
    assert any("trajectory/01-one-" in name for name in listed(untouched))
    assert len(list((untouched / "checkpoints").iterdir())) == 2


def test_a_run_of_an_older_version_keeps_all_that_it_has(whole: Path) -> None:
    before = listed(whole)
    resume(whole, quiet=True)
    assert listed(whole) == before
    assert len(list((whole / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("at", range(1, 10))
def test_a_kill_leaves_a_run_that_is_whole(at: int, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ["adapters=last", "predictions=compressed", "trajectory=none"]
    calls = 0

    def killed(original: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return original(*args, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed(Path.rename))
        patch.setattr(Path, "unlink", killed(Path.unlink))
        patch.setattr(keep.shutil, "rmtree", killed(shutil.rmtree))
        with pytest.raises(Killed):
            prune(whole, changes)
    found, damaged = load_latest(whole / "checkpoints")
    assert found is not None
    assert not damaged
    assert isinstance(read_folder(whole, whole), object)
    results = [read_folder(folder, whole) for folder in run_folders(whole)]
    assert not any(isinstance(one, str) for one in results)  # a text says why a run cannot be compared
    prune(whole, changes)
    assert not any(list(part.kinds) for part in plan(whole, changes))
    assert not list(whole.rglob(".prune-*"))


def test_less_than_all_adapters(whole: Path) -> None:
    prune(whole, ["adapters=answering"])
    assert sorted(path.name for path in (whole / "adapters/01-one").iterdir()) == ["slow"]
    source = sources.from_run(whole, pairs="all")
    assert [pair.name for pair in source.pairs] == ["01-one-slow--02-two-slow", "02-two-fast--02-two-slow"]
    assert source.corners is None
    prune(whole, ["adapters=last"])
    source = sources.from_run(whole, pairs="all")
    (pair,) = source.pairs
    assert [task.name for task in pair.tasks] == ["one", "two"]
    assert pair.when == 2
    with pytest.raises(InputError, match="not kept all adapters of 01-one"):
        sources.pair_of(source, "adjacent")


@pytest.mark.usefixtures("report")
def test_compressed_predictions_are_read_by_all(whole: Path) -> None:
    judged, plain = gate(whole), read_folder(whole, whole)  # the report shows the decision
    before = resume(whole, quiet=True)
    page = before.report.read_text()
    prune(whole, ["predictions=compressed"])
    assert gate(whole)["checks"] == judged["checks"]
    assert not list(whole.rglob("predictions/**/*.jsonl"))
    after = resume(whole, quiet=True)
    assert after.results["variants"] == before.results["variants"]
    assert after.report.read_text().count("<details") == page.count("<details")
    small = read_folder(whole, whole)
    assert not isinstance(plain, str)
    assert not isinstance(small, str)
    assert small.items == plain.items
    file = next((whole / "predictions").rglob("two.jsonl.gz"))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match=r"two\.jsonl\.gz: cannot be decompressed"):
        resume(whole, quiet=True)


def test_releases_stay(whole: Path) -> None:
    promote(whole)
    before = {file: file.read_bytes() for file in (whole / "releases").rglob("*") if file.is_file()}
    prune(whole, ["trajectory=none", "adapters=last", "predictions=compressed"])
    assert {file: file.read_bytes() for file in before} == before
    assert read_release(whole).number == 1


def test_a_rollback_after_pruning_can_be_added_to(whole: Path) -> None:
    promote(whole)
    add(whole, ["three"], quiet=True)
    promote(whole)
    prune(whole, ["trajectory=none", "adapters=last", "checkpoints=1", "moments=false"])
    rollback(whole)
    assert [task["name"] for task in resume(whole, quiet=True).results["tasks"]] == ["one", "two"]
    assert add(whole, ["three"], quiet=True).results["complete"]


def test_what_is_in_use_or_damaged_is_left(whole: Path) -> None:
    with locked(whole, what="run"), pytest.raises(InputError, match="another process is working on this run"):
        prune(whole)
    newest = max((whole / "checkpoints").iterdir())
    (newest / "memory.safetensors").write_bytes(b"x")
    first, second = plan(whole)
    assert newest.name in first.trouble
    assert [kind for kind, _ in first.kinds] == ["trajectory"]
    assert not second.trouble
    prune(whole)
    assert len(list((whole / "checkpoints").iterdir())) == 2


def test_a_task_that_is_being_added_is_left_alone(whole: Path) -> None:
    results = (whole / "results.json").read_bytes()

    class Stopped(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ilora.training.session.steps_taken", stop)
        with pytest.raises(Stopped):
            add(whole, ["three"], quiet=True)
    assert (whole / "results.json").read_bytes() == results
    first, _ = plan(whole, ["trajectory=last", "checkpoints=1", "moments=false"])
    assert [kind for kind, _ in first.kinds] == ["trajectory"]


def test_it_never_frees_less_than_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files that are compressed are larger."""
    sizes = iter([1000, 1732])
    monkeypatch.setattr("ilora.commands.prune.disk_bytes", lambda _paths: next(sizes))
    assert prune(whole) == 0
