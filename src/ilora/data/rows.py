"""Rows from entries. An entry in none of the documented forms is refused; nothing is guessed.

A row has one of four forms; other keys are ignored:

    {"prompt": "What is 2 + 2?", "answer": "4"}
    {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]}
    {"sentence": "What is 2 + 2?", "label": "4"}                       as in O-LoRA's benchmark folders
    {"Definition": "Add.", "input": "2, 2", "output": ["4", "four"]}   an instance of a SuperNI task

Answers may be numbers (they become text: 4 -> "4"); everything else must be text that is not blank. In the second form
the last message is the assistant's and is the answer; roles are system, user and assistant. Of several right outputs
of a SuperNI instance the first is the answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ilora.data.tables import Entry, Problem, kind
from ilora.data.task import Row
from ilora.errors import InputError

Field = Literal["prompt", "answer", "messages"]
Columns = Mapping[Field, str]
_FIELDS = ("prompt", "answer", "messages")
_ROLES = ("system", "user", "assistant")
_ANSWERS_KEPT = 100_000
_MOST_LISTED = 10


@dataclass
class Selection:
    """Which rows of a split to keep: at most `size`, a random subset that depends on `key` and the number of rows only.

    `answers`: the first 100,000 answers, of kept and other rows, from which metric and choices are inferred.
    """

    key: str
    size: int | None
    answers: list[str] = field(default_factory=list)

    def choose(self, count: Callable[[], int]) -> list[int] | None:
        """The indices to keep, sorted; None for all. `count` tells the number of rows, and is asked only if needed."""
        if self.size is None or self.size >= (total := count()):
            return None
        return sorted(random.Random(self.key).sample(range(total), self.size))


def collect(
    entries: Iterable[Entry],
    convert: Callable[[Any], Row | None],
    source: str,
    *,
    chosen: Sequence[int] | None = None,
    selection: Selection | None = None,
    empty: bool = False,
) -> list[Row]:
    """The rows that `convert` makes of the entries. It returns None for an entry that is not a row of the task.

    Errors: InputError that names the first ten entries with a `Problem`, or for no rows unless `empty` is allowed.
    """
    rows: list[Row] = []
    problems: list[str] = []
    wrong = total = 0
    wanted = None if chosen is None else set(chosen)
    for index, (place, entry) in enumerate(entries):
        try:
            made = convert(entry)
        except Problem as problem:
            wrong += 1
            if wrong <= _MOST_LISTED:
                problems.append(f"{place}: {problem}")
            continue
        if made is None:
            continue
        total += 1
        if selection is not None and len(selection.answers) < _ANSWERS_KEPT:
            selection.answers.append(made.answer)
        if not wrong and (wanted is None or index in wanted):
            rows.append(made)
    if wrong:
        raise InputError(listed(problems, total=wrong))
    if not total and not empty:
        raise InputError(f"{source}: no rows; expected at least one")
    return rows


def listed(problems: Sequence[str], *, most: int = _MOST_LISTED, total: int | None = None) -> str:
    """One message of several problems: the first `most`, one a line, and the number of others.

    total: how many there are, where not all of them are given.
    """
    total = len(problems) if total is None else total
    if total == 1:
        return problems[0]
    lines = [f"{total} problems", *problems[:most]]
    if total > most:
        lines.append(f"... and {total - most} more")
    return "\n  ".join(lines)


def field_names(columns: Columns | None, place: str) -> dict[str, str]:
    """Our fields, each with its name in the file. If `columns` names fields of one form, the other form is left out."""
    chosen: dict[str, str] = {str(field): name for field, name in (columns or {}).items()}
    for unknown in sorted(set(chosen) - set(_FIELDS)):
        raise InputError(f"{place}: columns: unknown field '{unknown}'; fields are {', '.join(_FIELDS)}")
    if "messages" in chosen and len(chosen) > 1:
        raise InputError(f"{place}: columns: a row has either prompt and answer, or messages; name one form only")
    left_out = () if not chosen else ("prompt", "answer") if "messages" in chosen else ("messages",)
    return {field: chosen.get(field, field) for field in _FIELDS if field not in left_out}


def form_of(names: Mapping[str, str], keys: Iterable[str]) -> tuple[str, ...]:
    """The fields of the form that an entry with these keys has: chat if there are messages and no prompt."""
    there = set(keys)
    chat = "prompt" not in names or (names.get("messages") in there and names["prompt"] not in there)
    return ("messages",) if chat else ("prompt", "answer")


def row(entry: Any, names: Mapping[str, str]) -> Row:
    """The row of an entry. names: from `field_names`. Raises Problem for an entry in none of the forms."""
    if isinstance(entry, Problem):
        raise entry
    if not isinstance(entry, Mapping):
        raise Problem(f"the row is {kind(entry)}; expected an object")
    if len(names) == len(_FIELDS) and "messages" in entry and "prompt" in entry:
        raise Problem("both 'messages' and 'prompt'; a row has one of them, or `columns` says which to read")
    if len(names) == len(_FIELDS) and not {"prompt", "messages"} & set(entry):
        entry = _exchanged(entry)
    form = form_of(names, entry)
    missing = [names[field] for field in form if names[field] not in entry]
    if missing:
        has = ", ".join(map(repr, entry)) or "nothing"
        raise Problem(f"no {' and no '.join(map(repr, missing))}; the row has {has}")
    if form == ("messages",):
        return _chat(entry[names["messages"]], names["messages"])
    prompt, answer = entry[names["prompt"]], entry[names["answer"]]
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        answer = str(answer)
    return Row(filled(prompt, names["prompt"]), filled(answer, names["answer"], number=True))


def _exchanged(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """O-LoRA's and SuperNI's forms as prompt and answer; anything else as it is."""
    if {"sentence", "label"} <= set(entry):
        return {"prompt": entry["sentence"], "answer": entry["label"]}
    if {"Definition", "input", "output"} <= set(entry):
        definition, output = entry["Definition"], entry["output"]
        definition = definition[0] if isinstance(definition, list) and definition else definition
        task = f"Definition: {filled(definition, 'Definition').strip()}\n\n" if definition else ""
        prompt = f"{task}Now complete the following example -\nInput: {filled(entry['input'], 'input')}\nOutput:"
        return {"prompt": prompt, "answer": output[0] if isinstance(output, list) and output else output}
    return entry


def _chat(messages: Any, name: str) -> Row:
    if not isinstance(messages, list) or len(messages) < 2:
        raise Problem(f"'{name}' must be a list of at least two messages")
    turns: list[dict[str, str]] = []
    for number, message in enumerate(messages, 1):
        where = f"{name}[{number}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise Problem(f"'{where}' must be an object with 'role' and 'content'")
        if message["role"] not in _ROLES:
            raise Problem(f"'{where}' has the role {message['role']!r}; allowed are {', '.join(_ROLES)}")
        turns.append({"role": message["role"], "content": filled(message["content"], f"{where}.content")})
    *before, last = turns
    if last["role"] != "assistant":
        raise Problem(f"the last of '{name}' is from the {last['role']}; it must be the assistant's, as the answer")
    if not any(turn["role"] == "user" for turn in before):
        raise Problem(f"'{name}' has no message of the user before the answer")
    return Row(_plain(before), last["content"], tuple(before))


def _plain(turns: Sequence[Mapping[str, str]]) -> str:
    """The turns with a blank line between; with their roles if the assistant has spoken among them."""
    if all(turn["role"] != "assistant" for turn in turns):
        return "\n\n".join(turn["content"] for turn in turns)
    named = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns]
    return "\n\n".join([*named, "Assistant:"])


def filled(value: Any, name: str, *, number: bool = False) -> str:
    """The value, if it is a text that is not blank and can be encoded. Raises Problem otherwise."""
    if not isinstance(value, str):
        raise Problem(f"'{name}' is {kind(value)}; expected a text{' or a number' if number else ''}")
    if not value.strip():
        raise Problem(f"'{name}' is {'blank' if value else 'empty'}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Problem(f"'{name}' holds half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    return value
