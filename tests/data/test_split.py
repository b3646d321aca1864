"""Splits taken from training rows: by the prompt alone, so that a row stays on its side month after month."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ilora.data.split import split_off
from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.settings import DataConfig, SplitConfig
from ilora.stream import load_tasks, reading_notes


def rows(first: int, last: int) -> list[Row]:
    return [Row(f"question {number}", "ab"[number % 2]) for number in range(first, last)]


def sides(task: Task) -> dict[str, str]:
    return {row.prompt: split for split, found in task.rows.items() for row in found}


def test_the_shares() -> None:
    task = split_off(Task("jan", {"train": rows(0, 2000)}), SplitConfig(test=0.1, eval=0.05))
    sizes = {split: len(found) for split, found in task.rows.items()}
    assert list(sizes) == ["train", "eval", "test"]
    assert sum(sizes.values()) == 2000
    assert abs(sizes["test"] - 200) < 4 * 13.5  # four standard deviations of a binomial count
    assert abs(sizes["eval"] - 100) < 4 * 9.8
    assert task.split_off == {"test": sizes["test"], "eval": sizes["eval"]}


def test_a_row_never_changes_sides() -> None:
    january = split_off(Task("jan", {"train": rows(0, 400)}), SplitConfig())
    february = split_off(Task("feb", {"train": [*reversed(rows(200, 600)), Row(" QUESTION 7", "x")]}), SplitConfig())
    before, after = sides(january), sides(february)
    assert {prompt: before[prompt] for prompt in before.keys() & after.keys()} == {
        prompt: after[prompt] for prompt in before.keys() & after.keys()
    }
    assert after[" QUESTION 7"] == before["question 7"]  # another spelling is the same prompt
    other = sides(split_off(Task("jan", {"train": rows(0, 400)}), SplitConfig(seed=1)))
    assert other != before


def test_what_is_there_stays() -> None:
    whole = Task("a", {"train": rows(0, 50), "test": rows(100, 110)})
    assert split_off(whole, SplitConfig()) is whole  # nothing reads eval unless something is tuned
    tuned = split_off(whole, SplitConfig(eval=0.3))
    assert tuned.rows["test"] == whole.rows["test"]
    assert set(tuned.split_off) == {"eval"}
    given = split_off(Task("a", {"train": rows(0, 50), "eval": rows(60, 65)}), SplitConfig(test=0.3))
    assert given.rows["eval"] == rows(60, 65)
    assert set(given.split_off) == {"test"}


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match=r"task 'a': 3 distinct prompts are too few .*data\.split\.test"):
        split_off(Task("a", {"train": rows(0, 3)}), SplitConfig())


def test_one_file_is_a_task(tmp_path: Path) -> None:
    path = tmp_path / "jan.jsonl"
    path.write_text("".join(json.dumps({"question": row.prompt, "label": row.answer}) + "\n" for row in rows(0, 200)))
    config = DataConfig(path=path, limit={"train": 50, "test": 5})
    (task,) = load_tasks(config)
    assert task.name == "jan"
    assert len(task.rows["train"]) == 50
    assert len(task.rows["test"]) == 5
    held_out = {row.prompt for row in split_off(Task("jan", {"train": rows(0, 200)}), SplitConfig()).rows["test"]}
    assert {row.prompt for row in task.rows["test"]} <= held_out  # the limit comes after the split
    levels = [level for level, _ in reading_notes(task)]
    assert levels == ["note", "note", "warning"]


def test_every_turn_becomes_a_training_row(tmp_path: Path) -> None:
    def chat(number: int) -> dict[str, object]:
        turns = [("user", f"one {number}"), ("assistant", "a"), ("user", "two"), ("assistant", "b")]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(chat(number)) + "\n" for number in range(60)))
    (last,) = load_tasks(DataConfig(path=path))
    (every,) = load_tasks(DataConfig(path=path, train_on="assistant"))
    firsts = [row for row in every.rows["train"] if row.answer == "a"]
    assert [row for row in every.rows["train"] if row.answer == "b"] == last.rows["train"]
    assert len(last.rows["train"]) > len(firsts) > len(last.rows["train"]) / 2  # less those of the other splits
    assert every.rows["test"] == last.rows["test"]


def test_a_turn_that_is_tested_is_not_trained(tmp_path: Path) -> None:
    def chat(number: int, *, longer: bool) -> dict[str, object]:
        turns = [("user", f"one {number}"), ("assistant", "a"), *([("user", "sure?"), ("assistant", "a")] * longer)]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    path = tmp_path / "chats.jsonl"
    rows = [chat(number, longer=longer) for number in range(200) for longer in (False, True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = load_tasks(DataConfig(path=path, train_on="assistant"))
    tested = {row.prompt for row in task.rows["test"]}
    assert tested
    assert not tested & {row.prompt for row in task.rows["train"]}


def test_a_turn_of_a_conversation_stays_on_its_side(tmp_path: Path) -> None:
    """A question that January tests is not trained as the first turn of a longer conversation of February."""
    talks = [
        [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "a"}]
        for number in range(100)
    ]
    again = [{"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]
    for name, found in (("jan", talks), ("feb", [[*talk, *again] for talk in talks])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in found))
    given = {"tasks": [{"name": name, "path": tmp_path / f"{name}.jsonl"} for name in ("jan", "feb")]}
    jan, feb = load_tasks(DataConfig.model_validate({**given, "train_on": "assistant"}))
    held_out = {row.prompt for split in ("test", "eval") for row in jan.rows[split]}
    trained = {row.prompt for row in feb.rows["train"]}
    assert held_out
    assert not held_out & trained
    assert trained & {row.prompt for row in jan.rows["train"]}
