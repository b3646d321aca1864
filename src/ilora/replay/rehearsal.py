"""Pseudo-rehearsal: rows for earlier tasks without their data (Robins 1995, "Catastrophic forgetting, rehearsal and
pseudorehearsal").

Most prompts of a task begin and end alike: an instruction, a closing "Answer:". This frame around a text of *another*
task asks the earlier task's question about a new text, and the model as it was before says what it would have answered.
Of an earlier task we keep its frame and a few of its answers, and none of its prompts.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ilora.data.examples import Example, by_task

ANSWERS = 16  # different ones that are kept of a task
SHARE = 0.95  # the share of a task's prompts that must have the frame: a few odd ones do not hide it


@dataclass(frozen=True)
class Frame:
    """What the prompts of a task begin and end with, in token ids; some of its answers; its longest row's length."""

    task: str
    head: list[int]
    tail: list[int]
    answers: list[list[int]]
    longest: int

    @staticmethod
    def of(rows: Sequence[Example], *, seed: str) -> Frame:
        """The frame of one task's rows."""
        head, tail = _shared(rows)
        longest = max(map(len, rows))
        answers = [tuple(row.answer) for row in sorted(rows, key=lambda row: row.id)]
        random.Random(seed).shuffle(answers)
        # With room for one token of text at least: an answer may be of a row whose prompt was cut.
        fit = [answer for answer in dict.fromkeys(answers) if len(head) + 1 + len(tail) + len(answer) <= longest]
        return Frame(rows[0].task, head, tail, [list(answer) for answer in fit[:ANSWERS]], longest)

    def holds(self, prompt: list[int]) -> bool:
        """Whether this prompt begins and ends with the frame."""
        inner = len(prompt) - len(self.head) - len(self.tail)
        return inner >= 0 and prompt == self.head + prompt[len(self.head) : len(self.head) + inner] + self.tail

    def around(self, body: list[int], answer: list[int], *, key: str) -> Example:
        """A pseudo row, not longer than the task's own rows."""
        room = self.longest - len(self.head) - len(self.tail) - len(answer)
        return Example(self.task, key, self.head + body[:room] + self.tail, answer, pseudo=True)

    def with_room(self) -> Frame:
        """The same with its longest answer alone: a pseudo row then has room for any answer."""
        return replace(self, answers=[max(self.answers, key=len)]) if self.answers else self

    def stored_bytes(self) -> int:
        """As int32 token ids."""
        return 4 * sum(map(len, (self.head, self.tail, *self.answers)))

    def state(self) -> dict[str, Any]:
        """Plain JSON values, from which `Frame(**state)` is the same."""
        return asdict(self)


def pseudo_rows(frames: Sequence[Frame], rows: Sequence[Example], *, seed: str) -> list[Example]:
    """One pseudo row for every row of the present task: its text in one of the frames, with some answer of that frame.

    All frames get equally many rows. A frame that a present prompt already has (the same instruction, or none) is left
    out: the task's own rows answer its question.
    """
    asking = [frame for frame in frames if frame.answers and not any(frame.holds(row.prompt) for row in rows)]
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
    """Each row's prompt without the head and the tail that its task's prompts share."""
    shared = {task: _shared(group) for task, group in by_task(rows).items()}
    return [_inside(row.prompt, *shared[row.task]) for row in rows]


def _inside(prompt: list[int], head: list[int], tail: list[int]) -> list[int]:
    """The prompt without head and tail. One that was cut may have lost either of them."""
    start = len(head) if prompt[: len(head)] == head else 0
    end = len(prompt) - len(tail) if prompt[len(prompt) - len(tail) :] == tail else len(prompt)
    return prompt[start:end]


def _shared(rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """The longest beginning and, behind it, the longest end that SHARE of the uncut prompts have in common.

    Fewer than two different ones show nothing: both are empty then.
    """
    whole = [row.prompt for row in rows if not row.cut] or [row.prompt for row in rows]
    if len({tuple(prompt) for prompt in whole}) < 2:
        return [], []
    head, having = _common(whole, least=SHARE * len(whole))
    ends, _ = _common([prompt[len(head) :][::-1] for prompt in having], least=SHARE * len(whole))
    return head, ends[::-1]


def _common(sequences: Sequence[list[int]], *, least: float) -> tuple[list[int], list[list[int]]]:
    """The longest beginning that at least `least` sequences share, and the sequences that have it."""
    shared: list[int] = []
    having = list(sequences)
    while True:
        following = Counter(sequence[len(shared)] for sequence in having if len(sequence) > len(shared))
        token, count = max(following.items(), key=lambda entry: entry[1], default=(0, 0))
        if not count or count < least:
            return shared, having
        having = [sequence for sequence in having if sequence[len(shared) : len(shared) + 1] == [token]]
        shared.append(token)
