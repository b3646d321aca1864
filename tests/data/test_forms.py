"""The forms in which people's rows stand: each read as it is, guessed where there is one choice, else refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ilora.data.chat import every_turn
from ilora.data.forms import RowReader
from ilora.data.tables import Problem
from ilora.data.task import Row

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "time", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "noon", "name": "time", "tool_call_id": "1"}

PARTS = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]

FORMS: dict[str, tuple[dict[str, Any], Row]] = {
    "own": ({"prompt": "q", "answer": "a", "id": 3}, Row("q", "a")),
    "messages": ({"messages": [USER, REPLY]}, Row("Hi", "Hello", (USER,))),
    "messages as JSON in a cell": ({"messages": json.dumps([USER, REPLY])}, Row("Hi", "Hello", (USER,))),
    "parts": (
        {"messages": [{"role": "user", "content": PARTS}, REPLY]},
        Row("H\ni", "Hello", ({"role": "user", "content": "H\ni"},)),
    ),
    "TRL": ({"prompt": "q", "completion": " a"}, Row("q", " a")),
    "TRL, conversations": (
        {"prompt": [SYSTEM, USER], "completion": [REPLY]}, Row("Be brief.\n\nHi", "Hello", (SYSTEM, USER)),
    ),
    "a conversation and its answer": ({"prompt": [USER], "answer": "Hello"}, Row("Hi", "Hello", (USER,))),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "Be brief."},
        Row("Be brief.\n\nHi", "Hello", (SYSTEM, USER)),
    ),
    "ShareGPT's turns as messages": (
        {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        Row("Hi", "Hello", (USER,)),
    ),
    "a conversation under another name": ({"Dialogue": [USER, REPLY]}, Row("Hi", "Hello", (USER,))),
    "a dialogue and its summary": ({"dialogue": "A: Hi", "summary": "a"}, Row("A: Hi", "a")),
    "Alpaca": ({"instruction": "Add.", "input": "2, 2", "output": "4", "text": "all of it"}, Row("Add.\n\n2, 2", "4")),
    "Alpaca without input": ({"instruction": "Say hi.", "input": "", "output": "hi"}, Row("Say hi.", "hi")),
    "a system's text, columns guessed": (
        {"system": "Be brief.", "question": "Hi", "label": "Hello"}, Row("Be brief.\n\nHi", "Hello", (SYSTEM, USER)),
    ),
    "a system's text": (
        {"system": "Be brief.", "prompt": "Hi", "answer": "Hello"}, Row("Be brief.\n\nHi", "Hello", (SYSTEM, USER)),
    ),
    "a marker": ({"text": "### Instruction:\nq\n### Response:\na\n"}, Row("### Instruction:\nq\n### Response:", "a")),
    "guessed": ({"id": 1, "Question": "q", "Label": 0, "split": "x"}, Row("q", "0")),
    "guessed, a text and its label": ({"text": "q", "label": "good"}, Row("q", "good")),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    entry, row = FORMS[name]
    assert RowReader()(entry) == row


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"prompt": "q", "answer": "a"}, []),
        ({"prompt": "q", "answer": "a", "note": "x"}, ["not read: 'note'"]),
        ({"messages": [USER, REPLY]}, []),
        ({"question": "q", "label": "a", "id": 1}, ["'question'", "'label'", "not read: 'id'"]),
        ({"conversations": [USER, REPLY]}, ["ShareGPT"]),
        ({"text": "q ### Answer: a"}, ["text", "marker"]),
    ],
)
def test_what_was_read_is_said(entry: dict[str, Any], words: list[str]) -> None:
    reader = RowReader()
    reader(entry)
    reader(entry)
    assert bool(reader.read_as) == bool(words)
    assert all(word in "; ".join(reader.read_as) for word in words)


def test_a_marker_of_ones_own() -> None:
    row = {"text": "Frage: q\nAntwort: a", "label": "unused"}
    assert RowReader(marker="Antwort:")(row) == Row("Frage: q\nAntwort:", "a")
    twice = {"text": "Antwort: b\nAntwort: a"}
    assert RowReader(marker="Antwort:")(twice) == Row("Antwort: b\nAntwort:", "a")  # the last one


@pytest.mark.parametrize(
    ("entry", "marker", "place"),
    [
        ({"text": "no marker"}, None, "no marker before the answer (### Response:"),
        ({"text": "### Response: ### Answer: a"}, None, "more than one marker"),
        ({"text": "a"}, "Antwort:", "no marker before the answer ('Antwort:')"),
        ({"text": "q ### Answer: "}, None, "'text after ### Answer:' is empty"),
        ({"context": "c", "question": "q", "answer": "a"}, None, "columns.prompt="),  # two could be the prompt
        ({"q": "x", "a": "y"}, None, "'q', 'a'"),
        ({"instruction": "q", "output": "a", "history": [["x", "y"]]}, None, "'history'"),
        ({"chosen": "x", "rejected": "y", "prompt": "q"}, None, "no 'answer'"),
    ],
)
def test_refused_with_what_to_write(entry: dict[str, Any], marker: str | None, place: str) -> None:
    with pytest.raises(Problem) as caught:
        RowReader(marker=marker)(entry)
    assert place in str(caught.value)


def test_columns_put_together() -> None:
    reader = RowReader({"prompt": "{context}\n\nQuestion: {question}"})
    assert reader({"context": "c", "question": "q", "label": 1}) == Row("c\n\nQuestion: q", "1")
    assert RowReader({"answer": "solution"})({"question": "q", "solution": "s"}) == Row("q", "s")
    with pytest.raises(Problem, match="no 'titel'"):
        RowReader({"prompt": "{titel} {text}"})({"title": "t", "text": "x", "label": "l"})
    assert reader({"context": "", "question": "q", "label": 1}) == Row("Question: q", "1")
    with pytest.raises(Problem, match="is empty"):
        RowReader({"prompt": "{context}"})({"context": None, "label": 1})


def test_a_guess_holds_for_the_whole_file() -> None:
    reader = RowReader()
    assert reader({"question": "q", "label": "a"}) == Row("q", "a")
    assert reader({"question": "q", "label": "a", "id": 1}) == Row("q", "a")  # a column that is not read is no matter
    with pytest.raises(Problem, match="no 'prompt' and no 'answer'"):
        reader({"query": "q", "label": "a"})


def test_calls_of_tools_are_kept_for_the_template() -> None:
    tools = [{"type": "function", "function": {"name": "time"}}]
    row = RowReader()({"messages": [SYSTEM, USER, CALL, RESULT, REPLY], "tools": tools})
    assert row.answer == "Hello"
    assert row.tools == tuple(tools)
    assert row.messages[2] == {"role": "assistant", "content": "", "tool_calls": CALL["tool_calls"]}
    assert row.messages[3] == {"role": "tool", "content": "noon", "name": "time", "tool_call_id": "1"}
    assert '"name": "time"' in row.prompt  # as plain text, too, the call is there


def test_every_turn() -> None:
    again = {"role": "user", "content": "And?"}
    row = RowReader()({"messages": [SYSTEM, USER, CALL, RESULT, REPLY, again, {"role": "assistant", "content": "Bye"}]})
    first, last = every_turn(row)  # a call without a text is no answer
    assert (first.answer, len(first.messages)) == ("Hello", 4)
    assert last == row
    greeting = RowReader()({"messages": [REPLY, USER, REPLY]})
    assert list(every_turn(greeting)) == [greeting]  # what is said before any question is no answer


def test_a_tool_definition_reaches_the_template(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from ilora.data.encoding import Encoder
    from ilora.data.task import Task
    from ilora.settings import DataConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for tool in tools or [] %}[{{ tool.name }}]{% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}({{ c.function.name }})"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row = RowReader()({"messages": [USER, CALL, RESULT, REPLY], "tools": [{"name": "time"}]})
    (example,) = Encoder(tokenizer, DataConfig(path="x")).encode(Task("one", {"train": [row]}), "train")
    assert tokenizer.decode(example.prompt) == "[time]<user>Hi<assistant>(time)<tool>noon<assistant>"


def test_turns_behind_the_last_answer_are_left_out_if_asked() -> None:
    open_end = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}] * 2}
    open_end["conversations"].append({"from": "human", "value": "Bye"})
    for given in (open_end, {"messages": json.dumps(open_end["conversations"])}):
        with pytest.raises(Problem, match=r"from the user; .*data\.unanswered=drop"):
            RowReader()(given)
        reader = RowReader(unanswered="drop")
        made = reader(given)
        assert (made.answer, len(made.messages)) == ("Hello", 3)
        assert "1 conversations without the turns behind their last answer" in reader.read_as
    whole = {"prompt": [USER], "completion": [REPLY]}
    assert reader(whole) == RowReader()(whole)
    with pytest.raises(Problem, match="from the user"):
        reader({"messages": [USER, USER]})  # without any answer
