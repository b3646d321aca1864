"""Metrics: how a predicted text is scored against the reference, and which metric fits a task.

A metric of your own is a class registered under a name; `score` is all it must have:

    @METRICS("length_ratio")
    class LengthRatio(Metric):
        name = "length_ratio"
        description = "how near the prediction's length is to the reference's"

        @staticmethod
        def score(prediction, reference, choices=()):
            ...
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

from ilora.data.rows import listed
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.metrics.answers import choice_key, parse_choice, parse_number
from ilora.metrics.overlap import edit_similarity, rouge_l, sari, tokens
from ilora.registry import Registry


class Metric:
    """One way to score; used as a class, never instantiated. Every method is pure and deterministic."""

    name: ClassVar[str]
    description: ClassVar[str]

    @staticmethod
    def parse(text: str, choices: Sequence[str] = ()) -> str | None:  # noqa: ARG004
        """The answer that the metric reads in `text`, for the prediction file; None = no answer, scored 0."""
        return text.strip() or None

    @staticmethod
    def score(prediction: str, reference: str, choices: Sequence[str] = ()) -> float:
        """A score in [0, 1], 1 = right. Every prediction has one; an empty one scores 0 and is counted.

        Errors: InputError for a reference that `complaint` objects to.
        """
        raise NotImplementedError("a metric needs `score`")

    @classmethod
    def judge(cls, prediction: str, reference: str, choices: Sequence[str] = (), *, source: str = "") -> float:  # noqa: ARG003
        """The score that a run uses: `score`, unless the metric also needs the prompt's text (`source`)."""
        return cls.score(prediction, reference, choices)

    @staticmethod
    def complaint(reference: str, choices: Sequence[str] = ()) -> str | None:  # noqa: ARG004
        """Why `reference` cannot be scored against, with what is allowed; None if it can."""
        return None if reference.strip() else "it is blank"


METRICS: Registry[type[Metric]] = Registry("metric")


def check_reference(metric: str, reference: str, *, choices: Sequence[str] = (), where: str = "") -> None:
    """Refuse a reference answer that `metric` could never score, so that loading fails, not a later
    evaluation.

    where: the place to name, such as `FOMC/test.json, row 3`. Errors: InputError (unknown metric, unusable
    reference or choices).
    """
    complaint = METRICS[metric].complaint(reference, choices)
    if complaint:
        raise InputError(f"{where}{': ' if where else ''}{_refusal(metric, reference, complaint)}")


def check_references(task: Task, split: str) -> None:
    """`check_reference` for all rows of one split: the first ten problems, and how many more."""
    metric, found = METRICS[task.metric], []
    for number, row in enumerate(task.rows[split], 1):
        if complaint := metric.complaint(row.answer, task.choices):
            found.append(f"row {number}: {_refusal(task.metric, row.answer, complaint)}")
    if found:
        raise InputError(f"task '{task.name}', {split}: {listed(found)}")


def _refusal(metric: str, reference: str, complaint: str) -> str:
    shown = reference if len(reference) <= 80 else reference[:77] + "..."
    return f"reference answer {shown!r} does not fit the metric '{metric}': {complaint}"


@METRICS("accuracy")
class Accuracy(Metric):
    """1 if `parse_choice` reads the same choice in both texts, else 0."""

    name = "accuracy"
    description = "share of predictions that answer with the right choice; ambiguous or none counts as wrong"

    @staticmethod
    def parse(text: str, choices: Sequence[str] = ()) -> str | None:
        """The choice, see `parse_choice`."""
        return parse_choice(text, choices)

    @staticmethod
    def score(prediction: str, reference: str, choices: Sequence[str] = ()) -> float:
        """1.0 or 0.0; the reference goes through the same parser ('A\\nexplanation' -> A)."""
        check_reference("accuracy", reference, choices=choices)
        return float(parse_choice(prediction, choices) == parse_choice(reference, choices))

    @staticmethod
    def complaint(reference: str, choices: Sequence[str] = ()) -> str | None:
        """Objects to what answers with none of the choices."""
        if parse_choice(reference, choices) is not None:
            return None
        return f"it answers with none of the choices {', '.join(map(repr, choices))}"


@METRICS("number")
class Number(Metric):
    """1 if both texts give the same number, else 0.

    Whole numbers and fractions are compared exactly; where a decimal is involved, a relative difference of
    1e-9 is rounding ('1.43' = '1.4300000000000002'). A few word problems ask for a name or a month: a
    reference without any digit is a word answer, and right is the same text, case, a label and outer
    punctuation aside.
    """

    name = "number"
    description = "share of predictions whose number (last one of the first line) equals the reference"

    @staticmethod
    def parse(text: str, choices: Sequence[str] = ()) -> str | None:  # noqa: ARG004
        """The number as '17', '1.5' or '1/3'; or up to three words, lower case; else None."""
        value = parse_number(text)
        return _word_answer(text) if value is None else _show(value)

    @staticmethod
    def score(prediction: str, reference: str, choices: Sequence[str] = ()) -> float:
        """1.0 or 0.0."""
        check_reference("number", reference, choices=choices)
        wanted, got = parse_number(reference), parse_number(prediction)
        if wanted is None:
            return float(_word_answer(reference) == _word_answer(prediction))
        return float(got is not None and _equal(got, wanted))

    @staticmethod
    def complaint(reference: str, choices: Sequence[str] = ()) -> str | None:  # noqa: ARG004
        """Objects to what is no number and no short word answer, and to an explanation first."""
        lines = [line.strip() for line in reference.splitlines() if line.strip()]
        if len(lines) > 1 and not _is_number(lines[0]):
            return "of several lines the first must be the number alone"
        if parse_number(reference) is None and _word_answer(reference) is None:
            return "it holds neither a number such as 17, -3, 1,234.5 or 3/4 nor an answer of up to three words"
        return None


def _word_answer(text: str) -> str | None:
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"^(?:(?:the )?(?:final |correct )?answer(?: is)?\s*:?|[^:]{1,40}:)\s+", "", line.strip(), flags=re.I)
    key = choice_key(line)
    return key if 0 < len(key.split()) <= 3 and not re.search(r"\d", key) and re.search(r"\w", key) else None


def _is_number(text: str) -> bool:
    """Whether the text is one number and nothing else, currency and percent signs aside."""
    return (
        bool(re.fullmatch(r"[-+−$€£¥\s]*[\d.,/ ]*\d(?:[eE][-+]?\d+)?\.?\s*%?", text)) and parse_number(text) is not None
    )


def _equal(left: Fraction, right: Fraction) -> bool:
    return left == right or (
        (_decimal(left) or _decimal(right)) and abs(left - right) <= Fraction(1, 10**9) * abs(right)
    )


def _decimal(value: Fraction) -> bool:
    """Whether it is a decimal that is not whole, so that it may have been rounded as a float."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1 and value.denominator > 1


def _show(value: Fraction) -> str:
    if not _decimal(value):
        return str(value)
    places = 0
    while (value * 10**places).denominator > 1:
        places += 1
    digits = str(abs(value * 10**places).numerator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


@METRICS("exact")
class Exact(Metric):
    """1 if the whole texts are equal after NFKC, case and white space aside, else 0."""

    name = "exact"
    description = "share of predictions that equal the reference, case and white space aside"

    @staticmethod
    def parse(text: str, choices: Sequence[str] = ()) -> str | None:  # noqa: ARG004
        """The normalised text."""
        return " ".join(unicodedata.normalize("NFKC", text).split()).casefold() or None

    @staticmethod
    def score(prediction: str, reference: str, choices: Sequence[str] = ()) -> float:
        """1.0 or 0.0."""
        check_reference("exact", reference, choices=choices)
        return float(Exact.parse(prediction) == Exact.parse(reference))


@METRICS("rouge_l")
class RougeL(Metric):
    """F1 of the longest common subsequence of tokens (rouge-score library, no stemming, see `tokens`)."""

    name = "rouge_l"
    description = "ROUGE-L F1 of the words (of the characters in Chinese and Japanese); an empty prediction scores 0"

    @staticmethod
    def score(prediction: str, reference: str, choices: Sequence[str] = ()) -> float:
        """F1 in [0, 1]."""
        check_reference("rouge_l", reference, choices=choices)
        return rouge_l(prediction, reference)

    @staticmethod
    def complaint(reference: str, choices: Sequence[str] = ()) -> str | None:  # noqa: ARG004
        """Objects to a text without a word."""
        return None if tokens(reference) else "it holds no word to compare"


@METRICS("sari")
class Sari(Metric):
    """How well a text was simplified, see `overlap.sari`; tokens are words (CJK characters) and punctuation marks."""

    name = "sari"
    description = "SARI: what was rightly kept, added and deleted of the prompt's text; an empty prediction scores 0"

    @classmethod
    def judge(cls, prediction: str, reference: str, choices: Sequence[str] = (), *, source: str = "") -> float:
        """SARI in [0, 1]. Copying the source has a score above 0, deleting everything has none."""
        check_reference("sari", reference, choices=choices)
        after = tokens(prediction, marks=True)
        return sari(tokens(source, marks=True), after, [tokens(reference, marks=True)]) if after else 0.0

    @staticmethod
    def score(prediction: str, reference: str, choices: Sequence[str] = ()) -> float:
        """Without the source there is nothing to keep or delete: of use for a comparison with oneself only."""
        return Sari.judge(prediction, reference, choices)

    @staticmethod
    def complaint(reference: str, choices: Sequence[str] = ()) -> str | None:  # noqa: ARG004
        """Objects to a text without a word."""
        return None if tokens(reference) else "it holds no word to compare"


@METRICS("edit")
class Edit(Metric):
    """Edit similarity by characters, see `overlap.edit_similarity`."""

    name = "edit"
    description = "edit similarity by characters (code: literals of Py150 written out); an empty prediction scores 0"

    @staticmethod
    def score(prediction: str, reference: str, choices: Sequence[str] = ()) -> float:
        """In [0, 1]; 1 = equal, outer white space aside."""
        check_reference("edit", reference, choices=choices)
        return edit_similarity(prediction, reference) if prediction.strip() else 0.0


_LETTER = re.compile(r"([A-Z])(?:\s*\n.*)?", re.DOTALL)
_MOST_CHOICES, _MOST_WORDS, _LEAST_REPEATS = 20, 6, 3
_LEAST_NUMBERS = 0.9


def infer_task(train_answers: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Metric and choices of a task without metadata, from its training answers; the first rule that fits:

    1. Every answer is one capital letter, alone or before a line break and an explanation: accuracy, with the
       letters from A to the highest seen; beyond J only the letters seen.
    2. At least 90 % of the answers are a number and nothing else, and the others are such that the metric can
       judge them (a word, a month): number, no choices.
    3. At most 20 distinct one-line answers of at most 6 words each, occurring 3 times each on average:
       accuracy, with the distinct answers, sorted (spellings that differ in case or outer punctuation are
       one, the commonest shown).
    4. Otherwise: rouge_l, no choices.

    Errors: InputError for no answers.
    """
    answers = [unicodedata.normalize("NFKC", answer).strip() for answer in train_answers]
    if not answers:
        raise InputError("the metric cannot be inferred: there are no training answers; name the metric instead")
    letters = {found[1] for answer in answers if (found := _LETTER.fullmatch(answer))}
    if letters and all(_LETTER.fullmatch(answer) for answer in answers):
        top = max(letters)
        reach = {chr(code) for code in range(ord("A"), ord(top) + 1)} if top <= "J" else letters
        return "accuracy", tuple(sorted(reach))
    numbers = sum(_is_number(answer) for answer in answers)
    if numbers >= _LEAST_NUMBERS * len(answers) and not any(Number.complaint(answer) for answer in answers):
        return "number", ()
    choices = _closed(answers)
    return ("accuracy", choices) if choices else ("rouge_l", ())


def _closed(answers: Sequence[str]) -> tuple[str, ...]:
    """The choices of rule 3, or none."""
    spellings: dict[str, Counter[str]] = {}
    for answer in answers:
        if "\n" in answer or not 0 < len(answer.split()) <= _MOST_WORDS:
            return ()
        spellings.setdefault(choice_key(answer), Counter())[answer] += 1
        if len(spellings) > _MOST_CHOICES:
            return ()
    if len(answers) < _LEAST_REPEATS * len(spellings):
        return ()
    return tuple(sorted(max(sorted(seen), key=seen.__getitem__) for seen in spellings.values()))
