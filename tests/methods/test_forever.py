"""FOREVER: the clock by hand, when the memory is replayed and how often, and the anchor with its pace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from ilora.data.examples import Example
from ilora.errors import InputError
from ilora.methods import Method
from ilora.methods.forever import FOREVER
from ilora.replay.memory import ReplayMemory
from tests.helpers import FEW_SCORES, MakeConfig, after_each_step, move, snapshot, trained, view, with_random_adapter

OLD = [Example("one", f"one/train/{number}", [5, 6 + number], [9, 1]) for number in range(4)]
NEW = [Example("two", "two/train/0", [7], [8, 1]), Example("two", "two/train/1", [10, 11], [12, 1])]


def method(tiny_model: Path, **settings: object) -> FOREVER:
    """At the start of its second task of 80 steps, without a warm-up; four rows of the first one are remembered."""
    memory = ReplayMemory(4, seed=0)
    memory.offer(OLD)
    model = with_random_adapter(tiny_model, dropout=0.0)
    run = view(model, pad=1, memory=memory, task="two", task_index=2, task_steps=80, current_tasks=frozenset({"two"}))
    run.training = run.training.model_copy(update={"warmup_ratio": 0.0})
    made = FOREVER(run, FOREVER.Config(name="forever", memory_policy="balanced", **settings))
    made.begin_task()
    return made


def step(made: FOREVER, number: int, length: float) -> list[Example]:
    """One step, by which the weights go this far; the rows that it replays."""
    move(made, task_step=number, step=100 + number)
    rows = made.extend_batch(NEW)
    made.before_step()
    count = sum(weight.numel() for weight in made.trainable)
    for weight in made.trainable:
        weight.data += length / count**0.5
    made.after_step()
    return rows[len(NEW) :]


def reviews_at(made: FOREVER, lengths: list[float]) -> list[int]:
    """After which of the steps the memory became due."""
    found = []
    for number, length in enumerate(lengths, 1):
        before = made.reviews.get("two", 0)
        step(made, number, length)
        if made.reviews.get("two", 0) > before:
            found.append(number)
    return found


def test_at_an_even_pace_days_are_counted_in_steps(tiny_model: Path) -> None:
    made = method(tiny_model)
    assert made.first_day == 2  # of 80 steps
    assert reviews_at(made, [0.01] * 70) == [2, 4, 8, 14, 30, 60]
    assert made.notes() == {"reviews": {"two": 6}}


@pytest.mark.parametrize("unit", [0.01, 3.0])
def test_the_clock_goes_by_the_way_of_the_weights(unit: float, tiny_model: Path) -> None:
    lengths = [unit * length for length in (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.5, 30.0)]  # 2, 4 | 5, 6, 7, 8, 8.5, 38.5
    made = method(tiny_model)
    assert reviews_at(made, lengths) == [2, 6, 8]  # 1 day, 2 days, then 4 and 7 at once
    assert made.time == pytest.approx(38.5 * unit, rel=1e-3)
    assert made.day == pytest.approx(4.0 * unit, rel=1e-3)
    pace = 2.0 * unit
    for length in lengths[2:]:
        pace = 0.95 * pace + 0.05 * length
    assert made.pace == pytest.approx(pace, rel=1e-3)


def test_the_clock_waits_for_the_learning_rate(tiny_model: Path) -> None:
    made = method(tiny_model, day_steps=3)
    made.run.training = made.run.training.model_copy(update={"warmup_ratio": 0.1})  # 8 steps
    assert reviews_at(made, [0.01] * 20) == [11, 14, 20]


def test_a_review_is_whole_passes_over_the_memory(tiny_model: Path) -> None:
    made = method(tiny_model, day_steps=1, days=(1, 9), replay_epochs=2)
    replayed = [step(made, number, 0.01) for number in range(1, 7)]
    assert [len(rows) for rows in replayed] == [0, 2, 2, 2, 2, 0]
    for half in (replayed[1:3], replayed[3:5]):
        assert sorted(row.id for rows in half for row in rows) == [row.id for row in OLD]
    assert all(row.replayed for rows in replayed for row in rows)


def test_rows_that_have_left_the_memory_are_passed_over(tiny_model: Path) -> None:
    made = method(tiny_model, day_steps=1, days=(1,), replay_epochs=1)
    step(made, 1, 0.01)
    assert made.without_task(made.state_dict(), "one")["due"] == []
    assert made.without_task(made.state_dict(), "two") == made.state_dict()
    made.memory.resize(1)
    assert [row.id for row in step(made, 2, 0.01)] == [row.id for row in made.memory.examples]
    assert made.due == []


def test_a_state_that_is_taken_up_goes_on(tiny_model: Path) -> None:
    one, two = method(tiny_model, day_steps=2), method(tiny_model, day_steps=2)
    for number in range(1, 6):
        step(one, number, 0.01)
    two.load_state_dict(one.state_dict())
    for number in range(6, 10):
        assert step(one, number, 0.02) == step(two, number, 0.02)
    assert one.state_dict() == two.state_dict()


@pytest.mark.parametrize(("pace", "factor"), [(1.0, 1.0), (1.5, 2.0), (0.8, 0.6), (0.1, 0.5), (9.0, 3.0)])
def test_the_anchor_by_hand(pace: float, factor: float, tiny_model: Path) -> None:
    made = method(tiny_model, day_steps=1, strength=0.3, intensity=2.0, smoothing=1.0)
    start = snapshot(made.engine.model, "fast")
    step(made, 1, 0.5)
    assert made.penalty() is None  # nothing was replayed
    step(made, 2, 0.5 * pace)
    way = sum(float((value - start[key]).square().sum()) for key, value in snapshot(made.engine.model, "fast").items())
    found = made.penalty()
    assert found is not None
    assert float(found.detach()) == pytest.approx(0.5 * 0.3 * factor * way, rel=1e-3)
    found.backward()
    for key, weight in zip(start, made.trainable, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, 0.3 * factor * (weight.detach() - start[key]), rtol=1e-3, atol=1e-6)


def test_in_a_run_reviews_are_rare_and_replay_earlier_tasks(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    original = FOREVER.replayed

    def replayed(self: FOREVER, count: int) -> list[Example]:
        rows = original(self, count)
        seen.update(f"{row.task} in {self.position.task}" for row in rows)
        return rows

    dues: list[int] = []

    def look(made: Method) -> None:
        assert isinstance(made, FOREVER)
        dues.append(len(made.due))

    monkeypatch.setattr(FOREVER, "replayed", replayed)
    after_each_step(monkeypatch, look)
    settings = {"name": "forever", "memory_size": 8, "memory_policy": "balanced", "days": [1, 4], "replay_epochs": 1}
    trained(
        make_config(*FEW_SCORES, "evaluation.max_new_tokens=2", "training.epochs=3", method=settings), tmp_path / "r"
    )
    # Nine steps a task, of which one warms up; days of one step; eight rows fit into one step.
    assert {key: seen[key] for key in seen} == {"one in two": 16, "one in three": 8, "two in three": 8}
    assert sum(count > 0 for count in dues) == 4


@pytest.mark.parametrize("days", [[1, 1], [0, 1], [4, 2]])
def test_days_that_do_not_grow_are_refused(days: list[float], make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"method\.days.*grow"):
        make_config(method={"name": "forever", "days": days})
