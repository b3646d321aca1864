"""Replay: what may be drawn, when rows are stored, and that the reservoir is fair."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from ilora import run
from ilora.data.examples import Example
from ilora.memory import ReplayMemory
from ilora.methods.er import ExperienceReplay
from tests.conftest import MakeConfig


def rows(count: int, task: str = "one") -> list[Example]:
    return [Example(task, f"{task}/train/{number}", [5, number % 50], [7, 1]) for number in range(count)]


def test_reservoir_keeps_every_row_with_equal_probability() -> None:
    size, offered, trials = 10, 40, 600
    kept = [0] * offered
    for seed in range(trials):
        memory = ReplayMemory(size, seed=seed)
        memory.offer(rows(offered))
        assert len(memory) == size
        for example in memory.examples:
            kept[int(example.id.rpartition("/")[2])] += 1
    # Each trial draws without replacement, which makes the counts a little more even than a multinomial's.
    assert stats.chisquare(kept).pvalue > 0.001
    assert sum(kept) == size * trials


def test_reservoir_does_not_depend_on_how_the_rows_arrive() -> None:
    at_once, by_one = ReplayMemory(5, seed=1), ReplayMemory(5, seed=1)
    at_once.offer(rows(30))
    for example in rows(30):
        by_one.offer([example])
    assert at_once.examples == by_one.examples


def test_draw_is_distinct_keyed_marked_and_keeps_out() -> None:
    memory = ReplayMemory(30, seed=0)
    memory.offer(rows(8, "one") + rows(8, "two"))
    drawn = memory.draw(6, key="a", without={"two"})
    assert len({example.id for example in drawn}) == 6
    assert all(example.replayed and example.task == "one" for example in drawn)
    assert [example.id for example in drawn] == [example.id for example in memory.draw(6, key="a", without={"two"})]
    assert [example.id for example in drawn] != [example.id for example in memory.draw(6, key="b", without={"two"})]
    assert len(memory.draw(99, key="c")) == 16
    assert ReplayMemory(0, seed=0).draw(4, key="d") == []


def test_replayed_rows_are_not_stored_again() -> None:
    memory = ReplayMemory(5, seed=0)
    memory.offer(rows(3))
    memory.offer(memory.draw(3, key="x"))
    assert memory.offered == 3
    assert len(memory) == 3


def test_state_round_trip() -> None:
    memory, other = ReplayMemory(5, seed=0), ReplayMemory(5, seed=0)
    memory.offer(rows(20))
    other.load_state_dict(memory.state_dict())
    assert other.examples == memory.examples
    assert other.offered == memory.offered
    empty = ReplayMemory(5, seed=0)
    empty.load_state_dict(ReplayMemory(5, seed=0).state_dict())
    assert empty.examples == []


@pytest.mark.parametrize("replay_from", ["earlier_tasks", "whole_memory"])
def test_replay_over_a_run(
    replay_from: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only training rows of tasks already begun; each offered once, in its first epoch; none drawn in its own step."""
    steps: list[tuple[str, int, list[Example], set[str], int]] = []
    extend = ExperienceReplay.extend_batch

    def watching(self: ExperienceReplay, examples: list[Example]) -> list[Example]:
        before = {example.id for example in self.learner.memory.examples}
        batch = extend(self, examples)
        steps.append((self.learner.task, self.learner.epoch, batch, before, self.learner.memory.offered))
        return batch

    monkeypatch.setattr(ExperienceReplay, "extend_batch", watching)
    method = {"name": "er", "memory_size": 30, "replay_from": replay_from}
    run(make_config(method=method), tmp_path / "run", quiet=True)
    order = ["one", "two", "three"]
    trained: set[str] = set()
    for task, _, batch, before, _ in steps:
        replayed = [example for example in batch if example.replayed]
        current = [example for example in batch if not example.replayed]
        allowed = order[: order.index(task)] + ([task] if replay_from == "whole_memory" else [])
        assert {example.task for example in replayed} <= set(allowed)
        assert all(example.id.split("/")[1] == "train" for example in batch)
        assert {example.id for example in replayed} <= trained  # seen in an earlier step, so not stored in this one
        assert {example.id for example in replayed} <= before
        if task != "one":
            assert len(replayed) == len(current)
        trained |= {example.id for example in current}
    assert steps[-1][4] == 3 * 24  # offers: every row once, in the first of the two epochs
    assert next(offered for task, epoch, _, _, offered in steps if task == "one" and epoch == 1) == 24


def test_no_memory_is_sequential_and_memory_stays_small(make_config: MakeConfig, tmp_path: Path) -> None:
    result = run(make_config(method={"name": "er", "memory_size": 7}), tmp_path / "run", quiet=True)
    stored = result.results["cost"]["stored_bytes"]["memory"]
    assert 0 < stored <= 7 * 64 * 4
