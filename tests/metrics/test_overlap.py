"""SARI against published values, edit similarity against the library's, tokens of other scripts."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ilora.data.task import Row, Task
from ilora.metrics.metrics import METRICS
from ilora.metrics.overlap import edit_similarity, sari, tokens

SOURCE = "About 95 species are currently accepted ."
REFERENCES = [
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
]


@pytest.mark.parametrize(
    ("output", "published"),
    [  # the paper's three outputs; values of tensor2tensor's test, the first one also of Hugging Face's `evaluate`
        ("About 95 you now get in .", 0.2695360),
        ("About 95 species are now agreed .", 0.6170966),
        ("About 95 species are currently agreed .", 0.5088682),
    ],
)
def test_sari_is_the_published_one(output: str, published: float) -> None:
    found = sari(SOURCE.split(), output.split(), [text.split() for text in REFERENCES])
    assert found == pytest.approx(published, abs=1e-7)


def test_sari_of_the_first_example_to_all_digits_of_evaluate() -> None:
    found = sari(SOURCE.split(), "About 95 you now get in .".split(), [text.split() for text in REFERENCES])
    assert 100 * found == pytest.approx(26.953601953601954, abs=1e-12)


def plain_sari(source: list[str], output: list[str], reference: list[str]) -> float:
    """Single reference, straight from the definition, with lists and loops only."""
    total = 0.0
    for n in range(1, 5):
        s, c, r = (
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (source, output, reference)
        )
        kept = {g: min(s[g], c[g]) for g in s if g in c}
        good = {g: min(kept[g], r[g]) for g in kept}
        should = sum(min(s[g], r[g]) for g in s)
        precision = sum(good[g] / kept[g] for g in kept) / len(kept) if kept else 1
        recall = sum(good.values()) / should if should else 1
        keep = 2 * precision * recall / (precision + recall) if precision + recall else 0
        gone = {g: s[g] - c[g] for g in s if s[g] > c[g]}
        delete = sum(max(0, gone[g] - r[g]) / gone[g] for g in gone) / len(gone) if gone else 1
        new = [g for g in c if g not in s]
        hoped = [g for g in r if g not in s]
        hit = len([g for g in new if g in r])
        precision, recall = (hit / len(new) if new else 1), (hit / len(hoped) if hoped else 1)
        add = 2 * precision * recall / (precision + recall) if precision + recall else 0
        total += (keep + delete + add) / 3
    return total / 4


def test_sari_is_the_definition_on_random_texts() -> None:
    draw = random.Random(0)
    for _ in range(50):
        source, output, reference = (draw.choices("abcdef", k=draw.randint(0, 12)) for _ in range(3))
        assert sari(source, output, [reference]) == pytest.approx(plain_sari(source, output, reference))


def test_sari_as_a_metric() -> None:
    metric = METRICS["sari"]
    source, reference = "Die Größe beträgt 3 m.", "Es ist 3 m groß."
    assert metric.judge(reference, reference, source=source) == 1
    assert metric.judge("", reference, source=source) == 0
    copied = metric.judge(source, reference, source=source)
    assert 0 < copied < metric.judge("Es ist 3 m hoch.", reference, source=source) < 1
    assert metric.judge("什么", "这是什么", source="这是什么东西") > 0
    assert metric.complaint("...") == "it holds no word to compare"


def test_sari_looks_at_the_text_without_the_template() -> None:
    task = Task("s", {}, metric="sari", frame=("Simplify.\nParagraph:\n", "\nSimplification:"))
    assert task.text(Row("Simplify.\nParagraph:\nEin Satz.\nSimplification:", "x")) == "Ein Satz."
    assert task.text(Row("another form", "x")) == "another form"


@pytest.mark.parametrize(
    ("left", "right", "similarity"),
    [
        ("this is a test", "this is a test!", 0.9655172413793104),  # the library's documented example
        ("abc", "abc", 1.0), ("abc", "xyz", 0.0),
        ("x = <STR_LIT:a> + <NUM_LIT>", "x = a + 0", 1.0), ("f ( <STR_LIT> )", "f (  )", 1.0),
    ],
)  # fmt: skip
def test_edit_similarity(left: str, right: str, similarity: float) -> None:
    assert edit_similarity(left, right) == pytest.approx(similarity)


def test_edit_similarity_is_the_longest_common_subsequence() -> None:
    """2 LCS / (both lengths): what insertions and deletions alone leave."""

    def lcs(a: str, b: str) -> int:
        row = [0] * (len(b) + 1)
        for x in a:
            new = [0]
            for j, y in enumerate(b, 1):
                new.append(row[j - 1] + 1 if x == y else max(row[j], new[-1]))
            row = new
        return row[-1]

    draw = random.Random(1)
    for _ in range(30):
        a, b = ("".join(draw.choices("abc", k=draw.randint(1, 15))) for _ in range(2))
        assert edit_similarity(a, b) == pytest.approx(2 * lcs(a, b) / (len(a) + len(b)))


def test_edit_as_a_metric() -> None:
    metric = METRICS["edit"]
    assert metric.score("", "x") == 0
    assert metric.score(" return x\n", "return x") == 1
    assert metric.judge("return y", "return x", source="def f(x):") == metric.score("return y", "return x")


def test_tokens_with_marks() -> None:
    assert tokens("Größe: 3 m.", marks=True) == ["grösse", ":", "3", "m", "."]
    assert tokens("中文，ab", marks=True) == ["中", "文", ",", "ab"]
