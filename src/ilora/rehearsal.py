"""Pseudo-rehearsal: rows for earlier tasks without data of theirs (Robins 1995, "Catastrophic forgetting, rehearsal and
pseudorehearsal").

The prompts of a task mostly begin and end alike: an instruction, a closing "Answer:". That frame around the text of a
row of *another* task asks the earlier task's question about a text it has never seen, and the model as it was before
can say what it would have answered. Kept of a task is its frame and a few of its answers, not one of its rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ilora.data.examples import Example, by_task

ANSWERS = 16  # different ones that are kept of a task


@dataclass(frozen=True)
class Frame:
    """What all prompts of a task begin and end with, in token ids; some of its answers; its longest row's length."""

    task: str
    head: list[int]
    tail: list[int]
    answers: list[list[int]]
    longest: int

    @staticmethod
    def of(rows: Sequence[Example], *, seed: str) -> Frame:
        """The frame of one task's rows."""
        head, tail = _shared(rows)
        answers = sorted({tuple(row.answer) for row in rows})
        random.Random(seed).shuffle(answers)
        kept = [list(answer) for answer in answers[:ANSWERS]]
        return Frame(rows[0].task, head, tail, kept, longest=max(map(len, rows)))

    @property
    def asks(self) -> bool:
        """Whether there is anything that tells the task: without, only its own texts could."""
        return bool(self.head or self.tail)

    def around(self, body: list[int], answer: list[int], *, key: str) -> Example:
        """A pseudo row, not longer than the task's own rows."""
        room = max(1, self.longest - len(self.head) - len(self.tail) - len(answer))
        return Example(self.task, key, self.head + body[:room] + self.tail, answer, pseudo=True)

    def stored_bytes(self) -> int:
        """As int32 token ids."""
        return 4 * sum(map(len, (self.head, self.tail, *self.answers)))

    def state(self) -> dict[str, Any]:
        """Plain JSON values, from which `Frame(**state)` is the same."""
        return asdict(self)


def pseudo_rows(frames: Sequence[Frame], rows: Sequence[Example], *, seed: str) -> list[Example]:
    """One for every row of the present task: its text in one of the frames, all frames alike; the answer is any."""
    asking = [frame for frame in frames if frame.asks]
    if not asking:
        return []
    chance, made = random.Random(seed), []
    texts = [(row.id, body) for row, body in zip(rows, _bodies(rows), strict=True) if body]
    chance.shuffle(texts)
    for number, (key, body) in enumerate(texts):
        frame = asking[number % len(asking)]
        made.append(frame.around(body, chance.choice(frame.answers), key=f"{key} as {frame.task}"))
    return made


def _bodies(rows: Sequence[Example]) -> list[list[int]]:
    """What stands between the head and the tail of each row's own task."""
    shared = {task: _shared(group) for task, group in by_task(rows).items()}
    return [_inside(row.prompt, *shared[row.task]) for row in rows]


def _inside(prompt: list[int], head: list[int], tail: list[int]) -> list[int]:
    """A prompt that was cut may have lost either."""
    start = len(head) if prompt[: len(head)] == head else 0
    end = len(prompt) - len(tail) if prompt[len(prompt) - len(tail) :] == tail else len(prompt)
    return prompt[start:end]


def _shared(rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """The longest common beginning and, behind it, the longest common end of the prompts that were not cut.

    Fewer than two different ones show nothing: both are empty then.
    """
    whole = {tuple(row.prompt) for row in rows if not row.cut} or {tuple(row.prompt) for row in rows}
    if len(whole) < 2:
        return [], []
    first, *others = whole
    head = _common(first, others)
    tail = _common(first[head:][::-1], [other[head:][::-1] for other in others])
    return list(first[:head]), list(first[len(first) - tail :])


def _common(first: Sequence[int], others: Sequence[Sequence[int]]) -> int:
    """Length of the beginning that all share."""
    length = len(first)
    for other in others:
        pairs = zip(first[:length], other, strict=False)
        length = next((n for n, (one, two) in enumerate(pairs) if one != two), min(length, len(other)))
    return length
