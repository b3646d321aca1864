"""Repeated rows: found, told in words, and dropped."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ilora.data.duplicates import complaints, deduplicated, find_repeats, key, leaks, warnings
from ilora.data.near import near_duplicates, similarity
from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.settings import DataConfig
from ilora.stream import load_tasks
from tests.helpers import write_task


def rows(*prompts: str) -> list[Row]:
    return [Row(prompt, "x") for prompt in prompts]


def task(train: list[Row], evaluate: list[Row], test: list[Row]) -> Task:
    return Task("t", {"train": train, "eval": evaluate, "test": test}, metric="exact")


def test_what_is_repeated() -> None:
    found = find_repeats(task([*rows("a", "A ", "b"), Row("b", "y")], rows("c", "d"), rows("D", "c", "a", "ｂ")))
    assert found.inside == {"train": 2, "eval": 0, "test": 0}
    assert found.contradicting == {"train": 1, "eval": 0, "test": 0}
    assert found.across == {("train", "test"): 2, ("train", "eval"): 0, ("eval", "test"): 2}
    assert found.equal == ()
    assert leaks(found) == 2


def test_in_words() -> None:
    one = task(rows("a", "a", "b"), rows("c"), rows("C"))
    assert complaints(one, find_repeats(one)) == [
        "eval and test have the same rows",
        "train has 3 rows, 2 of them distinct",
    ]
    assert warnings([one, task(rows("a"), rows("b"), rows("c"))]) == [
        "warning: t: eval and test have the same rows; train has 3 rows, 2 of them distinct; "
        "`ilora data check` tells more, `data.deduplicate: true` repairs it"
    ]
    leaky = task(rows("a", "b"), rows("c"), rows("a", "d"))
    assert complaints(leaky, find_repeats(leaky)) == ["1 of 2 test rows stand in train too"]


def test_deduplicated_keeps_test_before_eval_before_train() -> None:
    clean = deduplicated(task(rows("a", "b", "b", "c", "d"), rows("b", "e"), rows("a", "a", "f")))
    assert clean.rows == {"train": rows("c", "d"), "eval": rows("b", "e"), "test": rows("a", "f")}
    again = find_repeats(clean)
    assert not any(again.inside.values())
    assert not any(again.across.values())


def test_an_eval_that_was_the_test_becomes_a_part_of_train() -> None:
    train = rows(*(f"question {number}" for number in range(200)))
    clean = deduplicated(task(train, rows("x", "y"), rows("x", "y")))
    assert 5 <= len(clean.rows["eval"]) <= 40
    assert len(clean.rows["eval"]) + len(clean.rows["train"]) == 200
    assert not find_repeats(clean).across["train", "eval"]


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(InputError, match="every training row stands in eval or test"):
        deduplicated(task(rows("a"), rows("b"), rows("A")))


def test_the_setting(tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = write_task(tmp_path, "one")
    (folder / "eval.json").write_text((folder / "test.json").read_text())
    (plain,) = load_tasks(DataConfig(path=tmp_path))
    assert find_repeats(plain).equal == (("eval", "test"),)
    (clean,) = load_tasks(DataConfig(path=tmp_path, deduplicate=True))
    assert not find_repeats(clean).across["eval", "test"]
    (few,) = load_tasks(DataConfig.model_validate({"path": tmp_path, "deduplicate": True, "limit": {"train": 3}}))
    assert set(few.rows["train"]) <= set(clean.rows["train"])


def test_what_was_left_out_is_said() -> None:
    clean = deduplicated(task(rows("a", "b", "b", "c", "d"), rows("b", "e"), rows("a", "a", "f")))
    assert clean.dropped == {"train": 3, "eval": 0, "test": 1}
    assert warnings([clean]) == ["warning: t: repeated rows left out (data.deduplicate): 3 train, 1 test"]


def test_indentation_counts() -> None:
    code = "if x:\n    a()\n{}b()"
    assert key(Row(code.format("    "), "y")) != key(Row(code.format(""), "y"))
    assert key(Row("if x:\n\ta()", "y")) == key(Row("if x: \n        A()  ", "y"))
    assert key(Row("one\n\ntwo  three ", "y")) == key(Row(" One two\nthree", "y"))


def test_one_replaced_word_in_a_short_text() -> None:
    for count, near in ((40, True), (20, True), (14, True), (8, False)):
        words = [f"w{number}" for number in range(count)]
        other = [*words[: count // 2], "new", *words[count // 2 + 1 :]]
        found = near_duplicates([" ".join(words), " ".join(other), " ".join(sorted(words, reverse=True))])
        assert found == ([(0, 1)] if near else []), count


def test_near_duplicates() -> None:
    words = [f"w{number}" for number in range(60)]
    base = " ".join(words)
    chinese = ["中文字符" * 5, "中文字符" * 6]
    texts = [base, " ".join(words[:50]), "other " + base, base, " ".join(reversed(words)), "", "", *chinese]
    found = set(near_duplicates(texts))
    assert {(0, 1), (0, 2), (0, 3), (7, 8)} <= found
    assert not any(4 in pair for pair in found)


def test_near_duplicates_are_those_of_the_definition() -> None:
    """Against comparing every pair, on texts of which a third are changed copies."""
    import random

    draw = random.Random(2)
    texts = [" ".join(draw.choices([f"w{n}" for n in range(300)], k=40)) for _ in range(60)]
    for number in range(0, 60, 2):
        changed = texts[number].split()
        for _ in range(draw.randint(0, 4)):
            changed[draw.randrange(40)] = "new"
        texts.append(" ".join(changed))

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {*zip(words, strict=True), *pairwise(words)}

    pairs = [(i, j) for j in range(len(texts)) for i in range(j)]
    sets = [grams(text) for text in texts]
    wanted = {(i, j) for i, j in pairs if len(sets[i] & sets[j]) >= 0.8 * len(sets[i] | sets[j])}
    assert len(wanted) > 5
    assert set(near_duplicates(texts)) == wanted


def test_similarity_of_nothing() -> None:
    import numpy as np

    some = np.array([1, 2, 3], dtype=np.uint64)
    assert similarity(some, some) == 1
    assert similarity(some, np.array([2, 3, 4], dtype=np.uint64)) == 0.5


def test_rows_that_another_task_tests_are_named() -> None:
    january = Task("jan", {"train": [Row("a", "x")], "test": [Row("tested", "x")]})
    february = Task("feb", {"train": [Row("Tested ", "x"), Row("b", "x")], "test": [Row("c", "x")]})
    (line,) = warnings([january, february])
    assert line.startswith("warning: feb: 1 of its training rows are test rows of jan")
