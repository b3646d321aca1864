"""The stream: where tasks come from, what their names may be, which rows a limit keeps, and what identifies them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ilora.benchmarks import BENCHMARKS
from ilora.config import Config, load_config
from ilora.data.digests import fingerprint
from ilora.data.task import Row, Task, phases, task_label
from ilora.errors import InputError
from ilora.settings import DataConfig
from ilora.stream import load_tasks, reading_notes, resolve
from tests.helpers import write_task

LETTERS = [{"prompt": f"question {number}", "answer": "ABC"[number % 3]} for number in range(9)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    return path


def load(**settings: Any) -> list[Task]:
    return load_tasks(DataConfig(**settings))


def prompts(task: Task, split: str) -> list[str]:
    return [row.prompt for row in task.rows[split]]


# -- sources -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_task_folders(data: Path) -> None:
    assert [task.name for task in load(path=data)] == ["one", "three", "two"]  # sorted, unless an order is given
    tasks = load(path=data, tasks=["two", "one"])
    assert [task.name for task in tasks] == ["two", "one"]
    stored = json.loads((data / "two" / "test.json").read_text())
    assert tasks[0].rows["test"] == [Row(row["prompt"], row["answer"]) for row in stored]
    assert {split: len(rows) for split, rows in tasks[0].rows.items()} == {"train": 24, "eval": 6, "test": 8}
    assert (tasks[0].metric, tasks[0].choices) == ("accuracy", ("cat", "dog", "fox", "owl"))
    assert tasks[0].source == str(data / "two")


def test_explicit_files_of_both_formats_and_a_task_folder_elsewhere(tmp_path: Path) -> None:
    train = write(tmp_path / "a.json", [{"question": "q", "label": "A"}])
    test = write(tmp_path / "b.jsonl", [{"question": "r", "label": "B"}])
    with pytest.raises(InputError, match=r"'B' does not fit the metric 'accuracy'.*none of the choices 'A'"):
        load(tasks=[{"name": "x", "train": train, "test": test, "columns": {"prompt": "question", "answer": "label"}}])
    columns = {"prompt": "question", "answer": "label"}
    files = {"name": "x", "train": train, "test": test, "columns": columns, "choices": ["A", "B"]}
    folder = {"name": "y", "path": write_task(tmp_path, "elsewhere")}
    x, y = load(tasks=[files, folder])
    assert x.rows == {"train": [Row("q", "A")], "test": [Row("r", "B")]}
    assert (y.name, len(y.rows["train"])) == ("y", 24)


def test_chat_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there, friend"}]
    files = {split: write(tmp_path / f"{split}.jsonl", [{"messages": turns}]) for split in ("train", "test")}
    (task,) = load(tasks=[{"name": "chat"} | files])
    assert task.rows["train"] == [Row("Hi", "Hello there, friend", (turns[0],))]


def test_a_hub_data_set_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional `datasets` library is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, rows in {"train": LETTERS, "validation": LETTERS[:2], "test": LETTERS[2:5]}.items():
        write(tmp_path / "set" / f"{name}.jsonl", rows)
    whole, cut = load(
        tasks=[
            {"name": "whole", "dataset": str(tmp_path / "set")},
            {"name": "cut", "dataset": str(tmp_path / "set"), "splits": {"train": "train[:4]", "test": "test"}},
        ]
    )
    assert [len(whole.rows[split]) for split in ("train", "eval", "test")] == [9, 2, 3]
    assert whole.choices == ("A", "B", "C")
    assert prompts(cut, "train") == [f"question {number}" for number in range(4)]
    assert "eval" not in cut.rows


def test_a_benchmark_and_some_of_its_tasks() -> None:
    everything = load(benchmark="mini8")
    names = [task.name for task in BENCHMARKS["mini8"]()]
    assert [task.name for task in everything] == names
    some = load(benchmark="mini8", tasks=[names[3], names[0]])
    assert some == [everything[3], everything[0]]


def test_a_benchmark_and_own_tasks_in_one_stream(tmp_path: Path) -> None:
    name = BENCHMARKS["mini8"]()[0].name
    own = {"name": "own", "path": write_task(tmp_path, "own")}
    assert [task.name for task in load(benchmark="mini8", tasks=[own, name])] == ["own", name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "DATA", "tasks": ["thre"]}, r"no task 'thre' \(did you mean 'three'\?\); there are one, three, two"),
        ({"benchmark": "mini9"}, r"unknown benchmark 'mini9' \(did you mean 'mini8'\?\)"),
        ({"benchmark": "mini8", "tasks": ["nothing like it"]}, r"unknown task 'nothing like it'; known: .*,"),
        ({"tasks": ["alone"]}, "unknown task 'alone'; known: none: give the task a path, files or a dataset"),
        ({"path": "DATA/none"}, "no such file or folder"),
        ({"path": "DATA", "tasks": [{"name": "one", "metric": "accurcy"}]}, r"unknown metric .*mean 'accuracy'\?"),
    ],
)
def test_sources_that_cannot_be_used(data: Path, settings: dict[str, Any], message: str) -> None:
    if "path" in settings:
        settings = settings | {"path": settings["path"].replace("DATA", str(data))}
    with pytest.raises(InputError, match=message):
        load(**settings)


def test_an_unknown_task_of_a_benchmark_names_the_nearest() -> None:
    name = BENCHMARKS["mini8"]()[0].name
    with pytest.raises(InputError, match=rf"unknown task '{name}x' \(did you mean '{name}'\?\)"):
        load(benchmark="mini8", tasks=[f"{name}x"])


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *["", ".", "..", "../a", "a/b", "a\\b", "a..b", "a.", "a ", " a", "-a", "_a", "x" * 65],
        *["a\n", "a\tb", "a\x00b", "\x1b[31m", "\u202eabc", "a\u2028b"],
        *["<script>", "a<b", "a&b", "a'b", 'a"b', "a:b"],
    ],
)
def test_names_that_could_leave_the_run_folder_or_the_page(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task name .*: allowed are"):
        load(path=tmp_path, tasks=[name])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("FOMC", "fomc"),
        ("C-STANCE", "c-stance"),
        ("20Minuten", "20minuten"),
        ("Größe 中", "größe-中"),
        ("a.b+c", "a.b+c"),
    ],
)
def test_labels(name: str, label: str) -> None:
    assert task_label(name) == label


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Jan (2).csv", "Jan-2"),
        ("2026.01.csv", "2026.01"),
        ("_new..rows!.csv", "new.rows"),
        ("fe\u0301vrier & mars.csv", "f\u00e9vrier-mars"),  # as macOS writes it
        ("x" * 80 + ".csv", "x" * 64),
    ],
)
def test_a_task_is_named_after_its_file_without_what_a_name_may_not_have(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text("prompt,answer\n" + "".join(f"q{row},a{row % 2}\n" for row in range(40)))
    (task,) = load(path=tmp_path)
    assert task.name == name
    told = any(file in text for _, text in reading_notes(task))
    assert told == (name != Path(file).stem)
    assert load(path=tmp_path / file)[0].name == name


def test_a_file_of_which_no_name_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "---.csv").write_text("prompt,answer\nq,a\n")
    with pytest.raises(InputError, match=r"---\.csv: no task name can be made"):
        load(path=tmp_path)


@pytest.mark.parametrize("other", ["one", "One", "ONE"])
def test_duplicate_names_are_refused_case_aside(data: Path, other: str) -> None:
    with pytest.raises(InputError, match=f"duplicate task names 'one' and '{other}'"):
        load(path=data, tasks=["one", other])


def test_names_of_one_label_are_duplicates(data: Path) -> None:
    folder = str(data / "one")
    with pytest.raises(InputError, match="duplicate task names 'a b' and 'A-b'"):
        load(tasks=[{"name": "a b", "path": folder}, {"name": "A-b", "path": folder}])


# -- judging -----------------------------------------------------------------------------------------------------------


def test_metric_choices_and_scoring_of_the_configuration_win(data: Path) -> None:
    own = {"name": "one", "metric": "exact", "choices": ["fox", "owl", "dog", "cat"], "scoring": "rank"}
    (task,) = load(path=data, tasks=[own | {"max_new_tokens": 9}])
    assert (task.metric, task.scoring, task.max_new_tokens) == ("exact", "rank", 9)
    assert task.choices == ("fox", "owl", "dog", "cat")


def test_rank_needs_choices(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "answer": f"a sentence of its own, number {number}"} for number in range(3)]
    files = {split: write(tmp_path / f"{split}.json", rows) for split in ("train", "test")}
    with pytest.raises(InputError, match="task 'x': scoring: rank needs `choices`"):
        load(tasks=[{"name": "x", "scoring": "rank"} | files])


def test_references_that_the_metric_cannot_read_are_refused_at_once(data: Path) -> None:
    with pytest.raises(
        InputError, match=r"(?s)task 'one', train: .*row 1: reference answer .* does not fit .*'accuracy'"
    ):
        load(path=data, tasks=[{"name": "one", "choices": ["yes", "no"]}])


# -- limits ------------------------------------------------------------------------------------------------------------


def test_limits_keep_a_fixed_random_subset_in_order(data: Path) -> None:
    whole = load(path=data)
    cut = load(path=data, limit={"train": 10, "test": 8, "eval": 100})
    again = load(path=data, limit={"train": 10})
    numbers = []
    for full, part, other in zip(whole, cut, again, strict=True):
        kept = [prompts(full, "train").index(prompt) for prompt in prompts(part, "train")]
        assert kept == sorted(set(kept))
        assert len(kept) == 10
        assert kept != list(range(10))  # random, not the first ones
        numbers.append(kept)
        assert part.rows["test"] == full.rows["test"]
        assert part.rows["eval"] == full.rows["eval"]
        assert part.rows["train"] == other.rows["train"]
    assert numbers[0] != numbers[1]  # each task its own


def test_limits_do_not_depend_on_the_runs_seed_or_on_the_other_tasks(make_config: Callable[..., Config]) -> None:
    one = load_tasks(make_config("seed=1", "data.limit.train=5").data)
    two = load_tasks(make_config("seed=2", "data.limit.train=5").data)
    alone = load_tasks(make_config("data.tasks=[three]", "data.limit.train=5").data)
    assert [task.rows for task in one] == [task.rows for task in two]
    assert one[2] == alone[0]


def test_each_split_has_a_subset_of_its_own(tmp_path: Path) -> None:
    files = {split: write(tmp_path / f"{split}.json", LETTERS * 4) for split in ("train", "test")}
    (task,) = load(tasks=[{"name": "x"} | files], limit={"train": 9, "test": 9})
    assert prompts(task, "train") != prompts(task, "test")


def test_a_limit_of_a_benchmark_is_its_size() -> None:
    for task in load(benchmark="mini8", limit={"train": 12, "test": 5}):
        assert (len(task.rows["train"]), len(task.rows["test"])) == (12, 5)


# -- phases, identity, paths -------------------------------------------------------------------------------------------


def test_phases(data: Path) -> None:
    tasks = load(path=data, tasks=["two", "one"])
    assert [(phase.label, phase.tasks) for phase in phases(tasks, "sequential")] == [
        ("01-two", (tasks[0],)),
        ("02-one", (tasks[1],)),
    ]
    (joint,) = phases(tasks, "joint")
    assert (joint.label, joint.tasks) == ("01-joint", tuple(tasks))


def test_a_fingerprint_changes_with_everything_a_result_depends_on() -> None:
    rows = {"train": [Row("p", "a"), Row("q", "b")], "test": [Row("r", "c", ({"role": "user", "content": "r"},))]}
    task = Task("t", rows, choices=("a", "b"), source="here")
    swapped = {"train": rows["train"][::-1], "test": rows["test"]}
    changed = [
        replace(task, rows={**rows, "train": [Row("p", "a"), Row("q", "b ")]}),
        replace(task, rows={**rows, "train": [Row("p", "a"), Row("Q", "b")]}),
        replace(task, rows={**rows, "train": rows["train"][:1]}),
        replace(task, rows=swapped),
        replace(task, rows={**rows, "test": [Row("r", "c", ({"role": "system", "content": "r"},))]}),
        replace(task, rows={**rows, "test": [Row("r", "c")]}),
        replace(task, rows={"train": rows["train"], "eval": rows["test"]}),
        replace(task, name="u"),
        replace(task, metric="exact"),
        replace(task, choices=("b", "a")),
        replace(task, scoring="rank"),
        replace(task, max_new_tokens=3),
    ]
    marks = [fingerprint(item) for item in [task, *changed]]
    assert len(set(marks)) == len(marks)
    assert fingerprint(replace(task, source="there")) == marks[0]


def test_resolve_spells_out_the_tasks_and_makes_paths_absolute(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    (data.parent / "base").mkdir(exist_ok=True)
    given = load_config({"data": {"path": data.name}, "model": {"name": "base"}})
    config = resolve(given, load_tasks(given.data))
    assert config.data.path == data
    assert [task.name for task in config.data.tasks or []] == ["one", "three", "two"]
    assert config.model.name == str(data.parent / "base")
    monkeypatch.chdir("/")
    assert load_config(config.dump()) == config  # and what is written is what was meant
    assert [task.name for task in load_tasks(config.data)] == ["one", "three", "two"]


def test_resolve_makes_the_paths_of_each_task_absolute(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    given = load_config(
        {
            "data": {
                "tasks": [
                    {"name": "a", "path": "one"},
                    {"name": "b", "train": "two/train.json", "test": "two/test.json"},
                    {"name": "c", "dataset": "three"},
                    {"name": "d", "dataset": "owner/name"},
                ]
            }
        }
    )
    config = resolve(given, [])
    a, b, c, d = config.data.tasks or []
    assert a.path == data / "one"
    assert (b.train, b.eval, b.test) == (data / "two/train.json", None, data / "two/test.json")
    assert (c.dataset, d.dataset) == (str(data / "three"), "owner/name")
    assert config.model == given.model  # an alias stays one
