"""`trace8`: the eight tasks of the I-LoRA paper; NumGLUE-ds and Py150, the other two of TRACE, may be named too.

C-STANCE, FOMC, MeetingBank, ScienceQA, NumGLUE-cm and 20Minuten are of TRACE (Wang et al. 2023, arXiv 2310.06762);
MedMCQA and JEC-QA were added by the paper (arXiv 2402.18865). Prompts are TRACE's, version 1 (`data.prompts`). Where
each set comes from, its columns and its licence: docs/benchmarks.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ilora.benchmarks.base import BENCHMARKS, Stream
from ilora.benchmarks.sources import Hub, Spec, read
from ilora.data.rows import filled
from ilora.data.tables import Problem, kind
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.settings import TaskConfig

Entry = Mapping[str, Any]
Converted = tuple[str, str] | None
LETTERS = "ABCDE"


def c_stance(entry: Entry) -> Converted:
    """A Chinese text, its target and the stance (`raw_train_all_onecol.csv`)."""
    stance = _among(entry["Stance 1"], {"支持": "A", "反对": "B", "中立": "C"}, "Stance 1")
    return f"文本：\n{_text(entry, 'Text')}\n对象：\n{_text(entry, 'Target 1')}\n", stance


def fomc(entry: Entry) -> Converted:
    """A sentence of the Fed and its label: 0 dovish, 1 hawkish, 2 neutral (`lab-manual-split-combine-*.xlsx`)."""
    return f"Text:\n{_text(entry, 'sentence')}\n", LETTERS[_whole(entry["label"], "label", range(3))]


def meetingbank(entry: Entry) -> Converted:
    """A transcript and its summary."""
    return f"Meeting transcripts:\n{_text(entry, 'transcript')}\n", _text(entry, "summary")


def scienceqa(entry: Entry) -> Converted:
    """A question without a picture; the answer is the letter, then the lecture and the solution (`problems.json`)."""
    if entry.get("image"):
        return None
    choices = entry["choices"]
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not 2 <= len(choices) <= len(LETTERS):
        raise Problem(f"'choices' must be a list of 2 to {len(LETTERS)} texts")
    right = _whole(entry["answer"], "answer", range(len(choices)))
    hint = f"Hint:\n{_optional(entry, 'hint')}\n\n" if entry.get("hint") else ""
    text = f"Question:\n{_text(entry, 'question')}\n\n{hint}Choices:\n{_options(choices)}\n\n"
    return text, f"{LETTERS[right]}\n{_optional(entry, 'lecture')}{_optional(entry, 'solution')}"


def numglue(entry: Entry, *, kind_of: str) -> Converted:
    """A word problem of one of NumGLUE's types."""
    if entry["type"] != kind_of:
        return None
    answer = entry["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        answer = str(answer)
    return f"Question:\n{_text(entry, 'question')}\n", filled(answer, "answer", number=True)


def twenty_minuten(entry: Entry) -> Converted:
    """A German news article and its summary in simple sentences; each a text, or texts in a list or by number.

    Articles without one of the two are left out, as by the data set's own loader. TRACE's answers end in a line feed.
    """
    content, summary = _joined(entry["content"], "content"), _joined(entry.get("summary"), "summary")
    return (content, f"{summary}\n") if content and summary else None


def medmcqa(entry: Entry) -> Converted:
    """A medical question; `cop` is the number of the right option, 1 to 4. The official test set has none."""
    options = [_text(entry, f"op{letter}") for letter in "abcd"]
    if entry.get("cop") in (None, -1):
        return None
    right = _whole(entry["cop"], "cop", range(1, 5)) - 1
    return f"Question:\n{_text(entry, 'question')}\nChoices:\n{_options(options)}\n", LETTERS[right]


def jec_qa(entry: Entry) -> Converted:
    """A question of the Chinese bar exam. Only rows with one right answer: the prompt asks for one option."""
    options, answers = entry["option_list"], entry.get("answer")
    if not isinstance(options, Mapping) or not set("ABCD") <= set(options):
        raise Problem("'option_list' must be an object with A, B, C and D")
    if not isinstance(answers, list) or len(answers) != 1:
        return None
    right = _among(answers[0], dict(zip("ABCD", "ABCD", strict=True)), "answer")
    return f"{_text(entry, 'statement')}\n选项：\n{_options([options[letter] for letter in 'ABCD'])}\n", right


def py150(entry: Entry) -> Converted:
    """Python code up to a line, and that line (CodeXGLUE's line completion)."""
    return _text(entry, "input"), _text(entry, "gt")


def _text(entry: Entry, name: str) -> str:
    return filled(entry[name], name)


def _optional(entry: Entry, name: str) -> str:
    """A text that may be missing or null."""
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise Problem(f"'{name}' is {kind(value)}; expected a text")
    return value or ""


def _options(texts: Sequence[Any]) -> str:
    named = zip(LETTERS, texts, strict=False)
    return "\n".join(f"{letter}. {filled(text, f'option {letter}')}" for letter, text in named)


def _among(value: Any, allowed: Mapping[str, str], name: str) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise Problem(f"'{name}' is {value!r}; allowed are {', '.join(allowed)}")
    return allowed[value]


def _whole(value: Any, name: str, allowed: range) -> int:
    """A whole number in a range; as text too, for CSV files."""
    try:
        number = int(value) if float(value) == int(float(value)) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number not in allowed or isinstance(value, bool):
        raise Problem(f"'{name}' is {value!r}; allowed are {allowed[0]} to {allowed[-1]}")
    assert number is not None
    return number


def _joined(value: Any, name: str) -> str:
    """A text, or the texts of a list or an object, joined by spaces; empty where there is none (`"None"` in some)."""
    if value in (None, "", "None"):
        return ""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return " ".join(filter(None, (_joined(item, name) for item in value)))
    if not isinstance(value, str):
        raise Problem(f"'{name}' is {kind(value)}; expected a text or texts")
    return filled(value, name).strip() if value.strip() else ""


def _from_one(entry: Entry) -> Entry:
    """MedMCQA of the hub, where `cop` counts from 0 (-1: not known), as in the original files."""
    right = entry["cop"]
    return {**entry, "cop": None if right in (None, -1) else _whole(right, "cop", range(4)) + 1}


_FOUR = ("A", "B", "C", "D")
SPECS = (
    Spec(
        "C-STANCE",
        "accuracy",
        8,
        ("判断以下文本对指定对象的态度，选择一项：A.支持，B.反对，C.中立。输出A，B或者C。\n", "态度："),
        c_stance,
        choices=("A", "B", "C"),
    ),
    Spec(
        "FOMC",
        "accuracy",
        8,
        (
            "What is the monetary policy stance for the following text? A. dovish, B. hawkish, C. neutral. "
            "Choose one from A, B and C.\n",
            "Stance:",
        ),
        fomc,
        choices=("A", "B", "C"),
        hub=Hub("gtfintechlab/fomc_communication", splits=("train", "test")),
    ),
    Spec(
        "MeetingBank",
        "rouge_l",
        128,
        ("Write a summary of the following meeting transcripts.\n", "Summary:"),
        meetingbank,
        hub=Hub("huuuyeah/meetingbank"),
    ),
    Spec(
        "ScienceQA",
        "accuracy",
        8,  # the letter comes first and is all that is scored
        ("Choose an answer for the following question and give your reasons.\n\n", "Answer:"),
        scienceqa,
        choices=tuple(LETTERS),
        hub=Hub("derek-thomas/ScienceQA"),
    ),
    Spec(
        "NumGLUE-cm",
        "number",
        16,
        ("Solve the following math problem.\n", "Answer:"),
        partial(numglue, kind_of="Type_1"),
        folders=("NumGLUE",),
    ),
    Spec(
        "20Minuten",
        "sari",
        128,
        (
            "Provide a simplified version of the following paragraph in German.\n\nParagraph:\n",
            "\n\nSimplification:",
        ),
        twenty_minuten,
    ),
    Spec(
        "MedMCQA",
        "accuracy",
        8,
        (
            "Solve the following medical problem by choosing the correct answer from following four choices.\n",
            "Answer:",
        ),
        medmcqa,
        choices=_FOUR,
        hub=Hub(
            "openlifescienceai/medmcqa",
            adapt=_from_one,
        ),
    ),
    Spec(
        "JEC-QA",
        "accuracy",
        8,
        ("根据以下法律问题，从选项A，B，C，D中选择一项正确的答案\n问题：", "答案："),
        jec_qa,
        choices=_FOUR,
        parts=True,
    ),
    Spec(
        "NumGLUE-ds",
        "number",
        16,
        ("Solve the following math problem.\n", "Answer:"),
        partial(numglue, kind_of="Type_2"),
        folders=("NumGLUE",),
    ),
    Spec(
        "Py150",
        "edit",
        64,
        ("", ""),
        py150,
        hub=Hub("google/code_x_glue_cc_code_completion_line", "python", splits=("train",)),
    ),
)
_BY_NAME = {spec.name: spec for spec in SPECS}
_EIGHT = tuple(_BY_NAME)[:8]


def read_task(chosen: TaskConfig, folder: Path | None, resplit: bool) -> Task:
    """One of the ten tasks."""
    if folder is None and not chosen.placed and _BY_NAME[chosen.name].hub is None:
        there = ", ".join(spec.name for spec in SPECS if spec.hub)
        raise InputError(
            f"task '{chosen.name}' is on no hub that we know of: give a folder (`data.path`, or a `path` of the task's "
            f"own), or leave it out of `data.tasks`; the hub has {there}"
        )
    return read(_BY_NAME[chosen.name], chosen, folder, resplit)


BENCHMARKS("trace8")(Stream("the eight tasks of the I-LoRA paper, in its order", _EIGHT, tuple(_BY_NAME), read_task))
