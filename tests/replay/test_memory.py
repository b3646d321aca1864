"""A memory whose size changes along the stream: which rows it then holds, and with what probability."""

from __future__ import annotations

from collections import Counter

import pytest

from ilora.data.examples import Example
from ilora.replay.memory import ReplayMemory


def rows(first: int, count: int, task: str = "t") -> list[Example]:
    return [Example(task, f"{task}/{n}", [n], [n % 3]) for n in range(first, first + count)]


@pytest.mark.parametrize(
    ("stages", "shares"),
    [
        # (capacity, rows that it is shown), one after the other; the probability with which each of them ends up in it
        ([(10, 50), (15, 10)], [10 / 50, 5 / 10]),  # grown: what was passed over before is gone
        ([(10, 50), (15, 100)], [15 / 150, 15 / 150]),  # as likely as the earlier ones by now: one reservoir
        ([(10, 50), (5, 50)], [5 / 100, 5 / 100]),  # smaller: still one reservoir
        ([(10, 50), (20, 20), (10, 5)], [10 / 50 / 2, 5 / 25, 5 / 25]),  # grown, then smaller
        ([(0, 50), (10, 50)], [0, 10 / 50]),
        ([(10, 5), (20, 50)], [20 / 55, 20 / 55]),  # it was not full: all are there, nothing to make up for
    ],
)
def test_rows_shown_together_are_equally_likely(stages: list[tuple[int, int]], shares: list[float]) -> None:
    found, runs = Counter[int](), 350
    for seed in range(runs):
        memory, shown = ReplayMemory(stages[0][0], seed=seed), 0
        for capacity, count in stages:
            memory.resize(capacity)
            assert len(memory) <= capacity
            memory.offer(rows(shown, count))
            shown += count
            assert len(memory) <= capacity
        found.update(example.prompt[0] for example in memory.examples)
    shown = 0
    for (_, count), share in zip(stages, shares, strict=True):
        early, late = range(shown, shown + count // 2), range(shown + count // 2, shown + count)
        for part in (early, late):
            mean = sum(found[n] for n in part) / runs / len(part)
            assert mean == pytest.approx(share, abs=0.035)
        shown += count


def test_growing_from_a_checkpoint_goes_on_the_same() -> None:
    whole = ReplayMemory(4, seed=1)
    whole.offer(rows(0, 20))
    whole.resize(9)
    whole.offer(rows(20, 7))
    again = ReplayMemory(9, seed=1)
    again.load_state_dict(whole.state_dict())
    for memory in (whole, again):
        memory.offer(rows(27, 60))
    assert whole.examples == again.examples
    assert whole.state_dict().keys() == again.state_dict().keys()


def test_a_balanced_memory_shrinks_to_what_it_would_have_held() -> None:
    large, small = ReplayMemory(24, seed=3), ReplayMemory(8, seed=3)
    for memory in (large, small):
        for number, task in enumerate(("a", "b")):
            memory.balance(rows(100 * number, 30, task))
    large.resize(8)
    assert large.examples == small.examples
    assert Counter(example.task for example in large.examples) == {"a": 4, "b": 4}
    large.resize(12)
    large.balance(rows(200, 30, "c"))
    assert Counter(example.task for example in large.examples) == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize("capacity", [12, 200])
def test_after_a_task_is_forgotten_the_others_are_equally_likely_again(capacity: int) -> None:
    found, runs = Counter[str](), 250
    for seed in range(runs):
        memory = ReplayMemory(capacity, seed=seed)
        for task in ("a", "b", "c"):
            memory.offer(rows(0, 30, task))
        memory.forget("b", shown=30)
        assert "b" not in memory.tasks
        again = ReplayMemory(capacity, seed=seed)
        again.load_state_dict(memory.state_dict())
        again.offer(rows(0, 240, "d"))
        found.update(example.task for example in again.examples)
        assert len(again) == min(capacity, 300)
    for task, count in {"a": 30, "c": 30, "d": 240}.items():
        assert found[task] / runs == pytest.approx(min(capacity / 300, 1) * count, rel=0.12)
    assert found["b"] == 0


def test_a_balanced_memory_forgets_a_task() -> None:
    memory = ReplayMemory(8, seed=0)
    for task in ("a", "b"):
        memory.balance(rows(0, 30, task))
    memory.forget("a", shown=30)
    assert Counter(example.task for example in memory.examples) == {"b": 4}
    memory.balance(rows(0, 30, "c"))
    assert Counter(example.task for example in memory.examples) == {"b": 4, "c": 4}


def test_rows_that_are_taken_as_well_stay_as_likely_as_the_others() -> None:
    memory = ReplayMemory(4, seed=0)
    memory.offer(rows(0, 20))
    memory.resize(8)
    taken = rows(0, 4, task="more")
    memory.take(taken, capacity=8)
    assert memory.examples[4:] == taken
    found = Counter[str]()
    for seed in range(300):
        other = ReplayMemory(8, seed=seed)
        other.load_state_dict(memory.state_dict())
        other.offer(rows(20, 20))
        assert len(other) == 8
        found.update(row.task for row in other.examples if row.prompt[0] < 20)
    assert found["t"] == pytest.approx(found["more"], rel=0.15)
    assert 0 < found["more"] < 4 * 300


def test_a_memory_that_is_cleared_is_as_new() -> None:
    memory, new = ReplayMemory(4, seed=0), ReplayMemory(6, seed=0)
    memory.offer(rows(0, 20))
    memory.clear(6)
    for one in (memory, new):
        one.offer(rows(0, 20))
    assert memory.examples == new.examples
