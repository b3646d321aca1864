"""SuRe: the surprise by plain transformers, which rows stay, and that the slow adapter follows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ilora.data.examples import Example
from ilora.errors import InputError
from ilora.methods.sure import SuRe
from ilora.replay.memory import ReplayMemory
from ilora.training.session import Session
from tests.helpers import MakeConfig, begin, snapshot, train, view, with_random_adapter

ROWS = [
    Example("one", "one/train/0", [5, 6, 7, 8], [9, 1]),
    Example("one", "one/train/1", [10, 11], [12, 30, 31, 1]),
    Example("one", "one/train/2", [13], [1]),
]


def method(tiny_model: Path, **settings: object) -> SuRe:
    run = view(
        with_random_adapter(tiny_model, dropout=0.3),
        pad=1,
        memory=ReplayMemory(2, seed=0),
        rows=ROWS,
        task_index=1,
        task="one",
    )
    return SuRe(run, SuRe.Config(name="sure", memory_size=2, **settings))


def by_hand(made: SuRe, row: Example, *, of: str) -> float:
    """transformers' own mean loss, in evaluation mode."""
    model, ids = made.engine.model, torch.tensor([row.prompt + row.answer])
    labels = ids.clone()
    if of == "answer":
        labels[:, : len(row.prompt)] = -100
    model.eval()
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=labels).loss)  # the first token is never asked for
    model.train()
    return loss


@pytest.mark.parametrize("of", ["row", "answer"])
@pytest.mark.parametrize("micro_batch_size", [8, 1])
def test_surprise_is_the_mean_negative_log_likelihood(of: str, micro_batch_size: int, tiny_model: Path) -> None:
    made = method(tiny_model, surprise_of=of)
    made.engine.micro_batch_size = micro_batch_size
    expected = [by_hand(made, row, of=of) for row in ROWS]
    torch.testing.assert_close(made.surprise(ROWS), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_least_expected_rows_are_kept(when: str, tiny_model: Path) -> None:
    made = method(tiny_model, surprise_when=when)
    made.begin_task()
    assert len(made.memory) == (2 if when == "before" else 0)
    made.end_task()
    ranked = sorted(ROWS, key=lambda row: -by_hand(made, row, of="row"))
    assert made.memory.examples == ranked[:2]


def ids(session: Session, task: str) -> list[str]:
    return [row.id for row in session.method.memory.examples if row.task == task]


@pytest.mark.parametrize("when", ["before", "after"])
def test_tasks_share_the_memory_and_the_least_surprising_rows_go(
    when: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    settings = {"name": "sure", "memory_size": 12, "surprise_when": when}
    session = begin(make_config("training.epochs=1", method=settings), tmp_path / "run")
    held = []
    for phase in train(session):
        names = ["one", "two", "three"][: phase.index]
        assert {name: len(ids(session, name)) for name in names} == dict.fromkeys(names, 12 // phase.index)
        held.append(ids(session, "one"))
    assert held[2] == held[1][:4] == held[0][:4]
    assert held[1] == held[0][:6]


def test_only_earlier_tasks_are_replayed_unless_told_otherwise(make_config: MakeConfig, tmp_path: Path) -> None:
    for number, (draws, expected) in enumerate({"earlier_tasks": 0, "whole_memory": 8}.items()):
        settings = {"name": "sure", "memory_size": 12, "replay_from": draws}
        session = begin(make_config("data.tasks=[one]", "training.epochs=1", method=settings), tmp_path / f"{number}")
        seen: list[Example] = []
        original = session.method.extend_batch

        def watching(rows: list[Example], original: object = original, seen: list[Example] = seen) -> list[Example]:
            made: list[Example] = original(rows)  # type: ignore[operator]
            seen.extend(row for row in made if row.replayed)
            return made

        session.method.extend_batch = watching  # type: ignore[method-assign]
        for _ in train(session):
            pass
        assert len(seen) == expected * 3


def test_the_slow_adapter_follows_and_answers(tiny_model: Path) -> None:
    made = method(tiny_model, ema_decay=0.9)
    made.begin_task()
    model = made.engine.model
    slow = snapshot(model, "slow")
    assert made.variants == ["slow", "fast"]
    for _ in range(2):
        for parameter in made.trainable:
            parameter.data.normal_()
        fast = snapshot(model, "fast")
        made.after_step()
        slow = {key: 0.9 * value + 0.1 * fast[key] for key, value in slow.items()}
    for key, value in snapshot(model, "slow").items():
        torch.testing.assert_close(value, slow[key])


def test_the_memory_keeps_the_first_of_each_task() -> None:
    def rows(task: str, count: int) -> list[Example]:
        return [Example(task, f"{task}{number}", [5], [number % 3, 1]) for number in range(count)]

    memory = ReplayMemory(9, seed=0)
    memory.keep_first(rows("a", 20))
    assert memory.examples == rows("a", 9)
    memory.keep_first(rows("b", 2))  # too few: its places go to the other
    assert Counter(row.task for row in memory.examples) == {"a": 7, "b": 2}
    memory.keep_first(rows("c", 20))
    assert Counter(row.task for row in memory.examples) in ({"a": 4, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 4})
    memory.resize(6)
    for task in "abc":
        assert [row for row in memory.examples if row.task == task] == rows(task, 2)


def test_rows_that_are_ranked_too_late_to_be_drawn_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="surprise_when after stores a task's rows at its end"):
        make_config(method={"name": "sure", "surprise_when": "after", "replay_from": "whole_memory"})


def test_equal_rows_are_ranked_by_their_number(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = method(tiny_model)
    values: Tensor = torch.tensor([1.00001, 1.00002, 1.0])
    monkeypatch.setattr(made, "surprise", lambda _rows: values)
    made.begin_task()
    assert made.memory.examples == ROWS[:2]
