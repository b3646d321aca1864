"""Reading rows: both forms, and one clear message for every way in which a file can be wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ilora.data.formats import read_hub, read_rows, task_files, task_places
from ilora.data.rows import listed
from ilora.data.task import Row
from ilora.errors import InputError

GOOD = {"prompt": "What is 2 + 2?", "answer": "4"}
USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}


def write(path: Path, content: Any) -> Path:
    """Rows as JSON or JSON lines; bytes and text as they are."""
    if isinstance(content, bytes):
        path.write_bytes(content)
        return path
    if not isinstance(content, str):
        lines = [json.dumps(row, ensure_ascii=False) for row in content]
        content = "\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]"
    path.write_text(content, encoding="utf-8", newline="")
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_rows(path, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_prompt_and_answer(tmp_path: Path, name: str) -> None:
    rows = [GOOD, {"prompt": "Größe 中文?\u2028", "answer": " ja\n", "id": None}]
    assert read_rows(write(tmp_path / name, rows)) == [Row("What is 2 + 2?", "4"), Row("Größe 中文?\u2028", " ja\n")]


@pytest.mark.parametrize(("value", "answer"), [(4, "4"), (0, "0"), (-1.5, "-1.5"), (2.0, "2.0")])
def test_answers_may_be_numbers(tmp_path: Path, value: float, answer: str) -> None:
    assert read_rows(write(tmp_path / "a.json", [{"prompt": "q", "answer": value}]))[0].answer == answer


def test_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"question": "q", "label": "x", "prompt": "other", "answer": "other"}])
    assert read_rows(path, columns={"prompt": "question", "answer": "label"}) == [Row("q", "x")]
    assert read_rows(path, columns={"answer": "label"}) == [Row("other", "x")]
    assert "no 'text'; the row has 'question', 'label', 'prompt', 'answer'" in refusal(path, columns={"prompt": "text"})
    assert "unknown field 'question'; fields are prompt, answer, messages" in refusal(path, columns={"question": "q"})


def test_columns_choose_the_form(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"prompt": "Hi", "answer": "Hello!", "messages": [USER, REPLY]}])
    assert read_rows(path, columns={"messages": "messages"}) == [Row("Hi", "Hello", (USER,))]
    assert read_rows(path, columns={"answer": "answer"}) == [Row("Hi", "Hello!")]
    assert "`columns` says which" in refusal(path)
    assert "no 'question'" in refusal(path, columns={"prompt": "question"})  # never the messages instead
    assert "name one form only" in refusal(path, columns={"messages": "messages", "answer": "answer"})


def test_bom_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    rows = [Row(GOOD["prompt"], GOOD["answer"])] * 2
    assert read_rows(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line + b"\r\n")) == rows
    assert read_rows(write(tmp_path / "a.json", b"\xef\xbb\xbf\n[" + line + b",\r\n" + line + b"]\n")) == rows


def test_chat_rows(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    again = {"role": "user", "content": "And?"}
    path = write(
        tmp_path / "a.json",
        [
            {"messages": [USER, REPLY]},
            {"messages": [system, USER, REPLY]},
            {"messages": [USER, REPLY, again, {"role": "assistant", "content": "Bye", "weight": 1}]},
        ],
    )
    one, two, three = read_rows(path)
    assert one == Row("Hi", "Hello", (USER,))
    assert two == Row("Be brief.\n\nHi", "Hello", (system, USER))
    assert three == Row("User: Hi\n\nAssistant: Hello\n\nUser: And?\n\nAssistant:", "Bye", (USER, REPLY, again))
    renamed = write(tmp_path / "b.json", [{"conversation": [USER, REPLY]}])
    assert read_rows(renamed, columns={"messages": "conversation"}) == [one]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("text", "the row is a text; expected an object"),
        (None, "the row is null"),
        ([], "the row is a list"),
        ({}, "no 'prompt' and no 'answer'; the row has nothing"),
        ({"prompt": "q", "output": "x"}, "no 'answer'; the row has 'prompt', 'output'"),  # not as the rows before
        ({"prompt": "q", "answer": ""}, "'answer' is empty"),
        ({"prompt": "q", "answer": " \n"}, "'answer' is blank"),
        ({"prompt": "", "answer": "x"}, "'prompt' is empty"),
        ({"prompt": 5, "answer": "x"}, "'prompt' is a number; expected a text"),
        ({"prompt": "q", "answer": True}, "'answer' is true or false; expected a text or a number"),
        ({"prompt": "q", "answer": None}, "'answer' is null"),
        ({"prompt": "q", "answer": ["x"]}, "'answer' is a list"),
        ({"prompt": "q", "answer": {"x": 1}}, "'answer' is an object"),
        ({"prompt": "q", "answer": float("nan")}, "'answer' is not a finite number"),
        ({"prompt": "q", "answer": float("inf")}, "'answer' is not a finite number"),
        ({"prompt": "q", "messages": [USER, REPLY]}, "both 'messages' and 'prompt'"),
        ({"messages": []}, "'messages' must be a list of at least two"),
        ({"messages": [REPLY]}, "at least two"),
        ({"messages": "Hi"}, "must be a list, found a text"),
        ({"messages": [USER, "Hello"]}, r"'messages[2]' must be an object with 'role' and 'content'"),
        ({"messages": [USER, {"role": "assistant"}]}, "'messages[2]' must be an object"),
        ({"messages": [{"role": "human", "content": "Hi"}, REPLY]}, "the role 'human'; allowed are system"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "image"}]}]}, "[2].content[1]' is 'image'"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "only calls a tool"),
        ({"messages": "[{"}, "'messages' is not valid JSON"),
        ({"messages": [USER, {"role": ["user"], "content": "Hi"}]}, "'messages[2]' has the role ['user']"),
        ({"messages": [USER, REPLY, USER]}, "the last of 'messages' is from the user; it must be the assistant's"),
        ({"messages": [REPLY, REPLY]}, "no message of the user"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "'messages[2].content' is blank"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "'messages[2].content' is a number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("name", "place"), [("a.json", ":1 (row 2): "), ("a.jsonl", ":2: ")])
def test_bad_rows(tmp_path: Path, row: Any, problem: str, name: str, place: str) -> None:
    path = write(tmp_path / name, [GOOD, row])
    message = refusal(path)
    assert message.startswith(f"{path}{place}")
    assert problem in message


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"prompt": "q", "answer": "\\ud800"}')
    assert "'answer' holds half of a surrogate pair" in refusal(path)
    assert read_rows(write(path, '{"prompt": "q", "answer": "\\ud83d\\ude00"}'))[0].answer == "😀"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", "", ": the file is empty"),
        ("a.json", "[]", ": no rows; expected at least one"),
        ("a.jsonl", "", ": no rows"),
        ("a.jsonl", "\n \n", ": no rows"),
        ("a.json", '{"prompt": "q"}', ": the top level is an object; expected a list of rows"),
        ("a.json", "3", ": the top level is a number"),
        ("a.json", '[\n  {"prompt": "q",}\n]', ":2:18: not JSON: "),
        ("a.json", '{"prompt": "q", "answer": "x"}\n{"prompt": "q"}', ":2: no 'answer'"),
        ("a.json", "[1]\n[2]", ":2:1: not JSON: Extra data"),
        ("a.jsonl", '{"prompt": "q", "answer": "x"}\n\n{"prompt": ', ":3:12: not JSON: "),
        ("a.jsonl", "[" * 200_000, ":1: not usable JSON: "),
        ("a.json", "[" * 200_000, ": not usable JSON: "),
        ("a.json", f'[{{"prompt": "q", "answer": {"1" * 5000}}}]', ": not usable JSON: "),
        ("a.json", b'[{"prompt": "q",\n "answer": "Gr\xf6\xdfe"}]', ":2: not UTF-8 (byte 0xf6 at offset 31)"),
        ("a.jsonl", "x".encode("utf-16"), ":1: not UTF-8 (byte 0xff at offset 0)"),
        ("a.txt", "prompt,answer", ": not a .json, .jsonl, .csv, .tsv, .xlsx or .parquet file"),
        ("a.csv", "prompt,answer\n", ": no rows"),
        ("a.csv", "prompt,answer\nq,x,y\n", ":2: more cells than the 2 columns of the header"),
        ("a.csv", "prompt,answer\n\nq\n", ":3: fewer cells than the 2 columns of the header"),
        ("a.csv", 'prompt,answer\n"q"x,y\n', ":2: not usable CSV: "),
        ("a.csv", "context,question,answer\np,q,x\n", ":2: the prompt could be 'question' or 'context'"),
        ("a.xlsx", "no zip", ": not a readable Excel file: "),
        ("a.parquet", "no parquet", ": not a readable parquet file: "),
        ("a.json", '{"Definition": "Add.", "Instances": [{"input": "2"}]}', ", instance 1: no 'prompt' and no"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    path = write(tmp_path / name, content)
    assert refusal(path).startswith(f"{path}{problem}")


def test_missing_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.json") == f"{tmp_path / 'no.json'}: no such file"
    (tmp_path / "dir.json").mkdir()
    assert "dir.json: cannot be read: " in refusal(tmp_path / "dir.json")


def test_the_line_of_a_row_in_a_list(tmp_path: Path) -> None:
    text = '\n\n[\n {"prompt": "a\\nb",\n  "answer": "x"},\n\n {"prompt": "q"}, {"prompt": "q"}\n,\n7]'
    path = write(tmp_path / "a.json", text)
    number, first, second = refusal(path).split("\n  ")
    assert number == "2 problems"
    assert first.startswith(f"{path}: 2 rows: no 'answer'; the row has 'prompt'")
    assert first.endswith(f"({path}:7 (row 2) and {path}:7 (row 3))")
    assert second == f"{path}:9 (row 4): the row is a number; expected an object"


def test_one_problem_of_many_rows_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "\n".join(['{"prompt": "q"}', "{", *["7"] * 11]))
    lines = refusal(path).split("\n  ")
    assert lines[0] == "3 problems"
    assert lines[1].startswith(f"{path}:1: no 'answer'")
    assert lines[2].startswith(f"{path}:2:2: not JSON")
    assert lines[3].startswith(f"{path}: 11 rows: the row is a number")
    assert lines[3].endswith(f"({path}:3, {path}:4 and 9 more)")


def test_many_problems_in_one_message(tmp_path: Path) -> None:
    rows = [GOOD, *({"messages": [USER, {"role": f"r{n}", "content": "x"}]} for n in range(13))]
    lines = refusal(write(tmp_path / "a.jsonl", rows)).split("\n  ")
    assert lines[0] == "13 problems"
    assert "the role 'r9'" in lines[10]
    assert lines[11:] == ["... and 3 more"]


def test_listed() -> None:
    assert listed(["one"]) == "one"
    assert listed(["one", "two"]) == "2 problems\n  one\n  two"
    assert listed(["one", "two", "three"], most=2) == "3 problems\n  one\n  two\n  ... and 1 more"


def folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        write(path / name, [{"prompt": name, "answer": "x"}])
    return path


def test_folder(tmp_path: Path) -> None:
    path = folder(tmp_path / "Task", "train.json", "eval.jsonl", "test.json", "notes.txt", "labels.json")
    assert task_files(path) == {
        "train": [path / "train.json"],
        "eval": [path / "eval.jsonl"],
        "test": [path / "test.json"],
    }


def test_a_file_and_a_folder_of_files_are_training_rows(tmp_path: Path) -> None:
    path = folder(tmp_path / "Task", "b.jsonl", "a.json", "notes.txt", ".hidden.json")
    assert task_files(path) == {"train": [path / "a.json", path / "b.jsonl"]}
    assert task_files(path / "a.json") == {"train": [path / "a.json"]}
    assert set(task_files(folder(tmp_path / "one", "train.json"))) == {"train"}


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ["test.json", "heldout.json"],
            r"no train split; expected train as \.json, .*\.parquet; there is heldout.json, test.json",
        ),
        ([], "no train split; .*there is nothing"),
        (["train.json", "train.jsonl", "eval.json", "test.json"], "both train.json and train.jsonl; keep one"),
    ],
)
def test_bad_folders(tmp_path: Path, names: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=f"Task: {problem}"):
        task_files(folder(tmp_path / "Task", *names))


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file or folder; .* a folder with train, eval or dev, test as .json"):
        task_files(tmp_path / "Task")
    with pytest.raises(InputError, match="no such file or folder"):
        task_places(tmp_path / "Tasks")


def test_task_places(tmp_path: Path) -> None:
    folder(tmp_path / "b", "train.json")
    folder(tmp_path / "A", "test.jsonl")
    folder(tmp_path / "docs", "readme.json")
    folder(tmp_path, "labels.json")
    assert task_places(tmp_path) == {"A": tmp_path / "A", "b": tmp_path / "b"}  # nothing but the task folders
    assert task_places(tmp_path / "b") == {"b": tmp_path / "b"}
    assert task_places(tmp_path / "docs") == {"readme": tmp_path / "docs" / "readme.json"}
    assert task_places(tmp_path / "labels.json") == {"labels": tmp_path / "labels.json"}
    with pytest.raises(InputError, match="no tasks; expected a folder for each task with train"):
        task_places(folder(tmp_path / "empty", "notes.txt"))
    with pytest.raises(InputError, match=r"both jan.csv and jan.jsonl would be the task 'jan'"):
        task_places(folder(tmp_path / "months", "jan.csv", "jan.jsonl"))


def test_no_rows_are_passed_over(tmp_path: Path) -> None:
    folder(tmp_path / "jan", "train.json", "extra.jsonl")
    with pytest.raises(InputError, match=r"jan: extra.jsonl would be passed over beside its splits"):
        task_files(tmp_path / "jan")
    folder(tmp_path / "mix" / "jan", "train.json")
    folder(tmp_path / "mix" / "feb", "rows.jsonl")
    folder(tmp_path / "mix", "mar.csv")
    with pytest.raises(InputError, match=r"mix: feb, mar.csv would be passed over beside its task folders"):
        task_places(tmp_path / "mix")
    (tmp_path / "mix" / "mar.csv").unlink()
    (tmp_path / "mix" / "feb" / "config.yaml").touch()  # a run's folder is none of the data
    assert list(task_places(tmp_path / "mix")) == ["jan"]
    folder(tmp_path / "hub", "train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl")
    for look in (task_places, task_files):
        with pytest.raises(InputError, match=r"test-00000-of-00001.jsonl: is it a part of a split"):
            look(tmp_path / "hub")
    assert task_places(folder(tmp_path / "loud", "JAN.JSON")) == {"JAN": tmp_path / "loud" / "JAN.JSON"}
    assert read_rows(tmp_path / "loud" / "JAN.JSON")


def test_folders_of_loose_files(tmp_path: Path) -> None:
    folder(tmp_path / "chats" / "support", "a.jsonl", "b.jsonl")
    assert task_places(tmp_path / "chats") == {"support": tmp_path / "chats" / "support"}


class TestHub:
    """Local folders in place of the network: the library loads both the same way."""

    @pytest.fixture(autouse=True)
    def _local_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets", reason="the optional `datasets` library is not installed")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def test_jsonl(self, tmp_path: Path) -> None:
        data = folder(tmp_path / "data", "train.jsonl", "validation.jsonl")
        assert read_hub(str(data), split="validation") == [Row("validation.jsonl", "x")]

    def test_parquet_labels_and_slices(self, tmp_path: Path) -> None:
        import datasets

        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
        )
        table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
        (tmp_path / "data").mkdir()
        table.to_parquet(tmp_path / "data" / "test.parquet")
        rows = read_hub(str(tmp_path / "data"), None, split="test[:2]", columns={"prompt": "text", "answer": "label"})
        assert rows == [Row("a", "good"), Row("b", "bad")]

    def test_an_unknown_label_is_refused(self, tmp_path: Path) -> None:
        import datasets

        features = datasets.Features(
            {"prompt": datasets.Value("string"), "answer": datasets.ClassLabel(names=["bad", "good"])}
        )
        table = datasets.Dataset.from_dict({"prompt": ["a", "b"], "answer": [1, -1]}, features=features)
        (tmp_path / "data").mkdir()
        table.to_parquet(tmp_path / "data" / "test.parquet")
        with pytest.raises(InputError, match="split test, row 2: 'answer' is null"):
            read_hub(str(tmp_path / "data"), split="test")

    def test_chat(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        write(tmp_path / "data" / "test.jsonl", [{"messages": [USER, REPLY], "id": 1}])
        assert read_hub(str(tmp_path / "data"), split="test") == [Row("Hi", "Hello", (USER,))]

    def test_columns_choose_the_form(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        write(tmp_path / "data" / "test.jsonl", [{"messages": [USER, REPLY], "prompt": "x"}])
        assert read_hub(str(tmp_path / "data"), split="test", columns={"messages": "messages"})[0].answer == "Hello"
        with pytest.raises(InputError, match="split test: both 'messages' and 'prompt'"):
            read_hub(str(tmp_path / "data"), split="test")

    def test_unknown_column(self, tmp_path: Path) -> None:
        data = folder(tmp_path / "data", "test.jsonl")
        with pytest.raises(InputError, match=r"split test: no 'question'; the row has 'prompt', 'answer'; .*columns"):
            read_hub(str(data), split="test", columns={"prompt": "question"})

    def test_unknown_split_and_data_set(self, tmp_path: Path) -> None:
        data = folder(tmp_path / "data", "test.jsonl")
        with pytest.raises(InputError, match=r"split train: cannot be loaded: .*train"):
            read_hub(str(data), split="train")
        with pytest.raises(InputError, match="cannot be loaded"):
            read_hub(str(tmp_path / "none"), split="train")


def test_hub_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"x/y, split test: reading .* pip install 'ilora\[datasets\]'"):
        read_hub("x/y", split="test")
