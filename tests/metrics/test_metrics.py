"""Metrics, the refusal of unusable references, and what is inferred from bare answers."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from ilora.data.formats import read_rows, task_files, task_places
from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.metrics.metrics import METRICS, Metric, check_reference, check_references, infer_task, tokens

LETTERS = ("A", "B", "C")


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "score"),
    [
        ("accuracy", "Answer: C", "C", 1), ("accuracy", "Answer: C", "A", 0), ("accuracy", "", "A", 0),
        ("accuracy", "A", "A\nBecause B is wrong.", 1), ("accuracy", "B\nA", "A\nexplanation", 0),
        ("accuracy", "A or B", "A", 0),
        ("number", "12 + 5 = 17", "17", 1), ("number", "12 + 5 = 17", "12", 0), ("number", "17.", "17", 1),
        ("number", "17.0 km", "17", 1), ("number", "1,234", "1234", 1), ("number", "0.5", "1/2", 1),
        ("number", "0.33", "1/3", 0),
        ("number", "1.43", "1.4300000000000002", 1), ("number", "17", "16.999999999999996", 1),
        ("number", "1.44", "1.43", 0),
        ("number", "10000000001", "10000000000", 0), ("number", "", "5", 0), ("number", "no idea", "5", 0),
        ("number", "17", "17\nbecause 12 + 5", 1), ("number", "50%", "50", 1), ("number", "-3", "3", 0),
        ("number", "june.", "June", 1), ("number", "The answer is Friday", "Friday", 1), ("number", "May", "June", 0),
        ("number", "5", "June", 0), ("number", "", "June", 0), ("number", "June", "6", 0),
        ("number", "May 5", "May", 0),
        ("exact", "Hello\n  World ", "hello world", 1), ("exact", "hello world!", "hello world", 0),
        ("exact", "", "x", 0),
        ("rouge_l", "the cat sat", "The cat sat.", 1), ("rouge_l", "", "the cat sat", 0),
        ("rouge_l", "!?", "the cat sat", 0),
        ("rouge_l", "the cat", "the cat sat down", 2 / 3), ("rouge_l", "sat cat the", "the cat sat", 1 / 3),
        ("rouge_l", "cats", "cat", 0), ("rouge_l", "Für die Schüler", "für die Lehrer", 2 / 3),
        ("rouge_l", "fur", "für", 0),
        ("rouge_l", "判断文本", "判断以下文本", 0.8), ("rouge_l", "本文断判", "判断以下文本", 0.2),
    ],
)  # fmt: skip
def test_scores(metric: str, prediction: str, reference: str, score: float) -> None:
    choices = LETTERS if metric == "accuracy" else ()
    assert METRICS[metric].score(prediction, reference, choices) == pytest.approx(score)


@pytest.mark.parametrize(
    ("metric", "text", "parsed"),
    [
        ("accuracy", "The answer is (B).", "B"), ("accuracy", "A dog", None),
        ("number", "12 + 5 = 17.", "17"), ("number", "1,000.50", "1000.5"), ("number", "-0.05", "-0.05"),
        ("number", "2/6", "1/3"),
        ("number", "Answer: June.", "june"), ("number", "it was a fine day", None), ("number", "", None),
        ("exact", " A  b\n", "a b"), ("exact", " ", None), ("rouge_l", " text ", "text"), ("rouge_l", "\n", None),
    ],
)  # fmt: skip
def test_parsed(metric: str, text: str, parsed: str | None) -> None:
    assert METRICS[metric].parse(text, LETTERS) == parsed


@pytest.mark.parametrize("metric", ["accuracy", "number", "exact", "rouge_l"])
def test_every_metric_describes_itself(metric: str) -> None:
    assert METRICS[metric].name == metric
    assert METRICS[metric].description


def test_an_empty_prediction_counts_in_the_mean() -> None:
    rouge = METRICS["rouge_l"]
    scores = [rouge.score(text, "the cat sat") for text in ("the cat sat", "")]
    assert sum(scores) / len(scores) == 0.5


@pytest.mark.parametrize(
    ("metric", "reference", "message"),
    [
        ("accuracy", "E", "'E' does not fit the metric 'accuracy': it answers with none of the choices 'A', 'B', 'C'"),
        ("accuracy", "A or B", "none of the choices"),
        ("number", "a long walk in the park", "neither a number"),
        ("number", "10-12", "neither a number"),
        ("number", "48/2 = 24 in May\nand so 72", "first must be the number alone"),
        ("exact", " ", "blank"),
        ("rouge_l", "...", "no word"),
    ],
)
def test_unusable_references(metric: str, reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_reference(metric, reference, choices=LETTERS)
    with pytest.raises(InputError, match="row 7: reference answer"):
        check_reference(metric, reference, choices=LETTERS, where="x.json, row 7")
    with pytest.raises(InputError, match="does not fit"):
        METRICS[metric].score("A", reference, LETTERS)


def test_usable_references() -> None:
    for metric, reference in [("accuracy", "B\nwhy"), ("number", "$1,200.50"), ("number", "June"), ("rouge_l", "für")]:
        check_reference(metric, reference, choices=LETTERS)


def test_references_of_a_split_are_named_together() -> None:
    rows = [Row("q", "A"), *[Row("q", f"Z{number}") for number in range(12)]]
    task = Task("toy", {"test": rows}, metric="accuracy", choices=LETTERS)
    with pytest.raises(InputError) as caught:
        check_references(task, "test")
    message = str(caught.value)
    assert "task 'toy', test: 12 problems" in message
    assert "row 2: reference answer 'Z0'" in message
    assert "'Z9'" in message
    assert "'Z10'" not in message
    assert message.endswith("... and 2 more")
    check_references(Task("toy", {"test": rows[:1]}, metric="accuracy", choices=LETTERS), "test")


def test_unknown_metric() -> None:
    with pytest.raises(InputError, match=r"unknown metric 'acuracy' \(did you mean 'accuracy'\?\)"):
        check_reference("acuracy", "A")


def test_a_metric_of_ones_own() -> None:
    @METRICS("same_length")
    class SameLength(Metric):
        name = "same_length"
        description = "share of predictions as long as the reference"

        @staticmethod
        def score(prediction: str, reference: str, choices: Sequence[str] = ()) -> float:
            return float(len(prediction) == len(reference))

    assert METRICS["same_length"].score("abc", "xyz") == 1
    assert METRICS["same_length"].parse(" abc ") == "abc"
    check_reference("same_length", "xyz")
    with pytest.raises(InputError, match="blank"):
        check_reference("same_length", " ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Die Größe, x_1!", ["die", "grösse", "x", "1"]),
        ("naïve don't", ["naïve", "don", "t"]),
        ("中文ab，日本語", ["中", "文", "ab", "日", "本", "語"]),
        ("cafe\u0301", ["café"]),
        ("Привет мир", ["привет", "мир"]),
        ("हिन्दी", ["हिन्दी"]),
        (" -- ", []),
    ],
)
def test_tokens(text: str, words: list[str]) -> None:
    assert tokens(text) == words


def test_rouge_l_is_the_librarys_on_plain_english() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    draw = random.Random(3)
    library = RougeScorer(["rougeL"], use_stemmer=False)
    for _ in range(20):
        left, right = (
            " ".join(draw.choices("the cat sat on a mat 12 and ran".split(), k=draw.randint(1, 30))) for _ in "ab"
        )
        assert METRICS["rouge_l"].score(left, right) == library.score(right, left)["rougeL"].fmeasure


@pytest.mark.parametrize(
    ("answers", "metric", "choices"),
    [
        (["A", "C", " B "], "accuracy", ("A", "B", "C")),
        (["A", "D"], "accuracy", ("A", "B", "C", "D")),  # letters nobody answered with are choices too
        (["A", "J"], "accuracy", tuple("ABCDEFGHIJ")),
        (["A", "K"], "accuracy", ("A", "K")),
        (["B\nBecause of this.\nAnd that.", "A\n\nSo."], "accuracy", ("A", "B")),
        (["Ｂ"], "accuracy", ("A", "B")),
        (["12", "7.5", "1,000", "$3", "50%", "-4", "3/4"], "number", ()),
        (["0", "1"] * 20, "number", ()),
        ([str(number) for number in range(95)] + ["June", "May", "Mia", "July", "Friday"], "number", ()),
        ([str(number) for number in range(80)] + ["June"] * 20, "rouge_l", ()),
        (["True", "False"] * 5, "accuracy", ("False", "True")),
        (["neutral", "entailment", "contradiction"] * 3, "accuracy", ("contradiction", "entailment", "neutral")),
        (["World", "Science or Technology"] * 3, "accuracy", ("Science or Technology", "World")),
        (["yes", "yes", "Yes.", "no", "no", "no"], "accuracy", ("no", "yes")),
        (["支持", "反对"] * 3, "accuracy", ("反对", "支持")),
        (["yes", "no", "yes", "no"], "rouge_l", ()),  # too few of each to call them choices
        ([f"word{number}" for number in range(20)] * 3, "accuracy", tuple(sorted(f"word{n}" for n in range(20)))),
        ([f"word{number}" for number in range(21)] * 3, "rouge_l", ()),
        (["one two three four five six seven"] * 9, "rouge_l", ()),
        (["one two three four five six"] * 9, "accuracy", ("one two three four five six",)),
        (["A", "B", "none of them"] * 3, "accuracy", ("A", "B", "none of them")),
        (["yes\nreally"] * 9, "rouge_l", ()),
        (["A summary of the meeting.", "Another one."], "rouge_l", ()),
        (["a", "b"] * 3, "accuracy", ("a", "b")),
    ],
)
def test_infer_task(answers: list[str], metric: str, choices: tuple[str, ...]) -> None:
    assert infer_task(answers) == (metric, choices)
    for answer in answers:
        check_reference(metric, answer, choices=choices)


def test_infer_task_ignores_the_order_of_rows() -> None:
    answers = ["yes", "Yes", "no"] * 4
    shuffled = random.Random(0).sample(answers, len(answers))
    assert infer_task(shuffled) == infer_task(answers) == ("accuracy", ("Yes", "no"))


def test_infer_task_needs_answers() -> None:
    with pytest.raises(InputError, match="no training answers"):
        infer_task([])


REAL = {
    "classic/agnews": ("accuracy", ("Business", "Science or Technology", "Sports", "World")),
    "classic/amazon": ("accuracy", ("negative", "neutral", "positive", "very negative", "very positive")),
    "classic/sst2": ("accuracy", ("Bad", "Good")),
    "classic/qqp": ("accuracy", ("False", "True")),
    "classic/mnli": ("accuracy", ("contradiction", "entailment", "neutral")),
    "classic/boolqa": ("accuracy", ("False", "True")),
    "eight/C-STANCE": ("accuracy", ("A", "B", "C")),
    "eight/FOMC": ("accuracy", ("A", "B", "C")),
    "eight/MeetingBank": ("rouge_l", ()),
    "eight/ScienceQA": ("accuracy", ("A", "B", "C", "D")),
    "eight/NumGLUE-cm": ("number", ()),
    "eight/20Minuten": ("rouge_l", ()),
    "eight/MedMCQA": ("accuracy", ("A", "B", "C", "D")),
    "eight/JEC-QA": ("accuracy", ("A", "B", "C", "D")),
}


@pytest.mark.skipif(
    "ILORA_REAL_DATA" not in os.environ, reason="ILORA_REAL_DATA is not set to a folder of real benchmarks"
)
@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str) -> None:
    folder = Path(os.environ["ILORA_REAL_DATA"]) / name
    assert folder.name in task_places(folder.parent)
    rows = {split: read_rows(files[0]) for split, files in task_files(folder).items()}
    metric, choices = infer_task([row.answer for row in rows["train"]])
    assert (metric, choices) == REAL[name]
    for split in rows:
        check_references(Task(folder.name, rows, metric=metric, choices=choices), split)
    sample = rows["test"][:30]
    assert all(METRICS[metric].score(row.answer, row.answer, choices) == 1 for row in sample)
    assert all(METRICS[metric].score("", row.answer, choices) == 0 for row in sample)
