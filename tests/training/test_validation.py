"""The validation loss: what is measured, that measuring changes nothing, and tasks that end by it or by `max_steps`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from ilora import InputError, RunResult, resume, run
from ilora.data.examples import Example
from ilora.methods import Method
from ilora.report import write_report
from ilora.training import session as session_module
from ilora.training.divergence import DivergenceError
from ilora.training.validation import validation_loss
from tests.helpers import (
    FEW_SCORES,
    MakeConfig,
    begin,
    difference,
    plain,
    run_killed,
    settings,
    train,
    trained,
    weights,
    write_task,
)
from tests.processes import outcome

TWO = ("data.tasks=[one, two]", *FEW_SCORES)  # of 6 steps each


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def mean_loss(model: LlamaForCausalLM, rows: list[Example]) -> float:
    """transformers' own loss, row by row: the mean over all answer tokens."""
    total = 0.0
    for row in rows:
        ids = torch.tensor([row.prompt + row.answer])
        labels = torch.tensor([[-100] * len(row.prompt) + row.answer])
        total += float(model(input_ids=ids, labels=labels).loss) * len(row.answer)
    return total / sum(len(row.answer) for row in rows)


@torch.no_grad()
def test_before_training_it_is_the_loss_of_the_base_model(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path
) -> None:
    session = begin(make_config("training.stop_when={}"), tmp_path / "run")
    session.method.engine.model.train()
    rows = session.stream.validation_rows(session.stream.phases[0])
    assert [row.id for row in rows] == [f"one/eval/{number}" for number in range(6)]
    expected = mean_loss(plain(tiny_model), rows)
    assert validation_loss(session.method, rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["ilora", "olora", "router", "l2p", "progressive_prompts"])
def test_it_is_measured_with_the_weights_in_training(
    name: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the rows of a step, it is the step's own loss before the weights move, in the second task, too."""
    original, pairs = session_module.optimizer_step, []

    def watching(method: Method[Any], optimizer: Any, rows: list[Example]) -> Any:
        before = validation_loss(method, rows)
        report = original(method, optimizer, rows)
        pairs.append((before, report.terms["ce"]))
        return report

    monkeypatch.setattr(session_module, "optimizer_step", watching)
    # The step's rows without replayed ones are its rows; dropout off, so that both see the same.
    changes = [*TWO, "adapter.dropout=0", "training.epochs=1", "training.learning_rate=0.02"]
    for _ in train(begin(make_config(*changes, method=settings(name)), tmp_path / "run")):
        pass
    assert len(pairs) == 6
    for before, term in pairs:
        assert before == pytest.approx(term, rel=1e-4)


def test_measuring_changes_no_bit(make_config: MakeConfig, tmp_path: Path) -> None:
    changes = [*TWO, "training.epochs=1"]
    without = trained(make_config(*changes), tmp_path / "without")
    measured = trained(make_config(*changes, "training.stop_when={every: 1, patience: 9}"), tmp_path / "measured")
    assert difference(without, measured) == 0.0
    losses = [line.get("validation_loss") for line in metrics(tmp_path / "measured")]
    assert len(losses) == 6
    assert all(loss > 0 for loss in losses)
    for line, other in zip(metrics(tmp_path / "without"), metrics(tmp_path / "measured"), strict=True):
        assert line["loss"] == other["loss"]
        assert "validation_loss" not in line


def by_hand(monkeypatch: pytest.MonkeyPatch, losses: dict[str, list[float]]) -> None:
    """The validation losses of each task, one a step, instead of measured ones."""

    def measured(method: Method[Any], rows: list[Example]) -> float:
        assert {row.task for row in rows} == {method.position.task}
        return losses[method.position.task][method.position.task_step - 1]

    monkeypatch.setattr(session_module, "validation_loss", measured)


STOP = "training.stop_when={every: 1, patience: 2, min_delta: 0.1}"
LOSSES = {"one": [3.0, 2.0, 1.95, 1.99, 0.0, 0.0], "two": [3.0, 3.0, 2.5, 2.0, 1.0, 0.5]}  # one ends after step 4


@pytest.fixture(scope="module")
def whole(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run that was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        by_hand(patch, LOSSES)
        return run(make_config(*TWO, STOP, *FEW_SCORES), tmp_path_factory.mktemp("stop") / "whole", quiet=True)


def test_a_task_ends_by_its_validation_loss(whole: RunResult) -> None:
    assert whole.results["phase_steps"] == {
        "01-one": {"taken": 4, "planned": 6, "best_step": 2, "validation_loss": 2.0},
        "02-two": {"taken": 6, "planned": 6, "best_step": 6, "validation_loss": 0.5},
    }
    assert [(line["task"], line["step"]) for line in metrics(whole.path)] == [
        *(("one", number) for number in range(1, 5)), *(("two", number) for number in range(5, 11)),
    ]  # fmt: skip
    assert [line["validation_loss"] for line in metrics(whole.path)] == [*LOSSES["one"][:4], *LOSSES["two"]]
    assert whole.results["cost"]["steps"] == 10
    page = write_report(whole.path).read_text()
    assert "01-one ended after 4 of 6 steps (lowest validation loss 2.000, at step 2)" in page
    assert "02-two ended" not in page


@pytest.mark.parametrize(
    ("at", "count"), [("step", 2), ("step", 4), ("adapters", 1), ("step", 6)], ids=["first", "last", "end", "next"]
)
def test_an_interrupted_run_ends_at_the_same_bits(
    at: str, count: int, whole: RunResult, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first checkpoint, at the step after which the task ends, at its end, in the next task."""
    by_hand(monkeypatch, LOSSES)
    run_killed(make_config(*TWO, STOP, *FEW_SCORES), tmp_path / "killed", monkeypatch, at=at, count=count)
    again = resume(tmp_path / "killed", quiet=True)
    assert outcome(again.path) == outcome(whole.path)
    assert again.results["phase_steps"] == whole.results["phase_steps"]
    losses = [[line["validation_loss"] for line in metrics(path)] for path in (again.path, whole.path)]
    assert losses[0] == losses[1]


def test_a_loss_that_is_no_number_ends_the_run_with_a_message(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand(monkeypatch, {"one": [math.nan] * 6})
    config = make_config("data.tasks=[one]", STOP, *FEW_SCORES)
    with pytest.raises(DivergenceError, match=r"the validation loss is not finite .* task 'one', step 1 of 6"):
        run(config, tmp_path / "run", quiet=True)


def test_without_eval_rows_it_is_refused_before_anything_is_written(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "data", "one")
    write_task(tmp_path / "data", "two")
    (folder / "eval.json").unlink()
    config = make_config(f"data.path={tmp_path / 'data'}", *TWO, STOP)
    with pytest.raises(InputError, match=r"training\.stop_when: no eval rows .*: one\. "):
        run(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_scores_on_the_rows_that_decide_are_warned_of(make_config: MakeConfig, tmp_path: Path) -> None:
    for number, (split, expected) in enumerate({"eval": True, "test": False}.items()):
        session = begin(make_config(STOP, f"evaluation.split={split}"), tmp_path / f"{number}")
        assert any("training.stop_when" in line for line in session.stream.warnings()) is expected


# -- max_steps ---------------------------------------------------------------------------------------------------------


def test_the_schedule_is_planned_for_max_steps(make_config: MakeConfig, tmp_path: Path) -> None:
    changes = [*TWO, "training.max_steps=4", "training.schedule=linear", "training.warmup_ratio=0.25"]
    trained(make_config(*changes, "training.learning_rate=0.003"), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1] * 2  # 3 steps in an epoch
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.003, 0.003, 0.002, 0.001] * 2)


def test_more_steps_than_there_are_change_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    changes = ["data.tasks=[one]", "training.epochs=1", *FEW_SCORES]
    first, second = (trained(make_config(*changes, f"training.max_steps={n}"), tmp_path / f"{n}") for n in (3, 100))
    assert difference(first, second) == 0.0


def test_a_task_may_have_its_own(make_config: MakeConfig, tmp_path: Path) -> None:
    """Its limit and its early stopping, without which the tasks before it need no eval rows."""
    write_task(tmp_path / "data", "one")
    write_task(tmp_path / "data", "two")
    (tmp_path / "data/one/eval.json").unlink()
    changes = "{training.max_steps: 2, training.stop_when: {every: 1}}"
    tasks = f"data.tasks=[one, {{name: two, settings: {changes}}}]"
    trained(make_config(f"data.path={tmp_path / 'data'}", tasks, *FEW_SCORES), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["task"] for line in lines] == ["one"] * 6 + ["two"] * 2
    assert ["validation_loss" in line for line in lines] == [False] * 6 + [True] * 2


def test_a_resume_within_max_steps_is_exact(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*TWO, "training.max_steps=5", *FEW_SCORES)
    whole = run(config, tmp_path / "whole", quiet=True)
    assert whole.results["phase_steps"] == {label: {"taken": 5, "planned": 5} for label in ("01-one", "02-two")}
    run_killed(config, tmp_path / "killed", monkeypatch, at="step", count=9)
    resume(tmp_path / "killed", quiet=True)
    assert difference(weights(whole.path), weights(tmp_path / "killed")) == 0.0
