"""The contract test: what holds for every registered method, whatever it does.

1. Stop anywhere and resume: the same bits.
2. One process or two: the same weights (tests/training/test_processes.py).
3. The micro-batch size changes nothing.
4. At strength 0 a method is the plainer one.
5. The same seed gives the same bits, and every task moves the weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from torch import Tensor

from ilora import resume, run
from ilora.config import load_config
from ilora.evaluation.scoring import EvaluationSet, evaluate
from ilora.methods import METHODS
from ilora.training import evaluating
from tests.command import tree
from tests.helpers import CALLS, SMALL, MakeConfig, WholeRun, difference, run_killed, settings, trained, weights

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
TASKS = ["tone", "minutes", "science"]  # a label, a text, a letter and the reason


def each(names: Iterable[str]) -> list[ParameterSet]:
    """A parameter for each method; the tests of one go to one worker, which makes its whole run once."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


ALL = each(METHODS)
TRAINED = each(name for name in METHODS if METHODS[name].trains)
SUMMED = ["inflora", "olora", "osft", "sd_lora"]  # a growing sum of adapters, saved as one
SEQUENTIAL, REPLAY, SUM = {"name": "sequential"}, {"name": "er", "memory_size": 20}, {"name": "olora", "strength": 0}
# Settings under which a method must equal another one: {method: (its neutral settings, the other method)}.
NEUTRAL = {
    "er": ({"memory_size": 0}, SEQUENTIAL),
    "ilora": ({"memory_size": 20, "strength": 0}, REPLAY),
    "ilora+": (
        {"memory_size": 20, "memory_policy": "reservoir", "pseudo_share": 0, "next_task_from": "fast"},
        REPLAY,
    ),
    "derpp": ({"memory_size": 20, "strength": 0}, REPLAY),
    "ewc": ({"strength": 0}, SEQUENTIAL),
    "lwf": ({"strength": 0}, SEQUENTIAL),
    "gem": ({"memory_size": 0}, SEQUENTIAL),
    "agem": ({"memory_size": 0}, SEQUENTIAL),
    "wise_ft": ({"t": 1}, SEQUENTIAL),
    "forever": ({"memory_size": 20, "days": []}, SEQUENTIAL),
    "sure": ({"memory_size": 20, "memory_policy": "reservoir"}, REPLAY),
    "migu": ({"threshold": 0}, SEQUENTIAL),
    "seekr": ({"memory_size": 20, "strength": 0, "logit_share": 0}, REPLAY),
    "osft": ({"protected_rank": 0}, SUM),
    "sd_lora": ({"train_magnitudes": False}, SUM),
}


# One run, killed again and again. What is killed, when (counted from the start or the last resume), and where that is.
# test_interrupt.py has the moments at which it does not matter which method it is.
KILLS = [
    ("adapters", 1, "task one, trained but not saved"),
    ("step", 6, "task two, after its first checkpoint"),
    ("step", 5, "task three"),
]


@pytest.mark.core
@pytest.mark.parametrize("name", TRAINED)
def test_resume_gives_the_same_bits(
    name: str, whole_run: WholeRun, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder, seen = whole_run(name), tmp_path / "killed", []
    for number, (at, count, _) in enumerate(KILLS):
        config = None if number else make_config(*SMALL, method=settings(name))
        run_killed(config, folder, monkeypatch, at=at, count=count)
        file = folder / "metrics.jsonl"
        seen.append(json.loads(file.read_text().splitlines()[-1])["task"] if file.is_file() else "")
    assert seen == ["one", "two", "three"]
    resumed = resume(folder, quiet=True)
    assert difference(weights(whole.path), weights(resumed.path)) == 0.0
    assert resumed.results["variants"] == whole.results["variants"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == whole.results["cost"]["steps"]


@pytest.mark.parametrize("name", ALL)
def test_micro_batch_size_changes_nothing(name: str, make_config: MakeConfig, tmp_path: Path) -> None:
    # Dropout draws one mask per forward pass, so it is off here.
    short = (*SMALL, "adapter.dropout=0", "data.tasks=[one, two]", "training.epochs=1")
    whole = trained(make_config(*short, method=settings(name)), tmp_path / "8")
    parts = trained(make_config(*short, "training.micro_batch_size=3", method=settings(name)), tmp_path / "3")
    assert difference(whole, parts) <= 1e-5


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_bits_other_seed_other_weights(
    name: str, whole_run: WholeRun, make_config: MakeConfig, tmp_path: Path
) -> None:
    first = {key: value for key, value in weights(whole_run(name).path).items() if "/01-one/" in key}
    again = trained(make_config(*SMALL, "data.tasks=[one]", method=settings(name)), tmp_path / "again")
    other = trained(make_config(*SMALL, "data.tasks=[one]", "seed=1", method=settings(name)), tmp_path / "other")
    assert difference(first, again) == 0.0  # whatever tasks follow
    assert difference(first, other) > 1e-4


@pytest.fixture(scope="session")
def one_epoch(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Tensor]]:
    """The weights that a method's settings leave after one epoch of each task, trained once."""
    made: dict[str, dict[str, Tensor]] = {}

    def get(method: dict[str, Any]) -> dict[str, Tensor]:
        key = json.dumps(method)
        if key not in made:
            config = make_config(*SMALL, "training.epochs=1", method=method)
            made[key] = trained(config, tmp_path_factory.mktemp("epoch") / "run")
        return made[key]

    return get


@pytest.mark.xdist_group("neutral")
@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_strength_zero_equals_the_plainer_method(name: str, one_epoch: Callable[..., dict[str, Tensor]]) -> None:
    neutral, plainer = NEUTRAL[name]
    ours, theirs = one_epoch({"name": name} | neutral), one_epoch(plainer)
    assert difference({key: value for key, value in ours.items() if "/fast:" in key}, theirs) == 0.0


def _newest(name: str, key: str, after: torch.Tensor, before: torch.Tensor) -> float:
    """How far the last task moved a tensor; of one that grows with the tasks, how far the new block is from zero."""
    if name in SUMMED:  # the sum of all tasks' adapters: the newest rows of A, the newest columns of B
        axis = 0 if "lora_A" in key else 1
        return float(after.narrow(axis, before.shape[axis], after.shape[axis] - before.shape[axis]).abs().max())
    if name == "progressive_prompts":  # the newest stands first
        return float((after[: len(after) - len(before)] - before[: len(after) - len(before)]).abs().max())
    return float((after - before).abs().max())


@pytest.mark.parametrize("name", TRAINED)
def test_every_task_moves_the_weights(name: str, whole_run: WholeRun) -> None:
    result = whole_run(name)
    left = weights(result.path)
    answers = result.results["answers_with"]
    one, two, three = (
        {key.partition(":")[2]: value for key, value in left.items() if f"{label}/{answers}:" in key}
        for label in ("01-one", "02-two", "03-three")
    )
    assert one.keys() == two.keys() == three.keys()
    assert all("lora" in key or "prompt" in key for key in one)  # the base model stays
    for key, value in one.items():
        assert _newest(name, key, two[key], value) > 1e-5
        assert _newest(name, key, three[key], two[key]) > 1e-5


@pytest.mark.parametrize("name", ALL)
def test_cost_is_reported(name: str, whole_run: WholeRun) -> None:
    method, cost = METHODS[name], whole_run(name).results["cost"]
    trained = 3 * 2 * 16 if method.trains else 0  # tasks, epochs, rows
    assert cost["steps"] == trained / 8
    assert cost["backward_rows"] >= trained
    assert cost["forward_rows"] >= cost["backward_rows"]
    assert (cost["trained_tokens"] > 0) == method.trains
    stored = cost["stored_bytes"]
    one = sum(
        value.nbytes for key, value in weights(whole_run("sequential").path).items() if key.startswith("adapters/01")
    )
    held = {"zero_shot": 0, "l2p": 0, "progressive_prompts": 0, "individual": 3, "router": 3, "seekr": 4}
    held |= dict.fromkeys(SUMMED, 3)
    assert stored.get("adapters", 0) == one * held.get(
        name, len(whole_run(name).results["variants"]) + (name in ("lwf", "ilora+", "forever", "sdft"))
    )
    assert (stored["memory"] > 0) == ("memory_size" in method.Config.model_fields)
    extra = {"l2p": {"prompts"}, "progressive_prompts": {"prompts"}, "router": {"prototype"}}
    extra |= {"inflora": {"subspace"}, "sd_lora": {"directions", "magnitudes"}}
    extra |= {"ewc": {"importance", "anchor"}, "derpp": {"logits", "entries"}, "ilora+": {"frames"}}
    extra |= {"seekr": {"importance"}}
    assert stored.keys() - {"adapters", "memory"} == extra.get(name, set())


@pytest.mark.parametrize("name", each([*CALLS, "zero_shot"]))
def test_the_kinds_of_task_of_the_demo_run_to_their_end(name: str, tiny_model: Path, tmp_path: Path) -> None:
    overrides = {
        "data.tasks": TASKS,
        "model": {"name": str(tiny_model), "dtype": "float32"},
        "data.limit": {"train": 4, "eval": 1, "test": 1},
        "evaluation": {"unseen": "none", "zero_shot": False, "max_new_tokens": 2},
        "method": settings(name),
        "contrast": [],
    }
    config = load_config(DEMO, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])
    results = run(config, tmp_path / "run", quiet=True).results
    assert results["complete"]
    for variant in results["variants"].values():
        assert [sum(score is not None for score in row) for row in variant["R"]] == [1, 2, 3]


@pytest.mark.parametrize("name", each(name for name in METHODS if METHODS[name].fixed_answers))
def test_fixed_answers_are_those_that_would_be_computed_again(
    name: str, whole_run: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers after the last task, measured once more: those to earlier tasks were copied in the whole run."""
    asked: list[str] = []

    def noted(data: EvaluationSet, *rest: Any, **more: Any) -> Any:
        asked.append(data.task.name)
        return evaluate(data, *rest, **more)

    monkeypatch.setattr(evaluating, "evaluate", noted)
    folder, last = tmp_path / "run", "predictions/after-03-three"
    shutil.copytree(whole_run(name).path, folder)
    asked.clear()
    for fixed, computed in ((True, ["three"]), (False, ["one", "two", "three"])):
        monkeypatch.setattr(METHODS[name], "fixed_answers", fixed)
        shutil.rmtree(folder / last)
        resume(folder, quiet=True)
        assert asked == computed
        assert tree(folder / last) == tree(whole_run(name).path / last)
        asked.clear()
