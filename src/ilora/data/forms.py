"""The forms of a row: which of an entry's fields are its question and its answer.

Other keys are ignored:

    {"prompt": "What is 2 + 2?", "answer": "4"}
    {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]}
    {"prompt": "What is 2 + 2?", "completion": "4"}                    as in TRL; each may be a list of messages
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}   ShareGPT
    {"instruction": "Add.", "input": "2, 2", "output": "4"}            Alpaca; `input` may be empty or missing
    {"text": "### Instruction: Add 2 and 2. ### Response: 4"}          a text with a marker before the answer
    {"sentence": "What is 2 + 2?", "label": "4"}                       as in O-LoRA's benchmark folders
    {"Definition": "Add.", "input": "2, 2", "output": ["4", "four"]}   an instance of a SuperNI task

Where a file has none of them, two columns with usual names, such as question and label, are taken if there is one
choice only, and the run says so. Answers may be numbers (they become text: 4 -> "4"); everything else must be text
that is not blank. Of several right outputs of a SuperNI instance the first is the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ilora.data.chat import answered, chat_row
from ilora.data.rows import filled
from ilora.data.tables import Problem, kind
from ilora.data.task import Row
from ilora.errors import InputError

Field = Literal["prompt", "answer", "messages"]
Columns = Mapping[Field, str]
FIELDS = ("prompt", "answer", "messages")
Entry = Mapping[str, Any]
_PROMPTS = (
    "prompt", "question", "query", "instruction", "input", "text", "sentence", "context", "passage", "article",
    "document", "message", "review", "request", "problem",
)  # fmt: skip
_ANSWERS = (
    "answer", "completion", "response", "output", "label", "target", "reply", "summary", "solution",
    "category", "sentiment", "topic", "intent", "translation", "assistant",
)  # fmt: skip
_TALKS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_MARKERS = ("### Response:", "### Assistant:", "### Answer:", "### Output:")
_PLACE = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Form:
    """How an entry becomes a row.

    title: the form in words, empty for ilora's own. columns: those that are read. talk: the column that holds a whole
    conversation, if one does.
    """

    title: str
    columns: tuple[str, ...]
    make: Callable[[Entry], Row] = field(compare=False)
    talk: str | None = None


def _plain(entry: Entry) -> Row:
    return question_and_answer(entry["prompt"], entry["answer"], system=entry.get("system"))


def _messages(entry: Entry) -> Row:
    return chat_row(entry["messages"], "messages", system=entry.get("system"), tools=entry.get("tools"))


def _trl(entry: Entry) -> Row:
    return question_and_answer(entry["prompt"], entry["completion"], "prompt", "completion", system=entry.get("system"))


def _sharegpt(entry: Entry) -> Row:
    return chat_row(entry["conversations"], "conversations", system=entry.get("system"), tools=entry.get("tools"))


def _alpaca(entry: Entry) -> Row:
    if entry.get("history"):
        raise Problem("'history' holds earlier turns, which are not read; write the row as messages")
    instruction, given = filled(entry["instruction"], "instruction"), entry.get("input")
    prompt = f"{instruction}\n\n{filled(given, 'input')}" if str(given or "").strip() else instruction
    return question_and_answer(prompt, entry["output"], "instruction", "output", system=entry.get("system"))


def _olora(entry: Entry) -> Row:
    return question_and_answer(entry["sentence"], entry["label"])


def _superni(entry: Entry) -> Row:
    definition, output = entry["Definition"], entry["output"]
    definition = definition[0] if isinstance(definition, list) and definition else definition
    task = f"Definition: {filled(definition, 'Definition').strip()}\n\n" if definition else ""
    prompt = f"{task}Now complete the following example -\nInput: {filled(entry['input'], 'input')}\nOutput:"
    return question_and_answer(prompt, output[0] if isinstance(output, list) and output else output)


# By the keys that an entry of the form must have; the first that fits is taken.
_KNOWN: tuple[tuple[frozenset[str], Form], ...] = tuple(
    (frozenset(needs), Form(title, (*needs, *more), make, talk=needs[0] if needs[0] in _TALKS else None))
    for needs, more, title, make in (
        (("prompt", "answer"), ("system",), "", _plain),
        (("messages",), ("system", "tools"), "", _messages),
        (("prompt", "completion"), ("system",), "prompt and completion (TRL)", _trl),
        (("conversations",), ("system", "tools"), "conversations (ShareGPT)", _sharegpt),
        (("Definition", "input", "output"), (), "SuperNI", _superni),
        (("instruction", "output"), ("input", "history", "system"), "instruction, input and output (Alpaca)", _alpaca),
        (("sentence", "label"), (), "sentence and label (O-LoRA)", _olora),
    )
)


class RowReader:
    """Makes the rows of one file; call it with each entry.

    columns: our field names mapped to the file's, such as {"prompt": "question", "answer": "label"}. A name with
        braces puts columns together: {"prompt": "{context} {question}"}. A field that is not named has its own
        name, or is guessed.
    marker: where rows are one text, what stands before the answer.
    unanswered: `drop` leaves out the turns of a conversation that stand behind its last answer.
    Raises InputError for columns that cannot be meant, and Problem for an entry that is no row.
    """

    def __init__(
        self, columns: Columns | None = None, *, marker: str | None = None, place: str = "", unanswered: str = "error"
    ) -> None:
        self.columns = {str(field): name for field, name in (columns or {}).items()}
        self.marker, self.place, self.drops = marker, place, unanswered == "drop"
        self._cut = 0  # conversations without their last turns
        self._titles: list[str] = []
        self._left: list[str] = []
        self._first: Form | None = None
        for unknown in sorted(set(self.columns) - set(FIELDS)):
            raise InputError(f"{place}: columns: unknown field '{unknown}'; fields are {', '.join(FIELDS)}")
        if "messages" in self.columns and len(self.columns) > 1:
            raise InputError(f"{place}: columns: a row has either prompt and answer, or messages; name one form only")

    def __call__(self, entry: Any) -> Row:
        """The row of an entry."""
        if isinstance(entry, Problem):
            raise entry
        if not isinstance(entry, Mapping):
            raise Problem(f"the row is {kind(entry)}; expected an object")
        form = self.form(entry)
        if self.drops and form.talk is not None and (kept := answered(entry[form.talk])) is not None:
            entry, self._cut = {**entry, form.talk: kept}, self._cut + 1
        made = form.make(entry)
        self._left += [key for key in map(str, entry) if key not in form.columns and key not in self._left]
        if form.title and form.title not in self._titles:
            self._titles.append(form.title)
        return made

    @property
    def read_as(self) -> list[str]:
        """The forms that were met, in words, without ilora's own; and the columns that were left out."""
        left = [f"not read: {', '.join(map(repr, self._left[:10]))}"] if self._left else []
        cut = [f"{self._cut:,} conversations without the turns behind their last answer"] if self._cut else []
        return [*self._titles, *cut, *left]

    def form(self, keys: Iterable[str]) -> Form:
        """The form of an entry with these keys. A guessed one must be that of the file's first row."""
        there = list(keys)
        known = self._named(there) if self.columns else self._known(there)
        found = known or self._guessed(there)
        if known is None and self._first is not None and found.columns != self._first.columns:
            raise _unknown(there, ("prompt", "answer"))
        self._first = self._first or found
        return found

    def _known(self, there: Sequence[str]) -> Form | None:
        if {"messages", "prompt"} <= set(there):
            raise Problem("both 'messages' and 'prompt'; a row has one of them, or `columns` says which to read")
        if self.marker is not None:
            return self._marked(there)
        return next((form for needs, form in _KNOWN if needs <= set(there)), None)

    def _named(self, there: Sequence[str]) -> Form | None:
        """The form that `columns` asks for; a field that it leaves out has its own name, or is guessed."""
        if messages := self.columns.get("messages"):
            _refuse_missing([messages], there)
            return _talk(messages)
        names = {field: self.columns.get(field, field) for field in ("prompt", "answer")}
        for name, usual in (("prompt", _PROMPTS), ("answer", _ANSWERS)):
            if name not in self.columns and name not in there:
                taken = [one for column in self.columns.values() for one in parts(column)]
                names[name] = next(iter(_usual([one for one in there if one not in taken], usual)), name)
        _refuse_missing([part for name in names.values() for part in parts(name)], there)
        return _pair(names["prompt"], names["answer"])

    def _guessed(self, there: Sequence[str]) -> Form:
        """Two columns with usual names, where there is one choice only; else a text with a marker."""
        prompts, answers = _usual(there, _PROMPTS) or _usual(there, _TALKS), _usual(there, _ANSWERS)
        if len(prompts) == 1 == len(answers):
            return _pair(prompts[0], answers[0], system="system")
        if "text" in there and not answers:
            return self._marked(there)
        if len(talks := _usual(there, _TALKS)) == 1 and not answers:
            return _talk(talks[0])
        if len(prompts) > 1 and answers:
            both = " ".join(f"{{{name}}}" for name in prompts)
            raise Problem(
                f"the prompt could be {' or '.join(map(repr, prompts))}; say which with columns.prompt={prompts[0]} or "
                f"columns.prompt='{both}' (the row has {', '.join(map(repr, there))})"
            )
        raise _unknown(there, ("prompt", "answer"))

    def _marked(self, there: Sequence[str]) -> Form:
        _refuse_missing(["text"], there)
        marker = self.marker
        title = "text, of which the answer stands behind " + (repr(marker) if marker else "its marker")
        return Form(title, ("text",), lambda entry: _cut_at(filled(entry["text"], "text"), marker))


def _talk(name: str) -> Form:
    """The form of a column of messages."""

    def make(entry: Entry) -> Row:
        return chat_row(entry[name], name, system=entry.get("system"), tools=entry.get("tools"))

    return Form("" if name == "messages" else f"messages = {name!r}", (name, "system", "tools"), make, talk=name)


def question_and_answer(
    prompt: Any, answer: Any, prompt_name: str = "prompt", answer_name: str = "answer", *, system: Any = None
) -> Row:
    """The row of a prompt and its answer. Each is a text, or a list of messages; the answer may be a number."""
    spoken = isinstance(answer, list) and answer and isinstance(answer[0], Mapping)
    if isinstance(prompt, list) or spoken or (system is not None and str(system).strip()):
        asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        reply = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
        return chat_row([*asked, *reply], prompt_name, system=system)
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        answer = str(answer)
    return Row(filled(prompt, prompt_name), filled(answer, answer_name, number=True))


def _pair(prompt: str, answer: str, *, system: str | None = None) -> Form:
    """The form of two columns, each by its name or put together from several; system: of the system's message."""
    own = (prompt, answer) == ("prompt", "answer")
    title = "" if own else f"prompt = {prompt!r}, answer = {answer!r}"

    def make(entry: Entry) -> Row:
        said = entry.get(system) if system else None
        return question_and_answer(_value(entry, prompt), _value(entry, answer), prompt, answer, system=said)

    return Form(title, (*parts(prompt), *parts(answer), *([system] if system else [])), make)


def parts(name: str) -> list[str]:
    """The columns that a name stands for."""
    return _PLACE.findall(name) or [name]


def _value(entry: Entry, name: str) -> Any:
    """A column's value, or the text in which columns are put together."""
    if not _PLACE.search(name):
        return entry[name]
    values = {part: "" if entry[part] is None else str(entry[part]) for part in parts(name)}
    return _PLACE.sub(lambda found: values[found[1]], name).strip() if any(values.values()) else ""


def _usual(there: Sequence[str], usual: Sequence[str]) -> list[str]:
    """The columns whose name is a usual one, case aside, in the order of the usual names."""
    by_name = {key.strip().casefold(): key for key in there if isinstance(key, str)}
    return [by_name[name] for name in usual if name in by_name]


def _cut_at(text: str, marker: str | None) -> Row:
    """The row of a text: the answer is what follows the last marker, which stays with the prompt."""
    found = [one for one in ([marker] if marker else _MARKERS) if one in text]
    if len(found) != 1:
        known = repr(marker) if marker else ", ".join(_MARKERS)
        raise Problem(
            f"'text' has {'no' if not found else 'more than one'} marker before the answer ({known}); "
            "write it as marker: '...', or name the columns"
        )
    head, _, tail = text.rpartition(found[0])
    return question_and_answer(head + found[0], tail.strip(), "text", f"text after {found[0]}")


def _refuse_missing(names: Sequence[str], there: Sequence[str]) -> None:
    if missing := [name for name in names if name not in there]:
        raise _unknown(there, missing)


def _unknown(there: Sequence[str], missing: Sequence[str]) -> Problem:
    absent = [name for name in missing if name not in there] or missing
    has = ", ".join(map(repr, there)) or "nothing"
    return Problem(
        f"no {' and no '.join(map(repr, absent))}; the row has {has}; say which is which with columns.prompt=... and "
        "columns.answer=..., or columns.messages=... for a conversation"
    )
