"""Questions on the command line: the evaluation's answers, weights that are exchanged in place, Ctrl-C."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilora.answering.answerer import Answerer
from ilora.connectivity import landscape
from ilora.results.scores import read_records
from tests.command import Command
from tests.processes import Done

Conversation = Callable[..., list[str]]
Ask = Callable[..., Done]


class Typed(io.StringIO):
    """Lines as if typed."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def ask(typed: Command, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """`ilora ask ...` in this process, with these lines as its input."""

    def call(*arguments: object, lines: list[str] | None = None, by_hand: bool = False) -> Done:
        text = "".join(f"{line}\n" for line in lines or [])
        monkeypatch.setattr(sys, "stdin", Typed(text) if by_hand else io.StringIO(text))
        return typed("ask", *arguments)

    return call


def answer_of(finished: Path, file: str) -> tuple[str, str]:
    """The first row's prompt and what the run answered."""
    record = read_records(finished / "predictions" / file)[0]
    return record["prompt"], record["prediction"]


def shown(text: str) -> str:
    """As a terminal has it: without control characters, and without the space in which lines end."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()


def test_one_question(finished: Path, ask: Ask) -> None:
    prompt, answer = answer_of(finished, "after-02-two/one.jsonl")
    code, out, err = ask(finished, prompt)
    assert (code, out.strip()) == (0, shown(answer)), err
    prompt, answer = answer_of(finished, "after-00-base/one.jsonl")
    assert ask(finished, prompt, "--with", "base")[1].strip() == shown(answer)
    code, _, err = ask(finished, " ")
    assert (code, err) == (2, "ilora: the question is blank\n")
    assert ask(finished, prompt, "--with", "medium")[0] == 2


def test_an_empty_answer_is_told_beside_the_output(finished: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answerer, "reply", lambda *_, **__: ("", False))
    code, out, err = ask(finished, "Nothing?")
    assert (code, out, err) == (0, "\n", "(empty answer)\n")
    assert "(empty answer)" in ask(finished, lines=["/both", "Nothing?"])[1]


def test_weights_are_exchanged_without_loading_the_base_again(
    finished: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], landscape.load_model
    monkeypatch.setattr(landscape, "load_model", lambda *a, **k: (loads.append(1), load(*a, **k))[1])
    files = {
        "/base": "after-00-base",
        "/slow": "after-02-two",
        "/fast": "after-02-two/fast",
        "/phase 1": "after-01-one",
    }
    every = [read_records(finished / "predictions" / folder / "one.jsonl") for folder in files.values()]
    row = max(zip(*every, strict=True), key=lambda answers: len({shown(one["prediction"]) for one in answers} - {""}))
    prompt, expected = row[0]["prompt"], [shown(one["prediction"]) for one in row]
    assert len(set(expected)) >= 3  # exchanged, they would show
    code, out, err = ask(finished, lines=[line for command in files for line in (command, prompt)])
    assert (code, loads) == (0, [1]), err
    labels = ["base", "02-two/slow", "02-two/fast", "01-one/slow"]
    told = [line for pair in zip(labels, expected, strict=True) for line in pair]
    assert [line.strip() for line in out.splitlines()] == told
    code, out, err = ask(finished, lines=["/t 0", prompt, "/side base phase:1", prompt, "/both", prompt])
    assert (code, loads) == (0, [1, 1]), err
    assert out.splitlines()[:2] == ["t = 0 from 01-one/slow to 02-two/slow", expected[3]]
    assert out.count("base | 01-one/slow") == 2  # `/side` and, after it, `/both`
    columns = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in cells[1:3]] for cells in columns] == [[expected[0], expected[3]]] * 2


def test_a_wrong_command_changes_nothing_and_help_lists_them(finished: Path, ask: Ask) -> None:
    code, out, _ = ask(
        finished, lines=["/medium", "/t", "/t 2", "/phase 9", "/side base", "", "/help", "/quit", "never"]
    )
    assert code == 0
    assert out.count("ilora: ") == 5
    assert "'medium'" in out
    assert "01-one, 02-two" in out
    assert "/slow, /fast" in out
    assert "never" not in out


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    finished: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, answer = answer_of(finished, "after-02-two/one.jsonl")
    reply = Answerer.reply

    def stopped(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(Answerer, "reply", reply)
        raise KeyboardInterrupt

    monkeypatch.setattr(Answerer, "reply", stopped)
    code, out, _ = ask(finished, lines=[prompt, prompt], by_hand=True)
    assert code == 0
    assert shown(answer) in out
    monkeypatch.setattr(Answerer, "reply", stopped)
    assert ask(finished, prompt)[0] == 130


def test_what_is_generated_reaches_the_terminal_without_control_characters(
    finished: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(*_: Any, tell: Callable[[str], object], **__: Any) -> tuple[str, bool]:
        tell("red\x1b[2J\nblue\x07")
        return "", True

    monkeypatch.setattr(Answerer, "reply", hostile)
    _, out, _ = ask(finished, "what?")
    assert out.startswith("red [2J\nblue ")
    assert "was cut" in out
