"""A task that does not fit into memory: the same rows, digests, order and weights as from lists."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from ilora.config import Config
from ilora.data import duplicates, stored
from ilora.data.digests import fingerprint, training_digest
from ilora.data.duplicates import deduplicated, find_repeats
from ilora.data.stored import Gathering, Joined, StoredRows, gathered, joined, shuffled, some
from ilora.data.task import Row, Task
from ilora.data.tokens import StoredExamples, stored_examples
from ilora.errors import InputError
from ilora.stream import load_tasks
from tests.helpers import MakeConfig, begin, difference, train, trained, weights, write_task

pytest.importorskip("pyarrow")
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, None]}}}]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ILORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored, "ROWS", 7)  # rows of a slice: several slices of a few rows
    return tmp_path / "cache"


def rows(count: int = 30) -> list[Row]:
    """Rows of all kinds, each prompt twice."""
    made = [Row(f"Frage {n // 2} ü\u2028\n  x", f"{n % 3}") for n in range(count)]
    made[3] = Row("system\nx", "y", ({"role": "system", "content": "é"}, {"role": "user", "content": "x"}))
    made[9] = Row("call", "z", ({"role": "user", "content": "q"}, CALL), ({"name": "f"}, ["b"]))
    return made


def large(found: list[Row]) -> StoredRows:
    made = gathered(found, 5)
    assert isinstance(made, StoredRows)
    return made


def test_rows_are_as_in_a_list() -> None:
    plain = rows()
    made = large(plain)
    assert list(made) == plain
    assert [made[n] for n in (29, 0, -1, -30, 9)] == [plain[n] for n in (29, 0, -1, -30, 9)]
    assert made[5:23:3] == plain[5:23:3]
    assert made[25:99] == plain[25:]
    with pytest.raises(IndexError):
        made[30]
    assert random.Random(1).sample(made, 4) == random.Random(1).sample(plain, 4)


def test_few_rows_are_a_list() -> None:
    assert gathered(rows(10), 10) == rows(10)
    assert gathered(rows(), None) == rows()
    nothing = Gathering(0)
    assert nothing.rows() == []


def test_sequences_joined() -> None:
    plain = rows()
    both = joined([large(plain), plain[:3], large(plain)])
    assert isinstance(both, Joined)
    assert list(both) == plain + plain[:3] + plain
    assert [both[n] for n in (0, 29, 30, 32, 33, -1)] == [
        (plain + plain[:3] + plain)[n] for n in (0, 29, 30, 32, 33, -1)
    ]
    assert both[28:35] == (plain + plain[:3] + plain)[28:35]
    assert joined([plain, plain]) == plain + plain


def test_some_rows_are_the_same_ones_wherever_they_lie() -> None:
    plain = rows()
    assert some(large(plain), 8, key="a") == some(plain, 8, key="a") != some(plain, 8, key="b")
    assert some(plain, 30, key="a") is plain


def test_the_files_have_no_name(cache: Path) -> None:
    made = large(rows())
    assert list((cache / "rows").iterdir()) == []
    assert len(list(made)) == 30


@pytest.mark.parametrize("count", [0, 1, 50, 1000])
def test_the_order_is_that_of_a_shuffled_list(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "ORDER_IN_MEMORY", 100)
    expected = list(range(count))
    random.Random("3/order/one/2").shuffle(expected)
    assert shuffled(count, key="3/order/one/2")[:].tolist() == expected


def test_digests_are_those_of_the_whole_as_json() -> None:
    plain = rows()
    content = [
        [row.prompt, row.answer, [dict(turn) for turn in row.messages], *([list(row.tools)] if row.tools else [])]
        for row in plain
    ]
    task = Task("one", {"train": plain, "eval": plain[:1], "test": []}, choices=("a", "b"), max_new_tokens=3)
    whole = [
        "one",
        {"train": content, "eval": content[:1], "test": []},
        "accuracy",
        ["a", "b"],
        "generate",
        3,
        ["", ""],
    ]

    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()

    stored_task = Task("one", {**task.rows, "train": large(plain)}, choices=("a", "b"), max_new_tokens=3)
    assert fingerprint(task) == fingerprint(stored_task) == digest(whole)
    assert training_digest(task) == training_digest(stored_task) == digest(content)


def test_repeated_rows_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = rows()
    task = Task("one", {"train": plain, "eval": plain[4:9], "test": [*plain[:2], Row("new", "a")]})
    copies = Task("one", {"train": plain, "test": plain[::-1]})
    found = [find_repeats(task), find_repeats(copies)]
    kept = deduplicated(task)
    monkeypatch.setattr(duplicates, "PART", 6)
    stored_task = Task("one", {**task.rows, "train": large(plain)})
    assert [find_repeats(stored_task), find_repeats(copies)] == found
    assert found[0].inside["train"] == 13
    assert found[1].equal == (("train", "test"),)
    again = deduplicated(stored_task)
    assert isinstance(again.rows["train"], StoredRows)
    assert {split: list(every) for split, every in again.rows.items()} == kept.rows
    assert again.dropped == kept.dropped


def stored_config(make_config: MakeConfig, folder: Path, *overrides: str) -> tuple[Config, Config]:
    """A task without a test split, some rows twice; in lists, and in files."""
    place = write_task(folder, "one", train=40)
    (place / "test.json").unlink()
    (place / "eval.json").unlink()
    train_file = place / "train.json"
    found = json.loads(train_file.read_text(encoding="utf-8"))
    train_file.write_text(json.dumps(found + found[:4]), encoding="utf-8")
    given = [
        f"data.tasks=[{{name: one, path: {place}}}]", "data.path=null", "data.deduplicate=true", "training.epochs=2",
        "evaluation.zero_shot=false", "evaluation.unseen=none", *overrides,
    ]  # fmt: skip
    return make_config(*given), make_config(*given, "data.rows_in_memory=9")


def test_training_gives_the_same_bits(make_config: MakeConfig, tmp_path: Path, cache: Path) -> None:
    settings = ("method={name: ilora+, memory_size: 10, memory_policy: balanced}", "data.too_long=drop")
    plain, in_files = stored_config(make_config, tmp_path / "data", *settings)
    (task,) = load_tasks(in_files.data)
    assert isinstance(task.rows["train"], StoredRows)
    assert not isinstance(task.rows["test"], StoredRows)
    expected = trained(plain, tmp_path / "plain")
    session = begin(in_files, tmp_path / "stored")
    assert isinstance(session.stream.train["one"], StoredExamples)
    list(train(session))
    assert difference(expected, weights(tmp_path / "stored")) == 0
    (file,) = (cache / "tokens").glob("*.arrow")
    written = file.stat().st_mtime_ns
    again = begin(in_files, tmp_path / "again")
    assert list(again.stream.train["one"]) == list(session.stream.train["one"])
    assert file.stat().st_mtime_ns == written


def test_what_lies_in_a_file_is_no_change_of_the_run(make_config: MakeConfig, tmp_path: Path) -> None:
    plain, in_files = stored_config(make_config, tmp_path / "data")
    first = begin(plain, tmp_path / "run")
    second = begin(in_files, tmp_path / "other")
    second.state.refuse_changes(first.state.checkpoint())


def test_keep_below_holds_all_rows_and_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    _, in_files = stored_config(make_config, tmp_path / "data", "adapter.layers=1", "adapter.keep_below=true")
    with pytest.raises(InputError, match="keep_below"):
        begin(in_files, tmp_path / "run")


def test_a_damaged_file_of_tokens_is_made_again(make_config: MakeConfig, tmp_path: Path, cache: Path) -> None:
    _, in_files = stored_config(make_config, tmp_path / "data")
    expected = list(begin(in_files, tmp_path / "first").stream.train["one"])
    (file,) = (cache / "tokens").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-20])
    found = stored_examples(file, iter(expected), task="one", label="one/train")
    assert list(found) == expected
    whole = file.read_bytes()
    for place in range(len(whole) - 400, len(whole), 7):  # in its footer; pyarrow names some of these an OSError
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        stored_examples(file, iter(expected), task="one", label="one/train")
    file.write_bytes(b"")
    assert list(stored_examples(file, iter(expected), task="one", label="one/train")) == expected


def test_a_disk_that_fills_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ilora.data.stored.Writer.close", full)
    with pytest.raises(InputError, match=r"rows: .* cannot be written \(No space left on device\); set ILORA_CACHE"):
        gathered(rows(), 5)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ILORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="ILORA_CACHE"):
        gathered(rows(), 5)
    with pytest.raises(InputError, match="ILORA_CACHE"):
        stored_examples(tmp_path / "file" / "x.arrow", [], task="one", label="one/train")
