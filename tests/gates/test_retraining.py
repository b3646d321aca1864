"""`gate --repair` where nothing passes without training: the phase is trained again in other ways, beside the run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file

from ilora import gate, promote, read_gate
from ilora.connectivity.sources import read_run
from ilora.gates.decision import judge_of
from ilora.gates.outputs import as_markdown, sentences
from ilora.gates.retraining import is_trained, retrain
from ilora.gates.rules import read_rules
from ilora.gates.trials import Trial, affordable, trials
from ilora.progress import Display
from ilora.releases import change
from ilora.training import session
from ilora.training.interrupt import StopRequest
from tests.command import Command, tree
from tests.helpers import Killed

pytestmark = pytest.mark.xdist_group("gates")  # one worker makes the runs

NOTHING_PASSES = "earlier_tasks: {best: 0, release: 0}\nhard: 0\nnew_task: {least: 100}\n"
TRAINED = {"more replay of one": "replay", "more memory": "memory", "longer training": "longer", "ilora+": "ilora-plus"}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def run(replayed_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, with rules that no adapter keeps."""
    folder = Path(shutil.copytree(replayed_run, tmp_path / "run", symlinks=True))
    (folder / "gate.yaml").write_text(NOTHING_PASSES)
    return folder


@pytest.fixture(scope="session")
def tried_run(replayed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after a repair that tried everything. Copy it to write."""
    folder = Path(shutil.copytree(replayed_run, tmp_path_factory.mktemp("tried") / "run", symlinks=True))
    (folder / "gate.yaml").write_text(NOTHING_PASSES)
    gate(folder, repair=True)
    return folder


def planned(run: Path, *, notes: list[str] | None = None, replaces: str = "", **data: Any) -> list[Trial]:
    """The trials of the last phase. replaces: what its task replaces. data: settings of the section that are other."""
    rules, source = read_rules(run)
    config, tasks, _ = read_run(run)
    tasks[-1] = replace(tasks[-1], replaces=replaces)
    config = config.model_copy(update={"data": config.data.model_copy(update=data)})
    return trials(judge_of(run, rules, source, None), config, tasks, [] if notes is None else notes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / WEIGHTS))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def no_step(*_: Any) -> None:
    raise AssertionError("trained again")


def test_all_is_tried_and_the_run_stays_as_it_is(replayed_run: Path, tried_run: Path) -> None:
    before, after = tree(replayed_run), tree(tried_run)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert {name.split("/")[0] for name in changed} <= {"gate", "gate.json", "gate.yaml", ".lock"}
    decision = read_gate(tried_run, "02-two")
    assert decision is not None
    repair, told = decision["repair"], as_markdown(decision)
    assert repair["passed"] is None
    tried = {one["candidate"]: one for one in repair["tries"]}
    assert list(tried)[:2] == ["path", "shrunk"]
    assert set(tried) - {"path", "shrunk"} == set(TRAINED)
    found = [weights(replayed_run / "adapters/02-two/fast")]
    for name, key in TRAINED.items():
        one, place = tried[name], tried_run / "gate/02-two/trained" / key
        assert tried_run / one["trained"] == place
        assert {path.name for path in place.iterdir()} == {"adapter", "done.json", "trial.json"}
        assert PeftConfig.from_pretrained(place / "adapter").r == 4
        assert not any(equal(weights(place / "adapter"), other) for other in found)
        found.append(weights(place / "adapter"))
        lost = one["chosen_on"]["one"]
        holds = lost["before"] - lost["now"] <= lost["allowed"]
        assert (set(one["scores"]) == {"one", "two"}) == holds == bool(one["checks"])
        assert f"Repair, {name}: failed" in told.replace("\\", "")
    assert tried["more memory"]["settings"] == {"method.memory_size": 8}
    assert not {"more memory", "the method ilora+"} & {entry["what"] for entry in decision["advice"]}


def test_one_that_passes_is_kept_and_promoted(tried_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilora.commands.releases.write_report", lambda _run: None)
    monkeypatch.setattr(session, "optimizer_step", no_step)
    run = Path(shutil.copytree(tried_run, tmp_path / "run", symlinks=True))
    kept = {one["candidate"]: one["scores"] for one in (read_gate(run) or {})["repair"]["tries"]}["ilora+"]
    (run / "gate.yaml").write_text(NOTHING_PASSES.replace("least: 100", f"least: {kept['two']}"))
    decision = gate(run, repair=True)  # what is trained already is only judged
    assert decision["repair"]["passed"] == "ilora+"
    assert f"ilora+: passed (one {kept['one']:.1f}, two {kept['two']:.1f})" in "\n".join(sentences(decision))
    release = promote(run, repaired=True)
    assert release.manifest.repaired == {
        "candidate": "ilora+",
        "settings": {"method": {"name": "ilora+", "memory_size": 4}},
        "phase": "02-two",
    }
    assert release.adapter is not None
    trained = weights(tried_run / "gate/02-two/trained/ilora-plus/adapter")
    assert equal(weights(release.adapter), trained)
    assert equal(weights(run / "adapters/02-two/fast"), trained)


def test_a_trial_that_was_killed_goes_on_to_the_same_bits(
    run: Path, tried_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, place, taken = planned(run)[0], run / "gate/02-two/trained/replay", list[int]()
    assert trial.key == "replay"
    step = session.optimizer_step

    def counted(method: Any, *rest: Any) -> Any:
        if len(taken) == 5:
            raise Killed
        taken.append(method.position.task_step)
        return step(method, *rest)

    monkeypatch.setattr(session, "optimizer_step", counted)
    with pytest.raises(Killed):
        retrain(trial, place, display=Display(quiet=True), stop=StopRequest(enabled=False))
    assert not (place / "adapter").exists()
    monkeypatch.setattr(
        session, "optimizer_step", lambda *given: (taken.append(given[0].position.task_step), step(*given))[1]
    )
    retrain(trial, place, display=Display(quiet=True), stop=StopRequest(enabled=False))
    assert taken == [1, 2, 3, 4, 5, *range(5, 37)]  # there was a checkpoint after step 4
    assert equal(weights(place / "adapter"), weights(tried_run / "gate/02-two/trained/replay/adapter"))


def test_without_a_release_the_run_is_trained_again_from_its_first_task(run: Path, tried_run: Path) -> None:
    with_release = planned(run)[0]
    shutil.rmtree(run / "releases")
    (run / "current").unlink()
    trial = planned(run)[0]
    assert (with_release.key, trial.key, trial.start) == ("replay", "replay", None)
    assert trial.seconds is not None
    assert with_release.seconds is not None
    assert trial.seconds > with_release.seconds
    place = run / "gate/02-two/trained/replay"
    retrain(trial, place, display=Display(quiet=True), stop=StopRequest(enabled=False))
    assert equal(weights(place / "adapter"), weights(tried_run / "gate/02-two/trained/replay/adapter"))


def test_a_trial_that_lost_its_adapter_begins_anew(tried_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tried_run, tmp_path / "run", symlinks=True))
    trial, place = planned(run)[0], run / "gate/02-two/trained/replay"
    (place / "checkpoints").mkdir()  # killed when all was written
    retrain(trial, place, display=Display(quiet=True), stop=StopRequest(enabled=False))
    assert not (place / "checkpoints").exists()
    shutil.rmtree(place / "adapter")
    assert not is_trained(trial, place)
    retrain(trial, place, display=Display(quiet=True), stop=StopRequest(enabled=False))
    assert equal(weights(place / "adapter"), weights(tried_run / "gate/02-two/trained/replay/adapter"))


def test_the_memory_is_filled_with_what_the_run_remembers(run: Path, data: Path) -> None:
    found = {trial.name: trial for trial in planned(run, start_rows=data / "three/train.json")}
    for name in ("more memory", "ilora+"):
        fill = found[name].fill
        assert fill is not None
        assert [task.name for task in fill.tasks] == ["before", "one"]
    plus = {trial.name: trial for trial in planned(run, replaces="one")}["ilora+"]
    assert plus.fill is not None
    assert ([task.name for task in plus.fill.tasks], plus.tasks[0].replaces) == ([], "")
    place = run / "gate/02-two/trained/ilora-plus"
    retrain(plus, place, display=Display(quiet=True), stop=StopRequest(enabled=False))
    assert is_trained(plus, place)


def test_a_phase_that_was_repaired_and_not_released_is_not_trained_again(run: Path) -> None:
    shutil.rmtree(run / "releases")
    (run / "current").unlink()
    (run / "adapters/01-one/fast/repair.json").write_text("{}")
    notes: list[str] = []
    assert [trial.name for trial in planned(run, notes=notes)] == ["ilora+"]
    assert all("01-one" in note for note in notes)
    assert len(notes) == 3


def test_a_phase_that_is_a_release_is_not_trained_again(run: Path) -> None:
    change.promote(run, report=lambda _run: None)
    repair = gate(run, repair=True)["repair"]
    assert [one["candidate"] for one in repair["tries"]] == ["path", "shrunk"]
    assert any("release 2 already" in note for note in repair["notes"])


def test_what_training_may_take_is_limited(run: Path, ilora: Command) -> None:
    (run / "gate/02-two/repaired").mkdir(parents=True)  # of an earlier repair, by other rules
    found = [replace(trial, seconds=seconds) for trial, seconds in zip(planned(run), (60.0, 90.0, None), strict=False)]
    notes: list[str] = []
    assert affordable(found, 2.4 / 60, notes) == found[:1]
    assert [note.partition(":")[0] for note in notes] == [trial.name for trial in found[1:]]
    assert affordable(found, None, notes) == found
    done = ilora("gate", run, "--repair", "--train-hours", "0")
    assert done.code == 1
    assert all(f"{name}: not tried" in done.out for name in TRAINED)
    assert not [*(run / "gate/02-two").iterdir()]
    done = ilora("gate", run, "--train-hours", "1")
    assert (done.code, "--train-hours" in done.err) == (2, True)
