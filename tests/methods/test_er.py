"""Replay: what may be drawn, when rows are stored, that the reservoir is fair and the balanced memory even."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from scipy import stats

from ilora import run
from ilora.data.examples import Example
from ilora.errors import InputError
from ilora.methods.er import ExperienceReplay
from ilora.replay.memory import ReplayMemory
from tests.helpers import SMALL, MakeConfig, trained


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


def stream(seed: int) -> list[list[Example]]:
    """Three to six tasks of uneven sizes and numbers of answers; one whose answers are all different."""
    chance = random.Random(seed)
    tasks = []
    for number in range(chance.randint(3, 6)):
        answers = 1000 if number == 1 else chance.randint(1, 6)
        count = chance.choice([3, 40, 90])
        tasks.append([Example(f"t{number}", f"t{number}/train/{n}", [5], [n % answers, 1]) for n in range(count)])
    return tasks


@pytest.mark.parametrize("seed", range(15))
def test_balanced_memory_is_as_even_as_the_rows_allow(seed: int) -> None:
    memory, tasks = ReplayMemory(24, seed=seed), stream(seed)
    for number, task in enumerate(tasks, 1):
        memory.balance(task)
        assert len(memory) == min(24, sum(map(len, tasks[:number])))
        assert len({example.id for example in memory.examples}) == len(memory)
    kept = Counter(example.task for example in memory.examples)
    for task in tasks:
        if kept[task[0].task] < len(task):  # not all of it: then it has its share, but for the last row
            assert kept[task[0].task] >= max(kept.values()) - 1
        there, has = Counter(row.answer[0] for row in task), Counter()
        has.update(row.answer[0] for row in memory.examples if row.task == task[0].task)
        has = Counter({answer: has[answer] for answer in there if there[answer] > 1})  # others count as one, below
        most = max(has.values(), default=0)
        assert all(has[answer] >= min(most - 1, there[answer]) for answer in has)


@pytest.mark.parametrize("seed", range(5))
def test_balanced_memory_is_as_if_all_rows_had_come_at_once(seed: int) -> None:
    one_by_one, at_once, tasks = ReplayMemory(24, seed=seed), ReplayMemory(24, seed=seed), stream(seed)
    for task in tasks:
        one_by_one.balance(task)
    at_once.balance(reversed([row for task in tasks for row in task]))
    assert one_by_one.examples == at_once.examples


def test_balanced_memory_chooses_fairly_among_rows_of_one_answer() -> None:
    kept: Counter[str] = Counter()
    for seed in range(600):
        memory = ReplayMemory(6, seed=seed)
        memory.balance([Example("a", f"{n}", [5], [n % 2, 1]) for n in range(20)])
        kept.update(example.id for example in memory.examples)
    assert stats.chisquare([kept[str(n)] for n in range(20)]).pvalue > 0.001


def test_answers_that_occur_once_count_as_one() -> None:
    """Yes, no and free text: a third each, not two rows against all the others."""
    answers = [[3, 1]] * 25 + [[4, 1]] * 25 + [[n, n, 1] for n in range(10, 60)]
    memory = ReplayMemory(24, seed=0)
    memory.balance([Example("a", f"{n}", [5], answer) for n, answer in enumerate(answers)])
    kept = Counter({3: "yes", 4: "no"}.get(row.answer[0], "free") for row in memory.examples)
    assert kept == {"yes": 8, "no": 8, "free": 8}


def test_what_remains_is_chance_whatever_the_sizes() -> None:
    bigger: Counter[str] = Counter()
    for seed in range(200):
        memory = ReplayMemory(3, seed=seed)
        memory.balance([Example("a", f"a{n}", [5], [3, 1]) for n in range(10)])
        memory.balance([Example("b", f"b{n}", [5], [3, 1]) for n in range(100)])
        bigger[Counter(row.task for row in memory.examples).most_common(1)[0][0]] += 1
    assert stats.binomtest(bigger["b"], 200).pvalue > 0.001
    frequent: Counter[int] = Counter()
    for seed in range(200):
        memory = ReplayMemory(1, seed=seed)
        memory.balance([Example("a", f"{n}", [5], [3 + (n < 10), 1]) for n in range(100)])
        frequent[memory.examples[0].answer[0]] += 1
    assert stats.binomtest(frequent[3], 200).pvalue > 0.001


def test_balanced_memory_over_a_run(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filled when a task ends, and whole while the next one trains."""
    before: list[Counter[str]] = []
    extend = ExperienceReplay.extend_batch

    def watching(self: ExperienceReplay, examples: list[Example]) -> list[Example]:
        before.append(Counter(example.task for example in self.memory.examples))
        return extend(self, examples)

    monkeypatch.setattr(ExperienceReplay, "extend_batch", watching)
    method = {"name": "er", "memory_size": 12, "memory_policy": "balanced"}
    trained(make_config(method=method), tmp_path / "run")
    seen = [dict(count) for count in dict.fromkeys(tuple(sorted(count.items())) for count in before)]
    assert seen == [{}, {"one": 12}, {"one": 6, "two": 6}]


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
        before = {example.id for example in self.memory.examples}
        batch = extend(self, examples)
        steps.append((self.position.task, self.position.epoch, batch, before, self.memory.offered))
        return batch

    monkeypatch.setattr(ExperienceReplay, "extend_batch", watching)
    method = {"name": "er", "memory_size": 30, "replay_from": replay_from}
    trained(make_config(method=method), tmp_path / "run")
    order = ["one", "two", "three"]
    seen: set[str] = set()
    for task, _, batch, before, _ in steps:
        replayed = [example for example in batch if example.replayed]
        current = [example for example in batch if not example.replayed]
        allowed = order[: order.index(task)] + ([task] if replay_from == "whole_memory" else [])
        assert {example.task for example in replayed} <= set(allowed)
        assert all(example.id.split("/")[1] == "train" for example in batch)
        assert {example.id for example in replayed} <= seen  # trained in an earlier step, so not stored in this one
        assert {example.id for example in replayed} <= before
        if task != "one":
            assert len(replayed) == len(current)
        seen |= {example.id for example in current}
    assert steps[-1][4] == 3 * 24  # offers: every row once, in the first of the two epochs
    assert next(offered for task, epoch, _, _, offered in steps if task == "one" and epoch == 1) == 24


def test_balanced_memory_has_no_rows_of_the_task_in_training(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="whole_memory has none to draw"):
        make_config(method={"name": "er", "memory_policy": "balanced", "replay_from": "whole_memory"})


def test_no_memory_is_sequential_and_memory_stays_small(make_config: MakeConfig, tmp_path: Path) -> None:
    result = run(make_config(*SMALL, method={"name": "er", "memory_size": 7}), tmp_path / "run", quiet=True)
    stored = result.results["cost"]["stored_bytes"]["memory"]
    assert 0 < stored <= 7 * 64 * 4
