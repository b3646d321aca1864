"""The named benchmarks over files: originals and packages give the same rows, with each task's metric and choices."""

from __future__ import annotations

import csv
import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ilora.benchmarks import BENCHMARKS, Stream
from ilora.benchmarks.sources import tenth
from ilora.benchmarks.trace import SPECS
from ilora.config import load_config
from ilora.data.duplicates import find_repeats
from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.settings import DataConfig
from ilora.stream import load_tasks

EIGHT = ["C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "20Minuten", "MedMCQA", "JEC-QA"]
FOMC_FRAME = (
    "What is the monetary policy stance for the following text? A. dovish, B. hawkish, C. neutral. "
    "Choose one from A, B and C.\nText:\n",
    "\nStance:",
)
# For every task one original entry that is a row, and the row of it; and entries that are no rows of the task.
ORIGINAL: dict[str, tuple[dict[str, Any], Row]] = {
    "C-STANCE": (
        {"Text": "喜欢", "Target 1": "夜车", "Stance 1": "反对", "Type": "claims"},
        Row(
            "判断以下文本对指定对象的态度，选择一项：A.支持，B.反对，C.中立。输出A，B或者C。\n"
            "文本：\n喜欢\n对象：\n夜车\n态度：",
            "B",
        ),
    ),
    "FOMC": (
        {"index": 3, "sentence": "Rates rose.", "year": 1999, "label": 1},
        Row(f"{FOMC_FRAME[0]}Rates rose.{FOMC_FRAME[1]}", "B"),
    ),
    "MeetingBank": (
        {"id": 1, "transcript": "Aye.", "summary": "Passed."},
        Row(
            "Write a summary of the following meeting transcripts.\nMeeting transcripts:\nAye.\nSummary:", "Passed."
        ),
    ),
    "ScienceQA": (
        {"question": "Why?", "choices": ["x", "y"], "answer": 1, "hint": "Look.", "image": None, "lecture": "L. ",
         "solution": "S."},
        Row(
            "Choose an answer for the following question and give your reasons.\n\nQuestion:\nWhy?\n\nHint:\nLook.\n\n"
            "Choices:\nA. x\nB. y\n\nAnswer:",
            "B\nL. S.",
        ),
    ),
    "NumGLUE-cm": (
        {"question": "2 + 2?", "answer": 4, "type": "Type_1"},
        Row("Solve the following math problem.\nQuestion:\n2 + 2?\nAnswer:", "4"),
    ),
    "20Minuten": (
        {"content": {"0": "Erstens.", "1": ["Zweitens.", "Drittens."]}, "summary": ["Kurz.", "Gut."]},
        Row(
            "Provide a simplified version of the following paragraph in German.\n\nParagraph:\n"
            "Erstens. Zweitens. Drittens.\n\nSimplification:",
            "Kurz. Gut.\n",
        ),
    ),
    "MedMCQA": (
        {"question": "Where?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 3, "choice_type": "single"},
        Row(
            "Solve the following medical problem by choosing the correct answer from following four choices.\n"
            "Question:\nWhere?\nChoices:\nA. a\nB. b\nC. c\nD. d\nAnswer:",
            "C",
        ),
    ),
    "JEC-QA": (
        {"statement": "谁?", "option_list": {"A": "甲", "B": "乙", "C": "丙", "D": "丁"}, "answer": ["D"]},
        Row(
            "根据以下法律问题，从选项A，B，C，D中选择一项正确的答案\n问题：谁?\n选项：\n"
            "A. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：",
            "D",
        ),
    ),
    "NumGLUE-ds": (
        {"question": "How many mol?", "answer": "2.5", "type": "Type_2"},
        Row("Solve the following math problem.\nQuestion:\nHow many mol?\nAnswer:", "2.5"),
    ),
    "Py150": ({"id": 0, "input": "<s> import os <EOL>", "gt": "import sys"}, Row("<s> import os <EOL>", "import sys")),
}  # fmt: skip
SPEC = {spec.name: spec for spec in SPECS}


def varied(entry: dict[str, Any], number: int) -> dict[str, Any]:
    """The entry with another text in its first text field."""
    field = next(
        key for key in ("Text", "sentence", "transcript", "question", "statement", "input", "content") if key in entry
    )
    value = entry[field]
    return {**entry, field: {"0": f"Satz {number}."} if isinstance(value, dict) else f"{value} {number}"}


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries), encoding="utf-8")


def load(folder: Path, *names: str, **settings: Any) -> list[Task]:
    return load_tasks(DataConfig(benchmark="trace8", path=folder, tasks=list(names) or None, **settings))


def originals(folder: Path, *, train: int = 40) -> None:
    """Every task in a form its own release has, named as there."""
    names = {"NumGLUE-cm": "NumGLUE", "NumGLUE-ds": "NumGLUE"}
    for name, (entry, _) in ORIGINAL.items():
        place = folder / names.get(name, name).lower()
        for split, count in {"train": train, "validation": 5, "test": 5}.items():
            entries = [varied(entry, len(split) * 1000 + number) for number in range(count)]
            if name == "C-STANCE":
                place.mkdir(parents=True, exist_ok=True)
                with (place / f"raw_{split}_all_onecol.csv").open("w", encoding="utf-8-sig", newline="") as file:
                    writer = csv.DictWriter(file, list(entry))
                    writer.writeheader()
                    writer.writerows(entries)
            elif name == "ScienceQA":
                path = place / "problems.json"
                before = json.loads(path.read_text()) if path.is_file() else {}
                named = {"train": "train", "validation": "val", "test": "test"}[split]
                ids = {f"{split}{i}": {**item, "split": named} for i, item in enumerate(entries)}
                place.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(before | ids), encoding="utf-8")
            elif name.startswith("NumGLUE"):
                path = place / f"NumGLUE_{split}.json"
                before = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
                write_lines(path, before + entries)
            else:
                write_lines(place / f"{split}.json", entries)


def test_all_ten_from_their_originals(tmp_path: Path) -> None:
    originals(tmp_path)
    assert [task.name for task in load(tmp_path)] == EIGHT
    for task in load(tmp_path, *ORIGINAL):
        spec = SPEC[task.name]
        assert {split: len(rows) for split, rows in task.rows.items()} == {"train": 40, "eval": 5, "test": 5}, task.name
        assert (task.metric, task.choices, task.max_new_tokens) == (spec.metric, spec.choices, spec.max_new_tokens)
        for rows in task.rows.values():
            assert all(row.prompt.startswith(spec.frame[0]) and row.prompt.endswith(spec.frame[1]) for row in rows)
    (one,) = load(tmp_path, "NumGLUE-ds")
    assert "50 entries are no rows of this task" in one.source  # those of type 1


@pytest.mark.parametrize("name", ORIGINAL)
def test_an_original_entry(name: str) -> None:
    entry, row = ORIGINAL[name]
    assert SPEC[name].row(entry) == row
    assert SPEC[name].row({"prompt": row.prompt, "answer": row.answer}) == row


def test_a_package_and_the_originals_give_the_same_tasks(tmp_path: Path) -> None:
    originals(tmp_path / "raw")
    raw = load(tmp_path / "raw", *ORIGINAL)
    for task in raw:
        folder = tmp_path / "package" / task.name
        folder.mkdir(parents=True)
        for split, rows in task.rows.items():
            content = [{"prompt": row.prompt, "answer": row.answer} for row in rows]
            (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    for one, other in zip(raw, load(tmp_path / "package", *ORIGINAL), strict=True):
        assert (one.rows, one.metric, one.choices, one.frame) == (other.rows, other.metric, other.choices, other.frame)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ScienceQA", {"image": "image.png"}), ("NumGLUE-cm", {"type": "Type_8"}), ("NumGLUE-ds", {"type": "Type_1"}),
        ("MedMCQA", {"cop": None}), ("MedMCQA", {"cop": -1}),
        ("20Minuten", {"summary": []}), ("20Minuten", {"summary": "None"}), ("20Minuten", {"content": {"0": ""}}),
        ("JEC-QA", {"answer": []}), ("JEC-QA", {"answer": ["A", "B"]}), ("JEC-QA", {"answer": None}),
    ],
)  # fmt: skip
def test_entries_that_are_no_rows(name: str, change: dict[str, Any]) -> None:
    assert SPEC[name].row(ORIGINAL[name][0] | change) is None


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("FOMC", {"label": 3}, "'label' is 3; allowed are 0 to 2"), ("FOMC", {"label": "x"}, "allowed are 0 to 2"),
        ("FOMC", {"sentence": None}, "'sentence' is null"), ("FOMC", {"label": True}, "allowed are 0 to 2"),
        ("C-STANCE", {"Stance 1": "？"}, "'Stance 1' is '？'; allowed are 支持, 反对, 中立"),
        ("MedMCQA", {"cop": 5}, "'cop' is 5; allowed are 1 to 4"), ("MedMCQA", {"opb": ""}, "'opb' is empty"),
        ("JEC-QA", {"answer": ["E"]}, "'answer' is 'E'"), ("JEC-QA", {"option_list": ["x"]}, "'option_list' must be"),
        ("ScienceQA", {"choices": ["x"]}, "'choices' must be a list of 2 to 5"),
        ("ScienceQA", {"answer": 2}, "'answer' is 2; allowed are 0 to 1"),
        ("NumGLUE-cm", {"answer": {"number": "4"}}, "'answer' is an object"),
        ("20Minuten", {"summary": 3}, "'summary' is a number"),
        ("C-STANCE", {"Stance 1": ["支持"]}, "'Stance 1' is ['"),
        ("JEC-QA", {"answer": [["A"]]}, "'answer' is ['A']"), ("MedMCQA", {"cop": [1]}, "'cop' is [1]"),
        ("JEC-QA", {"option_list": {"A": None, "B": "", "C": "", "D": ""}}, "'option A' is null"),
        ("ScienceQA", {"choices": ["x", None]}, "'option B' is null"),
        ("ScienceQA", {"hint": ["x"]}, "'hint' is a list"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_used(tmp_path: Path, name: str, change: dict[str, Any], problem: str) -> None:
    folder = "NumGLUE" if name.startswith("NumGLUE") else name
    write_lines(tmp_path / folder / "train.json", [ORIGINAL[name][0], ORIGINAL[name][0] | change])
    with pytest.raises(InputError, match=rf"train\.json:2: .*{re.escape(problem)}"):
        load(tmp_path, name)


def test_the_official_folder_of_scienceqa(tmp_path: Path) -> None:
    splits = {"train": ["1", "2"], "val": ["3"], "test": ["4"]}
    entries = {i: ORIGINAL["ScienceQA"][0] | {"split": split} for split, ids in splits.items() for i in ids}
    (tmp_path / "scienceqa").mkdir()
    (tmp_path / "scienceqa" / "problems.json").write_text(json.dumps(entries))
    (tmp_path / "scienceqa" / "pid_splits.json").write_text(json.dumps(splits))
    (task,) = load(tmp_path, "ScienceQA")
    assert {split: len(rows) for split, rows in task.rows.items()} == {"train": 2, "eval": 1, "test": 1}


@pytest.mark.parametrize("summary", [{"0": "Kurz."}, ["Kurz."]])
def test_a_file_with_one_article_of_two_fields(tmp_path: Path, summary: Any) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / "20Minuten" / split).mkdir(parents=True)
        article = {"content": {"0": f"Satz {split}."}, "summary": summary}
        (tmp_path / "20Minuten" / split / "1.json").write_text(json.dumps(article))
    (task,) = load(tmp_path, "20Minuten")
    assert [row.answer for row in task.rows["train"]] == ["Kurz.\n"]


def test_articles_without_a_summary_are_counted(tmp_path: Path) -> None:
    entry = ORIGINAL["20Minuten"][0]
    for split in ("train", "test"):
        entries = [varied(entry, 1), varied(entry, 2), entry | {"summary": None}]
        write_lines(tmp_path / "20Minuten" / f"{split}.json", entries)
    (task,) = load(tmp_path, "20Minuten", resplit=True)
    assert sum(map(len, task.rows.values())) == 4
    assert "2 entries are no rows of this task" in task.source


def test_rows_that_are_the_same_stay_in_one_split(tmp_path: Path) -> None:
    entry = ORIGINAL["MedMCQA"][0]
    questions = [text for n in range(60) for text in (f"Where is item {n}?", f"where is  item {n}?")]
    write_lines(tmp_path / "MedMCQA" / "train.json", [entry | {"question": text} for text in questions])
    (task,) = load(tmp_path, "MedMCQA", resplit=True)
    assert not any(find_repeats(task).across.values())


def test_a_known_task_in_a_place_of_its_own(tmp_path: Path) -> None:
    """It keeps its metric, choices and conversion, from a folder as from files."""
    originals(tmp_path)
    (whole,) = load(tmp_path, "20Minuten")
    place = tmp_path / "20minuten"
    files = {split: place / f"{split}.json" for split in ("train", "test")} | {"eval": place / "validation.json"}
    for own in ({"path": place}, files):
        config = DataConfig.model_validate({"benchmark": "trace8", "tasks": [{"name": "20Minuten"} | own]})
        (task,) = load_tasks(config)
        assert (task.rows, task.metric, task.frame) == (whole.rows, "sari", whole.frame)
    for own, problem in (
        ({"path": tmp_path / "none"}, "no such folder"),
        ({"path": place, "columns": {"prompt": "content"}}, "leave `columns` out"),
    ):
        config = DataConfig.model_validate({"benchmark": "trace8", "tasks": [{"name": "20Minuten"} | own]})
        with pytest.raises(InputError, match=problem):
            load_tasks(config)


def test_a_stream_task_in_a_place_of_its_own(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps([{"sentence": f"{split} a", "label": "Good"}]))
    (tmp_path / "labels.json").write_text(json.dumps(["Good", "Bad"]))
    files = {split: tmp_path / f"{split}.json" for split in ("train", "test")}
    for own in ({"path": tmp_path}, files):
        config = DataConfig.model_validate({"benchmark": "long15", "tasks": [{"name": "SST-2"} | own]})
        (task,) = load_tasks(config)
        assert task.choices == ("Good", "Bad")
        assert task.rows["train"][0].prompt.startswith("What is the sentiment")


def test_only_a_benchmark_is_divided_anew(tmp_path: Path) -> None:
    write_lines(tmp_path / "own" / "train.jsonl", [{"prompt": "p", "answer": "A"}])
    for settings in ({"path": tmp_path}, {"benchmark": "trace8", "tasks": [{"name": "own", "path": tmp_path / "own"}]}):
        with pytest.raises(InputError, match=r"data\.resplit: .*task 'own'"):
            load_tasks(DataConfig.model_validate({"resplit": True} | settings))


def test_other_columns_are_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "FOMC" / "train.json", [{"text": "x", "label": 1}])
    with pytest.raises(
        InputError, match="no 'sentence' for FOMC, and no 'prompt' and 'answer'; the row has 'text', 'lab"
    ):
        load(tmp_path, "FOMC")


def test_fomc_from_excel(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="the optional openpyxl library is not installed")
    for split, count in {"train": 60, "test": 10}.items():
        book = openpyxl.Workbook()
        book.active.append(["", "index", "sentence", "year", "label"])
        for number in range(count):
            book.active.append([number, number, f"{split} sentence {number}", 2000, number % 3])
        (tmp_path / "fomc").mkdir(exist_ok=True)
        book.save(tmp_path / "fomc" / f"lab-manual-split-combine-{split}-5768.xlsx")
    (task,) = load(tmp_path, "FOMC")
    assert len(task.rows["test"]) == 10
    assert len(task.rows["train"]) + len(task.rows["eval"]) == 60  # no eval file: a tenth of train
    assert 0 < len(task.rows["eval"]) < 20
    assert {tenth(row) for row in task.rows["eval"]} == {"eval"}
    assert [row.answer for row in task.rows["test"][:3]] == ["A", "B", "C"]
    book = openpyxl.load_workbook(tmp_path / "fomc" / "lab-manual-split-combine-test-5768.xlsx")
    book.active.cell(row=20, column=3).font = openpyxl.styles.Font(bold=True)  # rows that are formatted and empty
    book.save(tmp_path / "fomc" / "lab-manual-split-combine-test-5768.xlsx")
    (again,) = load(tmp_path, "FOMC")
    assert again.rows == task.rows
    (tmp_path / "fomc" / "lab-manual-split-combine-train-944601.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"several files for train: .*5768.*944601.*; keep one of them"):
        load(tmp_path, "FOMC")


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    entries = [varied(ORIGINAL["JEC-QA"][0], number) for number in range(100)]
    write_lines(tmp_path / "JEC-QA" / "0_train.json", entries[:50])
    write_lines(tmp_path / "JEC-QA" / "1_train.json", entries[50:])  # two parts of one split
    with pytest.raises(InputError, match=r"no test rows with an answer; `data.resplit: true` divides"):
        load(tmp_path, "JEC-QA")
    (task,) = load(tmp_path, "JEC-QA", resplit=True)
    assert sum(len(rows) for rows in task.rows.values()) == 100
    assert all(task.rows.values())
    assert not any(find_repeats(task).across.values())
    write_lines(tmp_path / "MedMCQA" / "train.json", [varied(ORIGINAL["MedMCQA"][0], n) for n in range(80)])
    write_lines(tmp_path / "MedMCQA" / "dev.json", [varied(ORIGINAL["MedMCQA"][0], n + 100) for n in range(7)])
    write_lines(tmp_path / "MedMCQA" / "test.json", [ORIGINAL["MedMCQA"][0] | {"cop": None}])
    (task,) = load(tmp_path, "MedMCQA")
    assert len(task.rows["test"]) == 7  # the official test has no answers: dev stands in


def test_articles_one_a_file(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        for number in range(12):
            path = tmp_path / "20min" / split / f"{number}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(varied(ORIGINAL["20Minuten"][0], number), indent=1), encoding="utf-8")
    (tmp_path / "20min").rename(tmp_path / "20minuten")
    (task,) = load(tmp_path, "20Minuten")
    assert {split: len(rows) for split, rows in task.rows.items()} == {"train": 12, "eval": 12, "test": 12}


def test_a_subset_in_another_order_needs_only_its_folders(tmp_path: Path) -> None:
    write_lines(tmp_path / "fomc" / "train.json", [varied(ORIGINAL["FOMC"][0], number) for number in range(30)])
    write_lines(tmp_path / "fomc" / "test.json", [varied(ORIGINAL["FOMC"][0], 77)])
    with pytest.raises(InputError, match=r"no folder 'C-STANCE'.*folders there: fomc"):
        load(tmp_path)
    (task,) = load(tmp_path, "FOMC", limit={"train": 5})
    assert len(task.rows["train"]) == 5
    with pytest.raises(InputError, match=r"unknown task 'FOCM' \(did you mean 'FOMC'\?\)"):
        load(tmp_path, "FOCM")
    (other,) = load_tasks(
        DataConfig.model_validate(
            {
                "benchmark": "trace8",
                "path": tmp_path,
                "tasks": [{"name": "FOMC", "scoring": "rank", "max_new_tokens": 3}],
            }
        )
    )
    assert (other.scoring, other.max_new_tokens, other.choices) == ("rank", 3, ("A", "B", "C"))


def test_the_version_of_the_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.prompts.*trace-1"):
        load_config({"data": {"benchmark": "trace8", "prompts": "trace-2"}})
    kept = load_config({"data": {"benchmark": "trace8"}}).dump()  # what becomes a run's config.yaml
    assert kept["data"]["prompts"] == "trace-1"


def test_benchmarks_that_need_or_refuse_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'C-STANCE' is on no hub .*hub has FOMC, MeetingBank, ScienceQA"):
        load_tasks(DataConfig(benchmark="trace8", tasks=["C-STANCE"]))  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"data.path: the benchmark mini8 makes its own rows"):
        load_tasks(DataConfig(benchmark="mini8", path=tmp_path))


def test_the_hub_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder in the hub's place: there the right option of MedMCQA counts from 0."""
    datasets = pytest.importorskip("datasets", reason="the optional `datasets` library is not installed")
    entry, row = ORIGINAL["MedMCQA"]

    def load_dataset(name: str, subset: str | None, *, split: str, revision: str | None) -> Any:
        assert (name, subset) == ("openlifescienceai/medmcqa", None)
        rows = [{**entry, "cop": -1 if split == "test" else 2}] * (1 if split != "train" else 30)
        return datasets.Dataset.from_list([varied(item, number) for number, item in enumerate(rows)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("ilora.hub.within_reach", lambda *_, **__: nullcontext())
    (task,) = load_tasks(DataConfig(benchmark="trace8", tasks=["MedMCQA"]))  # type: ignore[list-item]
    assert task.rows["test"] == [Row(row.prompt.replace("Where?", "Where? 0"), "C")]
    assert task.source == "openlifescienceai/medmcqa"


def test_a_known_task_from_another_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hub's form of the columns; what is not in that form is named."""
    datasets = pytest.importorskip("datasets", reason="the optional `datasets` library is not installed")
    entry: dict[str, Any] = ORIGINAL["MedMCQA"][0] | {"cop": 2}

    def load_dataset(name: str, subset: str | None, *, split: str, revision: str | None) -> Any:
        assert (name, revision) == ("me/medmcqa", "v2")
        return datasets.Dataset.from_list([varied(entry, len(split))])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("ilora.hub.within_reach", lambda *_, **__: nullcontext())
    task = {
        "name": "MedMCQA",
        "dataset": "me/medmcqa",
        "revision": "v2",
        "splits": {"train": "train[:9]", "test": "dev"},
    }
    config = DataConfig.model_validate({"benchmark": "trace8", "tasks": [task]})
    (loaded,) = load_tasks(config.model_copy(update={"resplit": True}))
    assert [row.answer for rows in loaded.rows.values() for row in rows] == ["C", "C"]
    del entry["cop"]
    with pytest.raises(InputError, match=r"me/medmcqa, split train\[:9\], row 1: no 'cop' for MedMCQA"):
        load_tasks(config)
    entry["cop"] = [2]
    with pytest.raises(InputError, match=r"row 1: 'cop' is \[2\]; allowed are 0 to 3"):
        load_tasks(config)


REAL = os.environ.get("ILORA_REAL_DATA")
needs_real = pytest.mark.skipif(REAL is None, reason="ILORA_REAL_DATA is not set to a folder of real benchmarks")


@needs_real
def test_real_package() -> None:
    tasks = load(Path(str(REAL)) / "eight")
    assert [task.name for task in tasks] == EIGHT
    for task in tasks:
        head, tail = task.frame
        for rows in task.rows.values():
            assert all(row.prompt.startswith(head) and row.prompt.endswith(tail) for row in rows)
        assert not find_repeats(task).across["train", "test"]


@needs_real
def test_real_20minuten_has_the_form_of_the_converted_rows() -> None:
    """No original is at hand: taken apart and put together again, every row of the package is what it was."""
    (package,) = load(Path(str(REAL)) / "eight", "20Minuten")
    for row in (row for rows in package.rows.values() for row in rows):
        texts = (package.text(row), row.answer.removesuffix("\n"))
        content, summary = (re.split(r"(?<=[.?!]) ", text) for text in texts)
        entry = {"content": {"0": content}, "summary": summary}
        assert SPEC["20Minuten"].row(entry) == row


@needs_real
@pytest.mark.parametrize(("name", "least"), [("FOMC", 800), ("C-STANCE", 50), ("MedMCQA", 300), ("JEC-QA", 200)])
def test_real_originals_give_the_rows_of_the_package(name: str, least: int) -> None:
    """Wherever a text stands in both, prompt and answer are the same to the letter (the files hold parts only)."""
    (package,) = load(Path(str(REAL)) / "eight", name)
    (raw,) = load(Path(str(REAL)) / "raw", name, resplit=True)

    def squeezed(row: Row) -> str:
        return "".join(row.prompt.split()).casefold()

    rows = [row for found in raw.rows.values() for row in found]
    there = {squeezed(row) for row in rows}
    both = [row for found in package.rows.values() for row in found if squeezed(row) in there]
    assert len(both) >= least
    assert {(row.prompt, row.answer) for row in both} <= {(row.prompt, row.answer) for row in rows}


# -- the long streams -------------------------------------------------------------------------------------------------


def test_long15_from_both_codebases_forms(tmp_path: Path) -> None:
    olora = tmp_path / "CL_Benchmark" / "NLI" / "CB"
    olora.mkdir(parents=True)
    labels = ["entailment", "contradiction", "neutral"]
    (olora / "labels.json").write_text(json.dumps(labels))
    for split in ("train", "dev", "test"):
        rows = [{"sentence": f"sentence 1: {split} {i}\nsentence 2: b", "label": labels[i % 3]} for i in range(4)]
        (olora / f"{split}.json").write_text(json.dumps(rows))
    sapt = tmp_path / "CL_Benchmark" / "Long_Sequence" / "sst2"
    sapt.mkdir(parents=True)
    for split in ("train", "dev"):
        instances = [{"input": f"{split} film {i}", "output": ["Good", "Bad"][i % 2]} for i in range(6)]
        (sapt / f"{split}.json").write_text(json.dumps({"Definition": ["Judge it."], "Instances": instances}))
    config = DataConfig.model_validate({"benchmark": "long15", "path": tmp_path, "tasks": ["CB", "SST-2"]})
    cb, sst2 = load_tasks(config)
    assert cb.rows["train"][0] == Row(
        'What is the logical relationship between the "sentence 1" and the "sentence 2"? Choose one from the option.\n'
        "Option: entailment, contradiction, neutral \nsentence 1: train 0\nsentence 2: b\nAnswer:",
        "entailment",
    )
    assert (cb.metric, cb.choices, set(cb.rows)) == ("accuracy", tuple(labels), {"train", "eval", "test"})
    assert sst2.rows["test"][1] == Row("Judge it.\ndev film 1\nOutput:", "Bad")  # no test file: dev
    assert (sst2.metric, sst2.choices) == ("accuracy", ("Bad", "Good"))
    with pytest.raises(InputError, match=r"no folder 'MNLI' with a train.json.*task folders there: CB, sst2"):
        load_tasks(DataConfig(benchmark="long15", path=tmp_path))


def test_superni15(tmp_path: Path) -> None:
    place = tmp_path / "SuperNI" / "task1572_samsum_summary"
    place.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        instances = [{"input": f"{split} talk", "output": ["They talk.", "Talk."]}]
        (place / f"{split}.json").write_text(json.dumps({"Definition": ["Sum up."], "Instances": instances}))
    config = DataConfig.model_validate(
        {"benchmark": "superni15", "path": tmp_path, "tasks": ["task1572_samsum_summary"]}
    )
    (task,) = load_tasks(config)
    prompt = "Definition: Sum up.\n\nNow complete the following example -\nInput: train talk\nOutput:"
    assert (task.rows["train"], task.metric) == ([Row(prompt, "They talk.")], "rouge_l")


def test_orders() -> None:
    streams = {name: BENCHMARKS[name] for name in BENCHMARKS}
    for name in ("long15", "long15-order5", "long15-order6", "superni15"):
        stream = streams[name]
        assert isinstance(stream, Stream)
        assert len(set(stream.tasks)) == len(stream.tasks) == 15
        assert set(stream.tasks) == set(stream.known)
