"""Rows to be answered: those of any file that `data/tables.py` reads, with or without a reference answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ilora.data.forms import RowReader
from ilora.data.rows import collect
from ilora.data.tables import Entry, Problem
from ilora.data.task import Row, Task
from ilora.metrics.metrics import METRICS

ADDED = ("prediction", "score")  # the fields that an answered row has more
_UNUSED = "-"  # stands for the answer that a row lacks while its form is checked


@dataclass(frozen=True)
class Question:
    """A row to be answered. row: without its answer. reference: the answer that it has. fields: as it was read."""

    row: Row
    reference: str | None
    fields: Mapping[str, Any]


def read_questions(entries: Iterable[Entry], source: str, task: Task | None) -> list[Question]:
    """The questions in order. An entry is `{prompt}` or `{messages}` without an answer, or in any form of forms.py.

    task: what judges the answers. Raises InputError that names the entries that cannot be used.
    """
    found: list[Question] = []
    reader = RowReader(place=source)

    def convert(entry: Any) -> Row:
        found.append(_question(entry, reader, task))
        return found[-1].row

    collect(entries, convert, source)
    return found


def _question(entry: Any, reader: RowReader, task: Task | None) -> Question:
    whole, answered = _with_an_answer(entry)
    row = reader(whole)
    taken = [name for name in ADDED if name in entry]
    if taken:
        raise Problem(f"it has a field '{taken[0]}', which the answer would replace; rename it")
    reference = row.answer if answered else None
    if task is not None and reference is not None:
        complaint = METRICS[task.metric].complaint(reference, task.choices)
        if complaint:
            raise Problem(f"its answer cannot be scored by {task.metric} as those of task '{task.name}': {complaint}")
    return Question(replace(row, answer=""), reference, entry)


def _with_an_answer(entry: Any) -> tuple[Any, bool]:
    """The entry in a form that `RowReader` takes, and whether the answer in it is its own."""
    if not isinstance(entry, Mapping):
        return entry, True
    messages = entry.get("messages")
    if isinstance(messages, list) and messages:
        last = messages[-1]
        if isinstance(last, Mapping) and last.get("role") != "assistant":
            return {**entry, "messages": [*messages, {"role": "assistant", "content": _UNUSED}]}, False
    if "prompt" in entry and "completion" not in entry:
        answer = entry.get("answer")
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            return {**entry, "answer": _UNUSED}, False
    return entry, True
