"""Repeated rows: inside a split, or in a split to learn from and in one to be judged on.

Two rows are the same if their prompts are equal but for case, width and white space. The indentation of lines counts,
since it has a meaning in code. This is the cheap part of `ilora data check`. `ilora run` warns of repeated rows, and
`data.deduplicate` removes them.
"""

from __future__ import annotations

import re
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import blake2b

from ilora.data.stored import gathered, like, scratch_file
from ilora.data.task import SPLITS, Row, Task
from ilora.errors import InputError

PART, MOST_PARTS = 50_000, 100  # rows that are compared at a time; parts, each with an open file a split
_RECORD = struct.Struct("<12s8sq")
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
    """Compare all rows with all others, in one pass over the texts."""
    splits = [split for split in SPLITS if split in task.rows]
    pairs = [pair for pair in PAIRS if set(pair) <= set(splits)]
    inside, contradicting, across, equal = Counter[str](), Counter[str](), Counter[tuple[str, str]](), set(pairs)
    for part in _parts({split: task.rows[split] for split in splits}):
        distinct = {split: {one for one, _, _ in found} for split, found in part.items()}
        for split, found in part.items():
            inside[split] += len(found) - len(distinct[split])
            contradicting[split] += _contradicting(found)
        for first, second in pairs:
            across[first, second] += sum(one in distinct[first] for one, _, _ in part[second])
            equal -= set() if distinct[first] == distinct[second] else {(first, second)}
    return Repeats(
        inside={split: inside[split] for split in splits},
        contradicting={split: contradicting[split] for split in splits},
        across={pair: across[pair] for pair in pairs},
        equal=tuple(pair for pair in pairs if pair in equal),
    )


def _contradicting(found: Sequence[_Found]) -> int:
    answers: dict[bytes, bytes] = {}
    return sum(answers.setdefault(one, answer) != answer for one, answer, _ in found)


_Found = tuple[bytes, bytes, int]  # a row's key, a hash of its answer, its number in the split


def _parts(rows: Mapping[str, Sequence[Row]]) -> Iterator[dict[str, list[_Found]]]:
    """The rows of all splits, part by part: rows with the same key are in the same part, in their order.

    A part has about `PART` rows; where there are more in all, keys and hashes wait in files.
    """
    count = min(MOST_PARTS, 1 + sum(map(len, rows.values())) // PART)
    if count == 1:
        yield {split: list(_found(every)) for split, every in rows.items()}
        return
    with ExitStack() as opened:
        files = {split: [opened.enter_context(scratch_file()) for _ in range(count)] for split in rows}
        for split, every in rows.items():
            for one, answer, number in _found(every):
                files[split][int.from_bytes(one[:4]) % count].write(_RECORD.pack(one, answer, number))
        for place in range(count):
            part = {}
            for split in rows:
                file = files[split][place]
                file.seek(0)
                part[split] = list(_RECORD.iter_unpack(file.read()))
            yield part


def _found(rows: Sequence[Row]) -> Iterator[_Found]:
    for number, row in enumerate(rows):
        yield key(row), blake2b(row.answer.encode(), digest_size=8).digest(), number


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
        others = {name: keys for name, keys in tested.items() if name != task.name and keys}
        counts = Counter[str]()
        for one in map(key, task.rows["train"] if others else ()):
            counts.update(name for name, keys in others.items() if one in keys)
        found[task.name] = {name: counts[name] for name in others if counts[name]}
    return found


def _repeated(rows: Mapping[str, Sequence[Row]]) -> dict[str, bytearray]:
    """By split, 1 for every row whose prompt an earlier row has; the splits count in their order."""
    marks = {split: bytearray(len(every)) for split, every in rows.items()}
    for part in _parts(rows):
        seen: set[bytes] = set()
        for split, found in part.items():
            for one, _, number in found:
                marks[split][number] = one in seen
                seen.add(one)
    return marks


def deduplicated(task: Task) -> Task:
    """The task with every prompt once: the first row of each, and test before eval before train.

    An eval split that is left empty (it was a copy of test) becomes a tenth of train, by the hash of the prompt.
    What is left out is counted in `dropped`. Errors: InputError if nothing is left to train on.
    """
    every = {split: task.rows[split] for split in reversed(SPLITS) if split in task.rows}
    marks = _repeated(every)
    rows = {
        split: gathered((row for row, mark in zip(found, marks[split], strict=True) if not mark), like(found))
        for split, found in every.items()
    }
    dropped = {split: len(task.rows[split]) - len(rows[split]) for split in SPLITS if split in rows}
    if "eval" in rows and not rows["eval"]:
        train, most = rows["train"], like(rows["train"])
        rows["eval"] = gathered((row for row in train if zlib.crc32(key(row)) % 10 == 0), most)
        rows["train"] = gathered((row for row in train if zlib.crc32(key(row)) % 10), most)
    if not rows["train"]:
        raise InputError(f"task '{task.name}': every training row stands in eval or test; `deduplicate` leaves none")
    return replace(task, rows={split: rows[split] for split in SPLITS if split in rows}, dropped=dropped)
