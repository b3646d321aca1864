"""Examples, rows as token ids, and their padded batches.

Batches are padded on the left, so that all answers end in the last column: the model then needs logits for the last
few positions only, whatever its architecture, and training and generation see rows in the same form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # the label that cross-entropy passes over


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one row. `answer` ends with end-of-text; `id` is `<task label>/<split>/<index>`.

    body: the prompt's messages, as ranges of its tokens, of which the longest are cut; empty: anything may be cut.
    replayed: drawn from the memory. pseudo: made up by rehearsal, so that its answer is no reference.
    """

    task: str
    id: str
    prompt: list[int]
    answer: list[int]
    replayed: bool = False
    pseudo: bool = False
    cut: bool = False
    body: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Left-padded rows: all tensors (rows, length), `replayed` (rows,). `keep`: trailing columns with labels, + 1."""

    examples: list[Example]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    replayed: Tensor
    keep: int

    @property
    def targets(self) -> Tensor:
        """(rows, keep - 1): the next token that each trailing column but the last one should predict."""
        return self.labels[:, 1 - self.keep :]

    @property
    def label_count(self) -> int:
        """How many labels there are."""
        return sum(len(example.answer) for example in self.examples)

    @property
    def mask(self) -> Tensor:
        """`attention_mask` on the CPU, without waiting for a GPU."""
        if self.attention_mask.device.type == "cpu":
            return self.attention_mask
        columns = self.input_ids.shape[1]
        gaps = torch.tensor([columns - len(example) for example in self.examples])
        return (torch.arange(columns) >= gaps[:, None]).long()

    @property
    def replayed_rows(self) -> list[int]:
        """The numbers of the replayed rows; a GPU is not waited for, as it is where `replayed` is read."""
        return [number for number, example in enumerate(self.examples) if example.replayed]

    def part(self, rows: Sequence[int]) -> Batch:
        """The rows of these numbers (at least one), without the columns that are padding in all of them."""
        examples = [self.examples[number] for number in rows]
        width = max(map(len, examples))
        chosen = sent(rows, self.input_ids.device)
        return Batch(
            examples=examples,
            input_ids=self.input_ids[chosen, -width:],
            attention_mask=self.attention_mask[chosen, -width:],
            labels=self.labels[chosen, -width:],
            replayed=self.replayed[chosen],
            keep=max(len(example.answer) for example in examples) + 1,
        )


def by_task(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """The rows of every task, tasks in order of their first row."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.task, []).append(example)
    return groups


def sent(values: Any, device: torch.device | str) -> Tensor:
    """`torch.tensor(values, device=device)`, but a GPU is given it without Python waiting for what it computes."""
    made = torch.as_tensor(values)
    if torch.device(device).type == "cuda":
        made = made.pin_memory()  # from other memory, the copy waits for all that was launched before it
    return made.to(device, non_blocking=True)


def collate(examples: Sequence[Example], *, pad: int, device: torch.device | str = "cpu") -> Batch:
    """Left-padded tensors; labels are the answers' tokens, everything else (prompt, padding) is IGNORED."""
    shape = len(examples), max(len(example) for example in examples)
    ids, labels = (np.full(shape, filling, dtype=np.int64) for filling in (pad, IGNORED))
    mask = np.zeros(shape, dtype=np.int64)
    for number, example in enumerate(examples):
        begin, end = shape[1] - len(example), shape[1] - len(example.answer)
        ids[number, begin:end], ids[number, end:] = example.prompt, example.answer
        mask[number, begin:] = 1
        labels[number, end:] = ids[number, end:]
    return Batch(
        examples=list(examples),
        input_ids=sent(ids, device),
        attention_mask=sent(mask, device),
        labels=sent(labels, device),
        replayed=sent([example.replayed for example in examples], device),
        keep=max(len(example.answer) for example in examples) + 1,
    )


@dataclass(frozen=True)
class Count:
    """Size of a group of rows. `labels`: answer tokens."""

    rows: int
    tokens: int
    labels: int

    @staticmethod
    def of(examples: Sequence[Example]) -> Count:
        """Count the rows and their tokens."""
        return Count(len(examples), sum(map(len, examples)), sum(len(example.answer) for example in examples))


@dataclass(frozen=True)
class Totals:
    """Sizes of the whole optimizer step, over all micro-batches and processes: what a data term is divided by."""

    current: Count
    replayed: Count
    pseudo: Count = Count(0, 0, 0)

    @staticmethod
    def of(examples: Sequence[Example]) -> Totals:
        """Count a step's rows by what they are."""
        made = [example for example in examples if example.pseudo]
        real = [example for example in examples if not example.pseudo]
        replayed = [example for example in real if example.replayed]
        return Totals(Count.of([row for row in real if not row.replayed]), Count.of(replayed), Count.of(made))
