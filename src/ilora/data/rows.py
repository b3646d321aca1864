"""Rows from entries: all of them or a random part, with every problem of a file in one message."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ilora.data.stored import Gathering
from ilora.data.tables import Entry, Problem, kind
from ilora.data.task import Row
from ilora.errors import InputError

_ANSWERS_KEPT = 100_000
_MOST_LISTED = 10
_MOST_KINDS = 1_000  # of problems that are told apart
_EXAMPLES = 2  # places of one problem


@dataclass
class Selection:
    """Which rows of a split to keep: at most `size`, a random subset that depends on `key` and the number of rows only.

    in_memory: rows that are kept in memory; more lie in a file. None: all.
    answers: the first 100,000 answers, of kept and other rows, from which metric and choices are inferred.
    read_as: the forms in which the rows stand, in words; nothing for ilora's own.
    """

    key: str
    size: int | None
    in_memory: int | None = None
    answers: list[str] = field(default_factory=list)
    read_as: list[str] = field(default_factory=list)

    def note(self, forms: Sequence[str]) -> None:
        """Remember the forms of a file's rows."""
        self.read_as += [form for form in forms if form not in self.read_as]

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
) -> Sequence[Row]:
    """The rows that `convert` makes of the entries. It returns None for an entry that is not a row of the task.

    Errors: InputError that names every problem once, with the number of its entries and the first of them, or for no
    rows unless `empty` is allowed.
    """
    rows = Gathering(selection.in_memory if selection else None)
    problems = _Problems(source)
    total = 0
    wanted = None if chosen is None else set(chosen)
    for index, (place, entry) in enumerate(entries):
        try:
            made = convert(entry)
        except Problem as problem:
            problems.add(place, str(problem))
            continue
        if made is None:
            continue
        total += 1
        if selection is not None and len(selection.answers) < _ANSWERS_KEPT:
            selection.answers.append(made.answer)
        if not problems.places and (wanted is None or index in wanted):
            rows.add(made)
    problems.refuse()
    if not total and not empty:
        raise InputError(f"{source}: no rows; expected at least one")
    return rows.rows()


class _Problems:
    """The problems of a file's entries: each with how many have it, and where the first two are."""

    def __init__(self, source: str) -> None:
        self.source, self.counts = source, Counter[str]()
        self.places: dict[str, list[str]] = {}

    def add(self, place: str, text: str) -> None:
        """One more entry with a problem."""
        if text not in self.places and len(self.places) == _MOST_KINDS:
            text = "other problems"
        self.counts[text] += 1
        if len(found := self.places.setdefault(text, [])) < _EXAMPLES:
            found.append(place)

    def refuse(self) -> None:
        """Raises InputError where there are any."""
        if self.places:
            raise InputError(listed([self._line(text) for text in self.places]))

    def _line(self, text: str) -> str:
        places, count = self.places[text], self.counts[text]
        if count == 1:
            return f"{places[0]}: {text}"
        shown = " and ".join(places) if count == _EXAMPLES else f"{', '.join(places)} and {count - _EXAMPLES:,} more"
        return f"{self.source}: {count:,} rows: {text} ({shown})"


def listed(problems: Sequence[str], *, most: int = _MOST_LISTED) -> str:
    """One message of several problems: the first `most`, one a line, and the number of others."""
    total = len(problems)
    if total == 1:
        return problems[0]
    lines = [f"{total} problems", *problems[:most]]
    if total > most:
        lines.append(f"... and {total - most} more")
    return "\n  ".join(lines)


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
