"""Tasks given from Python: their rows go into the run folder, and the run is like one from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from ilora import InputError, Row, Task, add, load_config, resume, run
from ilora.data.digests import fingerprint
from ilora.handover.card import Wishes
from ilora.handover.export import export_source
from ilora.handover.source import from_run
from ilora.in_memory import given_tasks, write_files
from ilora.stream import load_tasks
from tests.helpers import FEW_SCORES, MakeConfig, difference, task_rows, weights


def rows(name: str, **sizes: int) -> dict[str, list[dict[str, str]]]:
    splits = {"train": 24, "eval": 6, "test": 8} | sizes
    return {split: task_rows(name, count, seed=seed) for seed, (split, count) in enumerate(splits.items())}


FORMS: dict[str, Any] = {
    "rows": lambda found: [Row(**row) for row in found],
    "mappings": lambda found: found,
    "a data set": Dataset.from_list,
    "chat": lambda found: [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]}
        for row in found
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_resume_reads_the_same_tasks_from_the_folder(form: str, make_config: MakeConfig, tmp_path: Path) -> None:
    given = [Task(name, {split: FORMS[form](part) for split, part in rows(name).items()}) for name in ("one", "Two b")]
    config = make_config(data={"tasks": ["x"], "limit": {"train": 10, "test": 5}, "deduplicate": True})
    config, tasks, files = given_tasks(given, config, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    write_files(files)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["one", "two-b"]
    again = load_tasks(config.data)
    assert [fingerprint(task) for task in again] == [fingerprint(task) for task in tasks]
    assert [task.source for task in again] == [task.source for task in tasks]
    assert [len(task.rows["train"]) for task in tasks] == [10, 10]
    assert set(tasks[0].choices) == {"cat", "dog", "owl", "fox"}  # inferred


@pytest.mark.parametrize("metric", ["accuracy", "exact", "rouge_l"])
def test_metric_and_choices_stay_as_given(metric: str, make_config: MakeConfig, tmp_path: Path) -> None:
    choices = ("cat", "dog", "owl", "fox", "hen") if metric == "accuracy" else ()
    task = Task("one", rows("one"), metric=metric, choices=choices, max_new_tokens=3, frame=("one ", " :"))
    config, tasks, files = given_tasks([task], make_config(), tmp_path / "data")
    write_files(files)
    (again,) = load_tasks(config.data)
    for found in (*tasks, again):
        assert (found.metric, found.choices, found.max_new_tokens) == (metric, choices, 3)
        assert found.frame == ("one ", " :")
    assert fingerprint(again) == fingerprint(tasks[0])


def test_a_run_is_that_of_the_same_rows_in_files(make_config: MakeConfig, tmp_path: Path) -> None:
    given = [
        Task(name, {split: Dataset.from_list(part) for split, part in rows(name).items()}) for name in ("one", "two")
    ]
    values = make_config("training.epochs=1").dump()
    whole = run(make_config("training.epochs=1", "data.tasks=[one, two]"), tmp_path / "files", quiet=True)
    del values["data"]
    made = run(
        values | {"data": {"max_length": 64, "template": "none"}}, tmp_path / "memory", tasks=given[:1], quiet=True
    )
    assert made.results["complete"]
    made = add(tmp_path / "memory", given[1:], quiet=True)
    assert difference(weights(whole.path), weights(made.path)) == 0.0
    assert made.results["variants"] == whole.results["variants"]
    assert resume(tmp_path / "memory", quiet=True).results["complete"]
    assert load_config(tmp_path / "memory" / "config.yaml").data.tasks[0].path == tmp_path / "memory" / "data" / "one"
    lines = (tmp_path / "memory" / "data" / "two" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows("two")["test"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no train": ({"test": rows("a")["test"]}, "task 'a': no 'train' split"),
    "a split of another name": (rows("a") | {"validation": []}, "task 'a': unknown split 'validation'"),
    "no rows": (rows("a") | {"train": []}, "task 'a', train: no rows"),
    "no answer": (rows("a") | {"test": [{"prompt": "x"}]}, "task 'a', test, row 0: no 'answer'"),
    "no row": (rows("a") | {"test": ["x"]}, "task 'a', test, row 0: the row is"),
    "half a character": (rows("a") | {"test": [{"prompt": "\ud800", "answer": "x"}]}, "task 'a', test, row 0: "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named_and_nothing_is_written(case: str, make_config: MakeConfig, tmp_path: Path) -> None:
    given, message = BAD[case]
    with pytest.raises(InputError, match=message):
        run(make_config(), tmp_path / "run", tasks=[Task("a", given)], quiet=True)
    assert not (tmp_path / "run").exists()


def test_two_tasks_of_one_name(make_config: MakeConfig, tmp_path: Path) -> None:
    twice = [Task("a", rows("a")), Task("A", rows("a"))]
    with pytest.raises(InputError, match="'a' and 'A'"):
        run(make_config(), tmp_path / "run", tasks=twice, quiet=True)


def test_a_mapping_is_a_task_and_how_its_rows_were_read_is_kept(make_config: MakeConfig, tmp_path: Path) -> None:
    """On the card, too, with what was split off."""
    asked = [{"question": row["prompt"], "label": row["answer"], "id": 1} for row in task_rows("jan", 40, seed=0)]
    config = make_config("training.epochs=1", *FEW_SCORES)
    made = run(config, tmp_path / "run", tasks=[{"name": "jan", "rows": {"train": asked}}], quiet=True)
    (task,) = made.results["tasks"]
    assert task["read_as"] == "prompt = 'question', answer = 'label'; not read: 'id'"
    assert task["train"] + task["eval"] + task["test"] == 40
    (tmp_path / "run" / "results.json").unlink()
    assert resume(tmp_path / "run", quiet=True).results["tasks"] == [task]
    export_source(from_run(tmp_path / "run"), tmp_path / "out", kind="peft", wishes=Wishes())
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (f"{task['test']} rows for test", "by a hash of the prompt", "10% for test, 10% for eval", "question"):
        assert part in card


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "a", "path": "a.csv"}, r"tasks\[0\]: path: .*data\.tasks"),
        ({"name": "a", "row": {}}, r"unknown key 'row' \(did you mean 'rows'\?\)"),
        ({"name": "a", "rows": []}, r"tasks\[0\]: give `name`, and `rows`"),
        ({"rows": {}}, r"tasks\[0\]: give `name`"),
        ("a.csv", r"tasks\[0\]: found str; give a Task"),
        (3, r"tasks\[0\]: found int; give a Task"),
    ],
)
def test_what_is_no_task_is_refused(given: Any, message: str, make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(make_config(), tmp_path / "run", tasks=[given], quiet=True)
