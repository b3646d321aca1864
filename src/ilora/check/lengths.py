"""How long the rows of a stream are in tokens, and which `data.max_length` suits them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ilora.data.encoding import Encoder
from ilora.data.task import Row, Task

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
FEW = 0.01  # the share of prompts that may be cut
_MOST_COUNTED = 5_000


@dataclass(frozen=True)
class Lengths:
    """The rows of a stream in tokens, a sample of each split.

    wholes: prompt and answer, as far as `max_length` counts them; in evaluation the longest allowed answer counts.
    answers: the answers alone.
    """

    wholes: tuple[int, ...]
    answers: tuple[int, ...]

    @classmethod
    def of(cls, tasks: Sequence[Task], encoder: Encoder) -> Lengths:
        """Count them with the model's tokenizer, in its template."""
        wholes: list[int] = []
        answers: list[int] = []
        for task in tasks:
            pairs = {split: encoder.of(task).lengths(_sample(task, split)) for split in task.rows}
            longest = max((answer for _, answer in pairs["train"]), default=1)
            room = _answer_room(task, encoder, longest)
            for split, found in pairs.items():
                wholes += [whole if split == "train" else max(whole, whole - answer + room) for whole, answer in found]
                answers += [answer for _, answer in found]
        return cls(tuple(wholes), tuple(answers))

    def percentile(self, share: int) -> int:
        """Of prompt and answer: so many tokens or fewer have `share` of 100 rows."""
        return int(np.percentile(self.wholes, share, method="inverted_cdf"))

    def mean(self, length: int) -> float:
        """The mean of prompt and answer, cut to `length`."""
        return sum(min(whole, length) for whole in self.wholes) / len(self.wholes)

    def cut(self, length: int) -> float:
        """The share of the rows whose prompt would lose a part."""
        return sum(whole > length for whole in self.wholes) / len(self.wholes)

    @property
    def suggested(self) -> int:
        """The smallest of LENGTHS that cuts less than FEW of the prompts and holds every answer; else the largest."""
        fitting = (size for size in LENGTHS if self.cut(size) < FEW and max(self.answers) < size)
        return next(fitting, LENGTHS[-1])


def _answer_room(task: Task, encoder: Encoder, longest: int) -> int:
    """The tokens that an answer may take in evaluation: of the longest choice that is ranked, or of a generated one."""
    if task.scoring == "rank":
        return max(answer for _, answer in encoder.lengths([Row("?", choice) for choice in task.choices]))
    return encoder.answer_limit(task, "auto", longest)


def _sample(task: Task, split: str) -> Sequence[Row]:
    rows = task.rows[split]
    return rows if len(rows) <= _MOST_COUNTED else random.Random(f"lengths/{split}").sample(rows, _MOST_COUNTED)
