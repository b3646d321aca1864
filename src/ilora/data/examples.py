"""From rows to token ids to padded batches.

Batches are padded on the left, so that all answers end in the last column: the model then needs logits for the last
few positions only, whatever its architecture, and training and generation see rows in the same form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.settings import DataConfig

_LONGEST_AUTO = 128
_AT_ONCE = 1000  # rows tokenized together
IGNORED = -100  # the label that cross-entropy passes over
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one row. `answer` ends with end-of-text; `id` is `<task label>/<split>/<index>`.

    replayed: drawn from the memory. pseudo: made up by rehearsal, so that its answer is no reference.
    """

    task: str
    id: str
    prompt: list[int]
    answer: list[int]
    replayed: bool = False
    pseudo: bool = False
    cut: bool = False

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
        chosen = torch.tensor(rows, device=self.input_ids.device)
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


class Encoder:
    """Rows of text to examples, by a tokenizer and the data settings."""

    def __init__(self, tokenizer: Any, config: DataConfig) -> None:
        if config.template == "chat" and not tokenizer.chat_template:
            raise InputError("data.template: chat, but this model's tokenizer has no chat template; use none or alpaca")
        if tokenizer.eos_token_id is None:
            raise InputError("the model's tokenizer has no end-of-text token, so answers could never end")
        self.tokenizer = tokenizer
        self.config = config
        self.end = int(tokenizer.eos_token_id)
        self.start = tokenizer.bos_token_id
        # Any token may pad: masks and labels come from lengths, so end-of-text is still learnt where it pads.
        self.pad = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def fitting(self, task: Task) -> Task:
        """The task without rows whose answer does not fit into `max_length`, if `data.too_long` is `drop`.

        Raises InputError where that leaves no row of a split.
        """
        if self.config.too_long == "error":
            return task
        rows, dropped = {}, {}
        for split, every in task.rows.items():
            lengths = self.lengths(every)
            rows[split] = [
                row for row, (_, answer) in zip(every, lengths, strict=True) if answer < self.config.max_length
            ]
            dropped[split] = len(every) - len(rows[split])
            if every and not rows[split]:
                raise InputError(
                    f"task '{task.name}': no {split} row has an answer that fits into data.max_length "
                    f"({self.config.max_length} tokens); raise it"
                )
        return replace(task, rows=rows, too_long={split: count for split, count in dropped.items() if count})

    def encode(self, task: Task, split: str) -> list[Example]:
        """Every row of a split. Raises InputError where an answer alone does not fit into `max_length`."""
        rows = task.rows[split]
        prompts, answers = self._pairs([(row, row.answer) for row in rows])
        return [
            self._example(task, f"{task.label}/{split}/{index}", prompt, answer)
            for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]

    def lengths(self, rows: Sequence[Row]) -> list[tuple[int, int]]:
        """(tokens of prompt and answer, tokens of the answer alone) of every row, before anything is cut.

        Both count the end-of-text. Where a token would span the border between the two, the first may be one less than
        what `encode` makes.
        """
        found: list[tuple[int, int]] = []
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            heads = [self._prompt(row) for row in part]
            tails = [self._separator(head) + row.answer for head, row in zip(heads, part, strict=True)]
            wholes = self._ids([head + tail for head, tail in zip(heads, tails, strict=True)])
            answers = self.tokenizer(tails, add_special_tokens=False, verbose=False).input_ids
            found += [(len(whole) + 1, len(answer) + 1) for whole, answer in zip(wholes, answers, strict=True)]
        return found

    def choices(self, task: Task, split: str) -> list[list[Example]]:
        """For every row of a split, one example per choice of the task: what likelihood ranking compares."""
        rows, count = task.rows[split], len(task.choices)
        prompts, answers = self._pairs([(row, choice) for row in rows for choice in task.choices])
        examples = [
            self._example(task, f"{task.label}/{split}/{index // count}", prompt, answer)
            for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        return [examples[start : start + count] for start in range(0, len(examples), count)]

    def _example(self, task: Task, key: str, prompt: list[int], answer: list[int]) -> Example:
        room = self.config.max_length - len(answer)
        if room < 1:
            raise InputError(
                f"task '{task.name}', row {key}: the answer has {len(answer)} tokens with its end-of-text, "
                f"data.max_length is {self.config.max_length}; answers are never cut: raise data.max_length, or leave "
                "such rows out with data.too_long=drop"
            )
        return Example(task.name, key, self.cut(prompt, room), answer, cut=len(prompt) > room)

    def room(self, max_new_tokens: int) -> int:
        """How many tokens a prompt may have in generation, so that the longest answer still fits."""
        return max(self.config.max_length - max_new_tokens, self.config.max_length // 2)

    def cut(self, prompt: list[int], room: int) -> list[int]:
        """At most `room` tokens of a prompt. A begin-of-text token at its start always stays."""
        front = prompt[:1] if room > 1 and prompt[:1] == [self.start] else []
        return front + cut_prompt(prompt[len(front) :], room - len(front), self.config.cut)

    def _pairs(self, pairs: Sequence[tuple[Row, str]]) -> tuple[list[list[int]], list[list[int]]]:
        """Prompt ids and answer ids. The two are tokenized together, as the model would see the finished text."""
        if not pairs:
            return [], []
        heads = [self._prompt(row) for row, _ in pairs]
        tails = [self._separator(head) + answer for head, (_, answer) in zip(heads, pairs, strict=True)]
        prompts = self._ids(heads)
        wholes = self._ids([head + tail for head, tail in zip(heads, tails, strict=True)])
        answers = []
        for prompt, whole, tail in zip(prompts, wholes, tails, strict=True):
            joined = whole[: len(prompt)] == prompt  # else a token spans the border: the answer is encoded alone
            answer = whole[len(prompt) :] if joined else self._alone(tail)
            answers.append([*answer, self.end])
        return prompts, answers

    def _prompt(self, row: Row) -> str:
        if self.config.template == "chat":
            turns = [dict(turn) for turn in row.messages] or [{"role": "user", "content": row.prompt}]
            try:
                return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
            except TemplateError as error:
                beginning = row.prompt[:60]
                raise InputError(f"data.template: chat: the model's template: {error} (at {beginning!r})") from error
        return _ALPACA.format(prompt=row.prompt) if self.config.template == "alpaca" else row.prompt

    def _separator(self, prompt: str) -> str:
        return "" if self.config.template != "none" or prompt[-1:].isspace() else self.config.separator

    def _ids(self, texts: list[str]) -> list[list[int]]:
        special = self.config.template != "chat"  # a chat template writes its special tokens itself
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, verbose=False).input_ids
        # Some tokenizers close every text with end-of-text: a prompt must stay open.
        return [row[:-1] if special and row and row[-1] == self.end else row for row in ids]

    def _alone(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids


def answer_limit(task: Task, setting: int | str, longest: int) -> int:
    """The most tokens of a generated answer. longest: tokens of the longest training answer, which `auto` uses."""
    limit = task.max_new_tokens or setting
    return limit if isinstance(limit, int) else min(_LONGEST_AUTO, int(1.5 * longest) + 4)


def cut_prompt(prompt: list[int], room: int, cut: str) -> list[int]:
    """At most `room` tokens of the prompt, dropping its start, middle or end."""
    if len(prompt) <= room:
        return prompt
    if cut == "start":
        return prompt[-room:]
    if cut == "end":
        return prompt[:room]
    head = (room + 1) // 2
    return prompt[:head] + prompt[len(prompt) - (room - head) :]


def collate(examples: Sequence[Example], *, pad: int, device: torch.device | str = "cpu") -> Batch:
    """Left-padded tensors; labels are the answers' tokens, everything else (prompt, padding) is IGNORED."""
    length = max(len(example) for example in examples)
    ids, mask, labels = [], [], []
    for example in examples:
        gap = length - len(example)
        ids.append([pad] * gap + example.prompt + example.answer)
        mask.append([0] * gap + [1] * len(example))
        labels.append([IGNORED] * (gap + len(example.prompt)) + example.answer)
    return Batch(
        examples=list(examples),
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        labels=torch.tensor(labels, device=device),
        replayed=torch.tensor([example.replayed for example in examples], device=device),
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
