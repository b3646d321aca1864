"""Files as streams of entries: every format gives the same rows, and long files are not kept in memory."""

from __future__ import annotations

import csv
import json
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ilora.data import tables
from ilora.data.formats import read_rows
from ilora.data.rows import Selection
from ilora.data.task import Row
from ilora.errors import InputError
from ilora.settings import DataConfig
from ilora.stream import load_tasks

ROWS = [Row('Größe, "quoted"\nzwei Zeilen?', "1,5"), Row("中文？", "2")]


def write_all(folder: Path) -> dict[str, Path]:
    """The rows in every format."""
    records = [{"prompt": row.prompt, "answer": row.answer, "other": 1} for row in ROWS]
    files = {suffix: folder / f"a{suffix}" for suffix in tables.SUFFIXES}
    files[".json"].write_text(json.dumps(records), encoding="utf-8")
    files[".jsonl"].write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with files[suffix].open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(records)
    openpyxl = pytest.importorskip("openpyxl", reason="the optional openpyxl library is not installed")
    book = openpyxl.Workbook()
    book.active.append(list(records[0]))
    for record in records:
        book.active.append(list(record.values()))
    book.save(files[".xlsx"])
    pyarrow = pytest.importorskip("pyarrow", reason="the optional pyarrow library is not installed")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), files[".parquet"])
    return files


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    for suffix, path in write_all(tmp_path).items():
        assert read_rows(path) == ROWS, suffix
        assert tables.count(path) == 2


@pytest.mark.parametrize("sign", [",", ";", "|", "\t"])
def test_what_stands_between_the_cells(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'prompt{sign}answer\n"a, b; c|d"{sign}A\nq{sign}"1,5"\n', encoding="utf-8")
    assert read_rows(path) == [Row("a, b; c|d", "A"), Row("q", "1,5")]


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        ({"sentence": "fine film", "label": "Good"}, Row("fine film", "Good")),
        (
            {"Definition": ["Add."], "input": "2, 2", "output": ["4", "four"]},
            Row("Definition: Add.\n\nNow complete the following example -\nInput: 2, 2\nOutput:", "4"),
        ),
        (
            {"Definition": [], "input": "2, 2", "output": "4"},  # as SAPT's COPA has it
            Row("Now complete the following example -\nInput: 2, 2\nOutput:", "4"),
        ),
    ],
)
def test_exchange_forms(tmp_path: Path, entry: dict[str, Any], row: Row) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(entry), encoding="utf-8")
    assert read_rows(path) == [row]


def test_a_superni_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"Definition": ["Add."], "Positive Examples": [], "Instances": [{"input": "1, 1", "output": ["2"]}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    (row,) = read_rows(path)
    assert row.prompt.startswith("Definition: Add.\n\n")
    assert row.answer == "2"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('[{"a": 1}, {"a": 2}]', 2), ('{"a": 1}\n{"a": 2}\n\n{"a": 3}', 3), ('{"1": {"a": 1}, "2": {"a": 2}}', 2),
        ('{"a": 1}', 1), ('{\n"a": 1,\n"b": {"c": 2}}', 1), ('\ufeff{"a": 1}\n{"a": 2}', 2),
    ],
)  # fmt: skip
def test_json_of_a_release(tmp_path: Path, text: str, count: int) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert len(list(tables.entries(path, original=True))) == count


def test_an_empty_sheet_and_a_sheet_without_rows(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="the optional openpyxl library is not installed")
    path = tmp_path / "a.xlsx"
    openpyxl.Workbook().save(path)
    with pytest.raises(InputError, match="no rows"):
        read_rows(path)


def test_a_missing_file_of_every_format(tmp_path: Path) -> None:
    for suffix in tables.SUFFIXES:
        with pytest.raises(InputError, match="no such file"):
            read_rows(tmp_path / f"none{suffix}")


def write_many(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": f"question {number} " + "word " * 20, "answer": "ABC"[number % 3]}) + "\n")


def test_the_limit_of_a_streamed_file_is_that_of_a_list(tmp_path: Path) -> None:
    for split, count in {"train": 500, "eval": 20, "test": 20}.items():
        write_many(tmp_path / "one" / f"{split}.jsonl", count)
    (whole,) = load_tasks(DataConfig(path=tmp_path))
    (few,) = load_tasks(DataConfig.model_validate({"path": tmp_path, "limit": {"train": 7}}))
    assert len(few.rows["train"]) == 7
    assert few.choices == whole.choices == ("A", "B", "C")
    import random

    chosen = sorted(random.Random("limit/one/train").sample(range(500), 7))
    assert few.rows["train"] == [whole.rows["train"][index] for index in chosen]
    assert few.rows["test"] == whole.rows["test"]


def test_a_long_file_is_not_kept(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 20_000):
        path = tmp_path / f"{count}.jsonl"
        write_many(path, count)
        selection = Selection("key", 50)
        tracemalloc.start()
        assert len(read_rows(path, selection=selection)) == 50
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(selection.answers) == count
    assert peaks[1] - peaks[0] < 40 * 18_000  # the answers that metric and choices are inferred from, up to 100,000


def test_other_threads_run_while_a_long_list_is_read(tmp_path: Path) -> None:
    """Such as the one that tells the other processes of a run that this one lives."""
    file = tmp_path / "train.json"
    file.write_text(json.dumps([{"prompt": f"question {n}", "answer": "yes"} for n in range(30_000)]), encoding="utf-8")
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(1e-4):
            ticks += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    beside = threading.Thread(target=tick)
    beside.start()
    try:
        place, _ = next(tables.entries(file))  # all of the file is parsed before its first row is there
    finally:
        sys.setswitchinterval(interval)
        done.set()
        beside.join()
    assert place == f"{file}:1 (row 1)"
    assert ticks > 10


def test_a_problem_far_down_a_long_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_many(path, 300)
    path.write_text(path.read_text() + '{"prompt": "q"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"a.jsonl:301: no 'answer'"):
        read_rows(path, selection=Selection("key", 5))


def test_a_column_that_stands_twice_in_the_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,answer,answer\na,b,c\n")
    with pytest.raises(InputError, match=r"rows\.csv:1: the column 'answer' stands twice"):
        list(tables.entries(tmp_path / "rows.csv"))


def test_the_line_in_which_excel_names_the_separator(tmp_path: Path) -> None:
    for number, (said, sign) in enumerate((("sep=;", ";"), ("SEP=|", "|"), ('"sep=,"', ","))):
        file = tmp_path / f"{number}.csv"
        file.write_text(f"{said}\r\nprompt{sign}answer{sign}more\r\na{sign}b{sign}c\r\n", encoding="utf-8-sig")
        assert read_rows(file) == [Row("a", "b")]
    file.write_text("sep=;\nprompt;answer\na;b\nc\n")
    with pytest.raises(InputError, match=r"2\.csv:4: fewer cells"):
        read_rows(file)


@pytest.mark.parametrize(("name", "place"), [("a.jsonl", "a.jsonl:2"), ("a.json", r"a.json:3 \(row 2\)")])
def test_a_key_that_stands_twice_is_refused(name: str, place: str, tmp_path: Path) -> None:
    rows = [
        '{"prompt": "a", "answer": "b"}',
        '{"prompt": "a", "answer": "b", "answer": "c"}',
        '{"prompt": "", "answer": "b"}',
    ]
    text = "\n".join(rows) if name == "a.jsonl" else "[\n" + ",\n".join(rows) + "]"
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{place}: .*the key 'answer' stands twice"):
        read_rows(tmp_path / name)


def test_blank_lines_before_the_header(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("\n\nprompt;answer\na;b\n;c\n")
    with pytest.raises(InputError, match=r"rows\.csv:5: 'prompt' is empty"):
        read_rows(file)
    file.write_text("\nsep=;\nprompt;answer\na;b\n")
    assert len(read_rows(file)) == 1


def test_lines_that_end_in_a_carriage_return_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"prompt,answer\ra,b\rc,d\r")
    with pytest.raises(InputError, match=r"rows\.csv:1: its lines end in a carriage return alone"):
        read_rows(tmp_path / "rows.csv")


def test_a_column_that_stands_twice_in_excel_and_parquet_is_refused(tmp_path: Path) -> None:
    openpyxl, pyarrow = pytest.importorskip("openpyxl"), pytest.importorskip("pyarrow")
    from pyarrow import parquet

    book = openpyxl.Workbook()
    for cells in (("prompt", "answer", "answer"), ("a", "b", "c")):
        book.active.append(cells)
    book.save(tmp_path / "rows.xlsx")
    table = pyarrow.table([pyarrow.array([cell]) for cell in "abc"], names=["prompt", "answer", "answer"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    for name in ("rows.xlsx", "rows.parquet"):
        with pytest.raises(InputError, match=f"{name}.*: the column 'answer' stands twice"):
            read_rows(tmp_path / name)
