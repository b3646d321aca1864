"""Repeated rows: inside a split, or in a split to learn from and in one to be judged on.

Two rows are the same if their prompts are equal but for case, width and white space. The indentation of lines counts,
since it has a meaning in code. This is the cheap part of `ilora data check`. `ilora run` warns of repeated rows, and
`data.deduplicate` removes them.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from ilora.data.task import SPLITS, Row, Task
from ilora.errors import InputError

PAIRS = (("train", "test"), ("train", "eval"), ("eval", "test"))


@dataclass(frozen=True)
class Repeats:
    """How many rows are repeated, and where.

    inside: by split, the rows whose prompt an earlier row has. contradicting: those of them with another answer.
    across: by (first, second), the rows of the second split whose prompt is also in the first. equal: pairs of splits
    with the same prompts.
    """

    inside: Mapping[str, int]
    contradicting: Mapping[str, int]
    across: Mapping[tuple[str, str], int]
    equal: tuple[tuple[str, str], ...]


_INDENT = re.compile(r"\n([ \t]+)(?=\S)")


def key(row: Row) -> bytes:
    """A key of 12 bytes that all spellings of one prompt share."""
    text = unicodedata.normalize("NFKC", row.prompt).casefold()
    text = _INDENT.sub(lambda found: f" \0{len(found[1].expandtabs())} ", text)
    return blake2b(" ".join(text.split()).encode(), digest_size=12).digest()


def find_repeats(task: Task) -> Repeats:
    """Compare all rows with all others, in one pass."""
    keys = {split: [key(row) for row in task.rows[split]] for split in SPLITS if split in task.rows}
    distinct = {split: set(found) for split, found in keys.items()}
    pairs = [pair for pair in PAIRS if set(pair) <= set(keys)]
    return Repeats(
        inside={split: len(found) - len(distinct[split]) for split, found in keys.items()},
        contradicting={split: _contradicting(task.rows[split], found) for split, found in keys.items()},
        across={(first, second): sum(one in distinct[first] for one in keys[second]) for first, second in pairs},
        equal=tuple((first, second) for first, second in pairs if distinct[first] == distinct[second]),
    )


def _contradicting(rows: Sequence[Row], keys: Sequence[bytes]) -> int:
    answers: dict[bytes, str] = {}
    return sum(answers.setdefault(one, row.answer) != row.answer for one, row in zip(keys, rows, strict=True))


def leaks(repeats: Repeats) -> int:
    """How many test rows are also in train."""
    return repeats.across.get(("train", "test"), 0)


def complaints(task: Task, repeats: Repeats) -> list[str]:
    """What is wrong, in words, the worst first; one line each, without the task's name."""
    size = {split: len(rows) for split, rows in task.rows.items()}
    lines = []
    for first, second in PAIRS:
        count = repeats.across.get((first, second), 0)
        if (first, second) in repeats.equal:
            lines.append(f"{first} and {second} have the same rows")
        elif count:
            lines.append(f"{count:,} of {size[second]:,} {second} rows stand in {first} too")
    for split, count in repeats.inside.items():
        if count:
            lines.append(f"{split} has {size[split]:,} rows, {size[split] - count:,} of them distinct")
        if other := repeats.contradicting[split]:
            lines.append(f"{other:,} repeated rows of {split} have another answer than the first")
    return lines


def warnings(tasks: Sequence[Task]) -> list[str]:
    """One line for each task with repeated rows, or with rows left out for that, for the start of a run."""
    there = [task for task in tasks if not task.forgotten]
    found, elsewhere = [], _tested_elsewhere(there)
    for task in there:
        if lines := complaints(task, find_repeats(task)):
            advice = "`ilora data check` tells more, `data.deduplicate: true` repairs it"
            found.append(f"warning: {task.name}: {'; '.join(lines)}; {advice}")
        for other, count in elsewhere[task.name].items():
            found.append(
                f"warning: {task.name}: {count:,} of its training rows are test rows of {other}, whose later "
                "scores are too high for it"
            )
        if some := {split: count for split, count in task.dropped.items() if count}:
            counts = ", ".join(f"{count:,} {split}" for split, count in some.items())
            found.append(f"warning: {task.name}: repeated rows left out (data.deduplicate): {counts}")
    return found


def _tested_elsewhere(tasks: Sequence[Task]) -> dict[str, dict[str, int]]:
    """For every task, the other tasks whose test rows stand in its train split, each with how many."""
    tested = {task.name: {key(row) for row in task.rows.get("test", ())} for task in tasks}
    found: dict[str, dict[str, int]] = {}
    for task in tasks:
        trained = [key(row) for row in task.rows["train"]] if len(tasks) > 1 else []
        counts = {name: sum(one in keys for one in trained) for name, keys in tested.items() if name != task.name}
        found[task.name] = {name: count for name, count in counts.items() if count}
    return found


def _first_of_each(rows: Sequence[Row], seen: set[bytes]) -> list[Row]:
    """The rows whose prompt is not in `seen` yet. Adds their prompts to it."""
    kept = []
    for row in rows:
        one = key(row)
        if one not in seen:
            seen.add(one)
            kept.append(row)
    return kept


def deduplicated(task: Task) -> Task:
    """The task with every prompt once: the first row of each, and test before eval before train.

    An eval split that is left empty (it was a copy of test) becomes a tenth of train, by the hash of the prompt.
    What is left out is counted in `dropped`. Errors: InputError if nothing is left to train on.
    """
    seen: set[bytes] = set()
    rows: dict[str, list[Row]] = {}
    for split in reversed(SPLITS):
        if split in task.rows:
            rows[split] = _first_of_each(task.rows[split], seen)
    dropped = {split: len(task.rows[split]) - len(rows[split]) for split in SPLITS if split in rows}
    if "eval" in rows and not rows["eval"]:
        held_out = [row for row in rows["train"] if zlib.crc32(key(row)) % 10 == 0]
        rows["train"] = [row for row in rows["train"] if zlib.crc32(key(row)) % 10]
        rows["eval"] = held_out
    if not rows["train"]:
        raise InputError(f"task '{task.name}': every training row stands in eval or test; `deduplicate` leaves none")
    return replace(task, rows={split: rows[split] for split in SPLITS if split in rows}, dropped=dropped)
