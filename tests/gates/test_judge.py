"""The decision on run folders whose scores are given by hand."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilora import InputError, gate, read_gate
from ilora.gates.evidence import Ability
from ilora.gates.judge import Judge
from ilora.gates.rules import Rules
from ilora.releases.manifest import write_manifest
from ilora.releases.store import point_to
from ilora.training.keep import compress
from tests.gates.conftest import MakeRun, right, write_rows

MANY = 600


def checks(decision: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """By rule and subject."""
    return {(check["rule"], check["subject"]): check for check in decision["checks"]}


def two_months(lost: int, rows: int = MANY) -> dict[str, dict[str, list[float]]]:
    """Task one loses so many of its rows in phase 2."""
    top = rows * 3 // 4
    return {
        "00-base": {"one": right(0, rows), "two": right(rows // 10, rows)},
        "01-one": {"one": right(top, rows)},
        "02-two": {"one": right(top - lost, rows), "two": right(top, rows)},
    }


def test_a_clear_loss_fails(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=60), tasks=("one", "two"))
    decision = gate(run)
    found = checks(decision)["best", "one"]
    assert (decision["outcome"], found["verdict"], found["against"]) == ("failed", "fail", "01-one")
    assert (found["before"], found["now"], found["lost"]) == pytest.approx((75, 65, 10))
    assert (found["rows"], found["worse"], found["better"]) == (MANY, 60, 0)
    assert 0 < found["low"] < 10 <= found["high"]
    assert checks(decision)["gain", "two"]["verdict"] == "pass"


def test_a_loss_within_the_limit_passes_even_if_it_is_certain(make_run: MakeRun) -> None:
    decision = gate(make_run(two_months(lost=18), tasks=("one", "two")))
    found = checks(decision)["best", "one"]
    assert (decision["outcome"], found["verdict"]) == ("passed", "pass")
    assert found["lost"] == pytest.approx(3)  # the limit itself is allowed
    assert found["low"] > 0


def test_too_few_rows_are_said_with_the_number_that_it_takes(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=4, rows=40), tasks=("one", "two"))
    decision = gate(run)
    found = checks(decision)["best", "one"]
    assert (decision["outcome"], found["verdict"]) == ("passed", "undecidable")
    assert found["needed"] > 200 > found["rows"]
    assert str(found["needed"]) in found["why"]
    assert "has 40" in found["why"]
    (run / "gate.yaml").write_text("few_rows: fail\n")
    assert gate(run)["outcome"] == "failed"


def test_a_loss_above_the_hard_limit_fails_whatever_the_noise(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=3, rows=10), tasks=("one", "two"))
    found = checks(gate(run))["best", "one"]
    assert found["verdict"] == "fail"
    assert found["low"] < 0
    (run / "gate.yaml").write_text("hard: null\n")
    assert checks(gate(run))["best", "one"]["verdict"] == "undecidable"


def test_the_best_of_all_earlier_phases_is_what_counts(make_run: MakeRun) -> None:
    scores = two_months(lost=0) | {
        "03-three": {"one": right(400, MANY), "two": right(450, MANY), "three": right(300, MANY)}
    }
    scores["02-two"]["one"] = right(500, MANY)
    decision = gate(make_run(scores))
    assert checks(decision)["best", "one"]["against"] == "02-two"
    assert checks(decision)["best", "one"]["verdict"] == "fail"
    assert checks(decision)["best", "two"]["verdict"] == "pass"
    assert decision["comparisons"] == 2 + 1  # two other phases of one, one of two; three was not scored before training


def test_an_earlier_phase_is_judged_with_what_was_known_then(make_run: MakeRun) -> None:
    scores = two_months(lost=0) | {
        "03-three": {"one": right(0, MANY), "two": right(0, MANY), "three": right(300, MANY)}
    }
    run = make_run(scores)
    assert gate(run, phase=2)["outcome"] == "passed"
    assert gate(run, phase=3)["outcome"] == "failed"
    with pytest.raises(InputError, match="--phase 4"):
        gate(run, phase=4)


def test_a_task_whose_rows_were_deleted_is_judged_while_it_was_scored(make_run: MakeRun) -> None:
    scores = two_months(lost=60) | {"03-three": {"two": right(MANY * 3 // 4, MANY), "three": right(MANY, MANY)}}
    run = make_run(scores)
    results = json.loads((run / "results.json").read_text())
    results["tasks"][0]["forgotten"] = "2026-01-31"
    (run / "results.json").write_text(json.dumps(results))
    now, then = gate(run), gate(run, phase=2)
    assert {check["subject"] for check in now["checks"]} == {"two"}
    assert any("task one were deleted on 2026-01-31" in note for note in now["notes"])
    assert checks(then)["best", "one"]["verdict"] == "fail"
    assert not any("train it again" in entry["what"] for entry in then["advice"])


def test_compressed_predictions_are_read(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=60), tasks=("one", "two"))
    plain = gate(run)
    for file in (run / "predictions").rglob("*.jsonl"):
        compress(file)
    packed = gate(run)
    assert packed["checks"] == plain["checks"]
    assert packed["files"] == plain["files"]


def test_the_new_task_has_a_least_score(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=0), tasks=("one", "two"))
    (run / "gate.yaml").write_text("limits: {two: {least: 85}}\n")
    assert checks(gate(run))["least", "two"]["verdict"] == "fail"
    (run / "gate.yaml").write_text("new_task: {least: 76}\n")
    found = checks(gate(run))["least", "two"]
    assert found["verdict"] == "undecidable"
    assert found["needed"] > MANY
    (run / "gate.yaml").write_text("new_task: {gain: 90}\n")
    assert checks(gate(run))["gain", "two"]["verdict"] == "fail"


def test_rows_are_paired_by_their_ids(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=0), tasks=("one", "two"))
    file = run / "predictions" / "after-02-two" / "one.jsonl"
    lines = file.read_text().splitlines()
    random.Random(0).shuffle(lines)
    file.write_text("\n".join(lines) + "\n")
    assert checks(gate(run))["best", "one"]["worse"] == 0
    write_rows(file, "one", right(10, MANY - 1))
    with pytest.raises(InputError, match=f"one/test/{MANY - 1}"):
        gate(run)


def test_a_damaged_or_missing_prediction_file_is_named(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=0), tasks=("one", "two"))
    file = run / "predictions" / "after-02-two" / "one.jsonl"
    file.write_text('{"id": "one/test/0", "score": 2}\n')
    with pytest.raises(InputError, match=r"one\.jsonl:1"):
        gate(run)
    file.unlink()
    with pytest.raises(InputError, match=r"one\.jsonl: file not found"):
        gate(run)


def test_the_current_release_is_a_reference_of_its_own(make_run: MakeRun) -> None:
    phases = {"one": right(300, MANY), "two": right(450, MANY), "three": right(300, MANY)}
    scores = two_months(lost=60) | {"03-three": phases}
    scores["03-three"]["one"] = right(390, MANY)
    run = make_run(scores)
    assert "release" not in {rule for rule, _ in checks(gate(run))}
    (run / "releases" / "1").mkdir(parents=True)
    content = dict.fromkeys(("previous", "adapter", "base", "tokenizer_sha256", "template", "gate"))
    content |= {
        "number": 1,
        "phase": "02-two",
        "phases": ["one", "two"],
        "tasks": ["one", "two"],
        "steps": 1,
        "run": [],
    }
    content |= dict.fromkeys(("method", "answers_with", "created", "ilora"), "x")
    write_manifest(run / "releases" / "1", content)
    point_to(run, 1)
    decision = gate(run)
    assert decision["release"] == {"number": 1, "phase": "02-two"}
    assert checks(decision)["release", "one"]["against"] == "02-two"
    assert checks(decision)["release", "one"]["verdict"] == "pass"
    assert checks(decision)["best", "one"]["against"] == "01-one"
    assert checks(decision)["best", "one"]["verdict"] == "fail"


# -- general ability ---------------------------------------------------------------------------------------------------


def test_the_perplexity_may_rise_so_far(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=0), tasks=("one", "two"))
    for phase, name, value in (("00-base", "base", 20.0), ("02-two", "fast", 22.5)):
        file = run / "predictions" / f"after-{phase}" / "perplexity.json"
        file.write_text(json.dumps({name: {"perplexity": value, "tokens": 1000}}))
    found = checks(gate(run))["perplexity", "perplexity"]
    assert found["verdict"] == "fail"
    assert found["lost"] == pytest.approx(12.5)
    (run / "gate.yaml").write_text("general: {perplexity: 13}\n")
    assert gate(run)["outcome"] == "passed"


def test_the_harness_counts_for_the_phase_that_it_measured(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=0), tasks=("one", "two"))
    scores = [
        {"task": "arc", "metric": "acc", "before": 0.6, "after": 0.5, "before_stderr": 0.01, "after_stderr": 0.01},
        {"task": "arc", "metric": "acc_norm", "before": 0.6, "after": 0.5, "before_stderr": 0.1, "after_stderr": 0.1},
        {"task": "wiki", "metric": "word_perplexity", "before": 0.4, "after": 0.2},
    ]
    (run / "general.json").write_text(json.dumps({"adapter": "adapters/02-two/fast", "scores": scores}))
    found = checks(gate(run))
    assert found["harness", "arc acc"]["verdict"] == "fail"
    assert found["harness", "arc acc_norm"]["verdict"] == "pass"  # its interval has 0 in it
    assert ("harness", "wiki word_perplexity") not in found
    (run / "general.json").write_text(json.dumps({"adapter": "adapters/01-one/fast", "scores": scores}))
    assert not [rule for rule, _ in checks(gate(run)) if rule == "harness"]


def test_probes_are_judged_by_group_and_the_text_by_its_windows(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=0), tasks=("one", "two"))
    rng = np.random.default_rng(0)
    facts, text = rng.uniform(0.6, 0.9, 25).tolist(), rng.uniform(2, 4, 30).tolist()

    def write(phase: str, name: str, down: float, up: float, made_from: str = "same") -> None:
        scores = {"facts": {f"facts/{place}": score - down for place, score in enumerate(facts)}}
        content = {name: {"made_from": made_from, "scores": scores, "text": [loss + up for loss in text]}}
        (run / "predictions" / f"after-{phase}" / "probes.json").write_text(json.dumps(content))

    write("00-base", "base", 0, 0)
    write("02-two", "fast", 0.12, 0.2)
    found = checks(gate(run))
    assert found["probes", "facts"]["verdict"] == found["probes", "all groups"]["verdict"] == "fail"
    assert found["probes", "facts"]["lost"] == pytest.approx(12)
    assert found["text", "general text"]["verdict"] == "fail"
    assert found["text", "general text"]["lost"] == pytest.approx(0.2)
    write("02-two", "fast", 0.05, 0.05)
    assert gate(run)["outcome"] == "passed"
    file = run / "predictions" / "after-02-two" / "probes.json"
    file.write_text(file.read_text().replace('"text"', '"txet"'))
    with pytest.raises(InputError, match=r"probes\.json, fast: text"):
        gate(run)
    write("02-two", "fast", 0.5, 2, made_from="other")
    decision = gate(run)
    assert decision["outcome"] == "passed"
    assert any("probes" in note for note in decision["notes"])


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_the_decision_is_kept_with_what_it_stood_on(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=60), tasks=("one", "two"))
    assert read_gate(run) is None
    decision = gate(run)
    assert read_gate(run) == decision == read_gate(run, "02-two")
    (run / "gate.yaml").write_text("hard: 1\n")  # by other rules it may be decided otherwise
    assert read_gate(run, "02-two") is None
    (run / "gate.yaml").unlink()
    assert set(decision["files"]) == {
        "gate.yaml",
        "predictions/after-00-base/two.jsonl",
        "predictions/after-01-one/one.jsonl",
        "predictions/after-02-two/one.jsonl",
        "predictions/after-02-two/two.jsonl",
    }
    assert read_gate(run, "01-one") is None
    compress(run / "predictions" / "after-02-two" / "one.jsonl")
    assert read_gate(run, "02-two") == decision
    assert gate(run)["checks"] == decision["checks"]
    write_rows(run / "predictions" / "after-02-two" / "one.jsonl", "one", right(450, MANY))
    assert read_gate(run, "02-two") is None  # its rows have changed since
    (run / "gate.json").write_text("{}")
    with pytest.raises(InputError, match=r"gate\.json"):
        read_gate(run)


@pytest.mark.parametrize("method", ["sequential", {"name": "er", "memory_size": 50}])
def test_advice_comes_from_the_run(make_run: MakeRun, method: Any) -> None:
    decision = gate(make_run(two_months(lost=60), tasks=("one", "two"), method=method))
    commands = [entry["command"] for entry in decision["advice"]]
    assert any("--select" in command for command in commands) == (method != "sequential")
    assert any("--repair" in command for command in commands)
    assert any("method=ilora+" in command for command in commands)
    assert any("task one" in entry["what"] for entry in decision["advice"])
    assert any("method.memory_size=100" in command for command in commands) == (method != "sequential")
    assert not gate(make_run(two_months(lost=0), tasks=("one", "two"), method=method))["advice"]


# -- by simulation -----------------------------------------------------------------------------------------------------


@dataclass
class Months:
    """Months in which every phase answers a share of the rows anew. skills: by task and phase, its chance."""

    skills: list[list[float]]
    rows: int
    changed: float
    rng: np.random.Generator
    run: Path = Path("months")

    def __post_init__(self) -> None:
        self.labels = [f"t{place}" for place in range(len(self.skills))]
        self.earlier, self.new = self.labels[:-1], self.labels[-1:]
        self.scores = {label: self._answers(chances) for label, chances in zip(self.labels, self.skills, strict=True)}

    def _answers(self, chances: list[float]) -> list[dict[str, float]]:
        usual = self.rng.random(self.rows)
        drawn = [
            np.where(self.rng.random(self.rows) < self.changed, self.rng.random(self.rows), usual) for _ in chances
        ]
        return [dict(enumerate((row < chance) * 1.0)) for row, chance in zip(drawn, chances, strict=True)]  # type: ignore[arg-type]

    def now(self) -> dict[str, dict[str, float]]:
        return {label: found[-1] for label, found in self.scores.items()}

    def before(self, task: str) -> dict[str, dict[str, float]]:
        return {f"phase {place}": rows for place, rows in enumerate(self.scores[task][:-1])}

    def untrained(self, _task: str) -> None:
        return None

    def release(self) -> tuple[int, str]:
        return 1, "phase 0"

    def ability(self, _phase: str) -> Ability:
        return Ability()

    def harness(self) -> list[Any]:
        return []


def share_failed(rules: Rules, times: int, rows: int, changed: float, last: float, months: int = 6) -> float:
    """Of so many gates. last: the chance of a right answer in the last phase, 0.7 before."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(times):
        skills = [[0.7] * (months - place - 1) + [last] for place in range(months)]
        judge = Judge(rules, Months(skills, rows, changed, rng))  # type: ignore[arg-type]
        found += any(check.verdict == "fail" for check in judge.judge(judge.evidence.now(), Ability()))
    return found / times


@pytest.mark.parametrize(("rows", "changed"), [(100, 0.4), (500, 0.1)])
def test_with_nothing_to_find_at_most_6_in_100_gates_fail(rows: int, changed: float) -> None:
    assert share_failed(Rules(), 150, rows, changed, last=0.7) <= 0.06


def test_a_loss_above_the_limit_is_found_with_the_rows_that_it_needs() -> None:
    """Twice the limit, on one earlier task; the rows are those that the gate asks for."""
    rules = Rules()
    judge = Judge(rules, Months([[0.7, 0.7], [0.7]], 2000, 0.2, np.random.default_rng(1)))  # type: ignore[arg-type]
    needed = judge.judge(judge.evidence.now(), Ability())[0].needed
    assert needed is not None
    assert share_failed(rules, 100, needed, 0.2, last=0.64, months=2) >= 0.8
