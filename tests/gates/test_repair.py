"""What needs the model: probes, and adapters that pass without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file
from torch import Tensor

from ilora import IloraError, InputError, add, gate, history, promote
from ilora.gates.measuring import measure_probes
from ilora.gates.outputs import sentences
from ilora.gates.probes import ROWS, probe_set
from ilora.methods.base import Method
from ilora.model import adapters
from tests.gates.conftest import MakeRun
from tests.gates.test_judge import MANY, two_months
from tests.helpers import Killed, write_task

pytestmark = pytest.mark.xdist_group("gates")  # one worker makes the runs


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


# -- probes ------------------------------------------------------------------------------------------------------------


def test_probes_are_the_same_rows_each_time_and_their_choices_differ() -> None:
    groups = probe_set()
    assert groups == probe_set()
    assert set(groups) == {"arithmetic", "facts", "grammar", "instructions"}
    for probes in groups.values():
        assert len(probes) == ROWS == len({probe.prompt for probe in probes})
        assert len({len(probe.choices) for probe in probes}) == 1
        assert all(len(set(probe.choices)) == len(probe.choices) for probe in probes)
    for probe in groups["arithmetic"]:
        assert eval(probe.prompt.removesuffix("=")) == int(probe.choices[0])


def test_probes_are_measured_before_and_after_once(run: Path) -> None:
    measure_probes(run, None, quiet=True)
    files = [run / "predictions" / f"after-{phase}" / "probes.json" for phase in ("00-base", "02-two")]
    before, after = (json.loads(file.read_text()) for file in files)
    assert before["base"]["made_from"] == after["fast"]["made_from"]
    for found in (before["base"], after["fast"]):
        assert {group: len(rows) for group, rows in found["scores"].items()} == dict.fromkeys(probe_set(), ROWS)
        assert all(0 <= score <= 1 for rows in found["scores"].values() for score in rows.values())
        assert len(found["text"]) > 10
    assert before["base"]["text"] != after["fast"]["text"]
    stamps = [file.stat().st_mtime_ns for file in files]
    decision = gate(run, probes=True)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert {check["subject"] for check in decision["checks"] if check["rule"] == "probes"} == {
        *probe_set(),
        "all groups",
    }
    assert "predictions/after-00-base/probes.json" in decision["files"]


def test_a_method_without_an_adapter_has_no_probes(make_run: MakeRun) -> None:
    folder = make_run(two_months(lost=0), tasks=("one", "two"))
    (folder / "config.yaml").write_text("data: {path: .}\n")
    with pytest.raises(InputError, match="no adapter fast of phase 02-two"):
        gate(folder, probes=True)


def test_a_method_that_answers_with_several_adapters_has_no_probes(run: Path) -> None:
    """Such as `individual`, which leaves the newest one in the same folder."""
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"method": "individual", "adapter": None}))
    with pytest.raises(InputError, match="individual leaves no single adapter that answers"):
        gate(run, probes=True)


def test_a_release_knows_what_the_gate_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilora.commands.releases.write_report", lambda _run: None)
    decision = gate(run)
    found = promote(run, force=True).manifest.gate
    assert found is not None
    assert found["outcome"] == decision["outcome"] == "failed"
    assert any("one" in reason for reason in found["fail"])


# -- repair ------------------------------------------------------------------------------------------------------------


def test_no_new_adapter_is_judged_on_rows_that_were_deleted(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    results["tasks"][0]["forgotten"] = "2026-01-31"
    (run / "results.json").write_text(json.dumps(results))
    repair = gate(run, repair=True)["repair"]
    assert (repair["passed"], repair["tries"]) == (None, [])
    assert any("the rows of one were deleted" in note for note in repair["notes"])


def test_the_first_candidate_that_passes_is_kept(run: Path) -> None:
    failed = gate(run)
    lost = next(check["lost"] for check in failed["checks"] if check["rule"] == "best")
    assert lost > 20  # else there is nothing to repair
    # The whole of the last update is too much, and a part of it is not.
    (run / "gate.yaml").write_text(f"earlier_tasks: {{best: {lost - 0.01}, release: null}}\nhard: {lost - 0.01}\n")
    decision = gate(run, repair=True)
    repair = decision["repair"]
    assert decision["outcome"] == "failed"  # the phase is what it was
    *others, kept = repair["tries"]
    assert [one["candidate"] for one in (*others, kept)] == ["path", "shrunk"][: len(others) + 1]
    assert {one["outcome"] for one in others} <= {"failed"}
    assert (kept["outcome"], kept["candidate"]) == ("passed", repair["passed"])
    assert 0 < kept.get("t", kept.get("c")) < 1
    folder = run / repair["adapter"]
    assert folder == run / "gate" / "02-two" / "repaired"
    assert PeftConfig.from_pretrained(folder).r == 4
    now = load_file(run / "adapters" / "02-two" / "fast" / "adapter_model.safetensors")
    assert load_file(folder / "adapter_model.safetensors").keys() == now.keys()
    assert json.loads((folder / "repair.json").read_text())["candidate"] == kept["candidate"]
    rows = [json.loads(line) for line in (folder / "predictions" / "one.jsonl").read_text().splitlines()]
    score = next(check for check in kept["checks"] if check["rule"] == "best")["now"]
    assert 100 * sum(row["score"] for row in rows) / len(rows) == pytest.approx(score)
    told = "\n".join(sentences(decision))
    assert f"{kept['candidate']} passes" in told
    assert repair["adapter"] in told
    assert gate(run)["repair"] is None  # a gate that was not asked says nothing of it


def test_a_repaired_adapter_is_promoted_and_the_next_task_begins_with_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ilora.commands.releases.write_report", lambda _run: None)
    with pytest.raises(InputError, match="--repair` looks for one"):
        promote(run, repaired=True)
    lost = next(check["lost"] for check in gate(run)["checks"] if check["rule"] == "best")
    (run / "gate.yaml").write_text(f"earlier_tasks: {{best: {lost - 0.01}, release: null}}\nhard: {lost - 0.01}\n")
    repair = gate(run, repair=True)["repair"]
    kept = load_file(run / repair["adapter"] / "adapter_model.safetensors")
    trained = load_file(run / "adapters" / "02-two" / "fast" / "adapter_model.safetensors")
    with pytest.raises(IloraError, match="--repaired"):
        promote(run)
    for file in (run / "gate.yaml", run / repair["adapter"] / "adapter_model.safetensors"):
        before = file.read_bytes()
        file.write_bytes(b"hard: 1\n")  # other rules; no weights
        with pytest.raises(InputError, match="--repair` looks for one"):
            promote(run, repaired=True)
        file.write_bytes(before)
    with monkeypatch.context() as patch:
        patch.setattr("ilora.commands.releases.write_gate", killed)
        with pytest.raises(Killed):
            promote(run, repaired=True)
    release = promote(run, repaired=True)  # it goes on
    assert release.manifest.repaired is not None
    assert release.manifest.repaired["candidate"] == repair["passed"]
    assert release.manifest.gate is not None
    assert release.manifest.gate["outcome"] == "passed"
    assert release.adapter is not None
    for folder in (release.adapter, run / "adapters" / "02-two" / "fast"):
        assert_equal(load_file(folder / "adapter_model.safetensors"), kept)
    aside = run / "releases" / "withdrawn" / "1" / "adapters" / "02-two" / "fast"
    assert_equal(load_file(aside / "adapter_model.safetensors"), trained)
    score = next(check for check in repair["tries"][-1]["checks"] if check["rule"] == "best")["now"]
    assert 100 * release.scores()["variants"]["fast"]["R"][1][0] == pytest.approx(score)
    assert [event["event"] for event in history(run)["events"]] == ["repair", "promote"]
    assert history(run)["phases"][-1]["repaired"]["candidate"] == repair["passed"]
    assert gate(run)["outcome"] == "passed"  # by gate.yaml, on what is there now
    monkeypatch.setattr("ilora.training.session.optimizer_step", lambda method, *_: begun(method, kept))
    with pytest.raises(IloraError, match="stopped"):  # before the first step has moved a weight
        add(run, [str(write_task(tmp_path, "three", train=8, test=4))], quiet=True)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def killed(*_: Any) -> None:
    raise Killed


def begun(method: Method[Any], kept: dict[str, Tensor]) -> None:
    assert_equal({key: value.detach() for key, value in adapters.parameters(method.engine.model, "fast").items()}, kept)
    raise IloraError("stopped")


def test_where_nothing_passes_it_is_said_of_each_candidate(run: Path) -> None:
    (run / "gate.yaml").write_text("new_task: {least: 100}\nhard: 0\nearlier_tasks: {best: 0, release: null}\n")
    repair = gate(run, repair=True, train_hours=0)["repair"]
    assert (repair["passed"], repair["adapter"]) == (None, None)
    assert [one["candidate"] for one in repair["tries"]][:1] == ["path"]
    assert len(repair["tries"]) + len(repair["notes"]) == 4  # with longer training and ilora+, which are not tried
    assert not (run / "gate").exists()


def test_another_adapter_of_the_method_comes_first(make_run: MakeRun) -> None:
    folder = make_run(two_months(lost=60), tasks=("one", "two"))
    results = json.loads((folder / "results.json").read_text())
    results["variants"]["slow"] = results["variants"]["fast"]
    (folder / "results.json").write_text(json.dumps(results))
    phase = folder / "predictions" / "after-02-two"
    (phase / "slow").mkdir()
    shutil.copyfile(folder / "predictions" / "after-01-one" / "one.jsonl", phase / "slow" / "one.jsonl")
    shutil.copyfile(phase / "two.jsonl", phase / "slow" / "two.jsonl")
    for name in ("fast", "slow"):
        place = folder / "adapters" / "02-two" / name
        place.mkdir(parents=True)
        (place / "adapter_config.json").write_text("{}")
        (place / "adapter_model.safetensors").write_text(name)
    repair = gate(folder, repair=True)["repair"]
    assert (repair["passed"], repair["adapter"]) == ("slow", "gate/02-two/repaired")
    found = folder / repair["adapter"]
    assert (found / "adapter_model.safetensors").read_text() == "slow"
    assert len((found / "predictions" / "one.jsonl").read_text().splitlines()) == MANY
    assert json.loads((found / "repair.json").read_text())["candidate"] == "slow"
