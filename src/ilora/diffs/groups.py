"""In which groups of rows more was lost than elsewhere: by reference answer, length, and beginning of the prompt."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ilora.diffs.rows import Change, TaskChanges
from ilora.present.numbers import plain

LEAST = 3  # rows of a group that is shown
MOST = 6  # groups of a kind that are shown, of each task
_WORDS = 3  # with which prompts of a group begin


@dataclass(frozen=True)
class Group:
    """Rows that have something in common. rows: those that could be lost. rate: lost ÷ rows; of_task: the task's."""

    kind: str
    name: str
    rows: int
    lost: int
    rate: float
    of_task: float


def groups(task: TaskChanges, *, threshold: float) -> list[Group]:
    """The groups of a task in which rows were lost, those that exceed the task's rate by the most rows first.

    Of rows whose score was high enough before to be lost (right before, for scores of 0 and 1).
    """
    could = [row for row in task.rows if row.score_before >= threshold]
    if not task.lost:
        return []
    lost, rate = {row.id for row in task.lost}, len(task.lost) / len(could)
    found = []
    for kind, name_of in _kinds(task.rows).items():
        parts: dict[str, list[Change]] = {}
        for row in could:
            parts.setdefault(name_of(row), []).append(row)
        made = [_group(kind, name, rows, lost, rate) for name, rows in parts.items() if len(rows) >= LEAST]
        if len(parts) > 1:  # a single group would be the whole task
            made = [group for group in made if group.lost]
            found += sorted(made, key=lambda group: group.rows * rate - group.lost)[:MOST]
    return found


def _group(kind: str, name: str, rows: Sequence[Change], lost: set[str], rate: float) -> Group:
    count = sum(row.id in lost for row in rows)
    return Group(kind, name, len(rows), count, count / len(rows), rate)


def _kinds(rows: Sequence[Change]) -> dict[str, Callable[[Change], str]]:
    """What a row's group is called, for each way to group them."""
    split = [row.prompt.split() for row in rows]
    ends = zip(min(split), max(split), strict=False)  # what these two begin with alike, all between them do
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    lengths = [len(words) for words in split]
    edges = sorted({round(edge) for edge in statistics.quantiles(lengths, n=4)} if len(lengths) > 1 else lengths)

    def length(row: Change) -> str:
        words = len(row.prompt.split())
        below = [edge for edge in edges if edge < words]
        above = [edge for edge in edges if edge >= words]
        if not above:
            return f"more than {edges[-1]} words"
        if not below:
            return f"up to {above[0]} words"
        return f"{above[0]} words" if below[-1] + 1 == above[0] else f"{below[-1] + 1} to {above[0]} words"

    def beginning(row: Change) -> str:
        return plain(" ".join(row.prompt.split()[shared : shared + _WORDS]), 60) or "(nothing more)"

    return {
        "reference answer": lambda row: plain(row.reference.strip(), 60),
        "length of the prompt": length,
        "beginning of the prompt": beginning,
    }
