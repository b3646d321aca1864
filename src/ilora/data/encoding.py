"""From rows of text to token ids: the template around a prompt, the end of an answer, and what is cut."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from ilora.data.examples import Example
from ilora.data.stored import Gathering, like
from ilora.data.task import Row, Task
from ilora.data.template import end_of_turn, in_template, refuse_without_text, special_tokens
from ilora.errors import InputError
from ilora.settings import DataConfig

LONGEST_AUTO = 128  # tokens of an answer, at most, where the limit follows from the training answers
_AT_ONCE = 1000  # rows tokenized together
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)
TEMPLATES = {
    "chat": "prompts stand in the model's own chat template (data.template: chat)",
    "alpaca": "prompts stand in the Alpaca template (data.template: alpaca)",
    "none": "prompts are used as they are, without a chat template (data.template: none)",
}
Body = tuple[tuple[int, int], ...]  # ranges of a prompt's tokens: its messages; empty without a template


def with_template(config: DataConfig, tokenizer: Any) -> DataConfig:
    """The data settings with `template: auto` decided: the model's chat template, where it has one.

    A benchmark's prompts are as they are defined, without a template.
    """
    if config.template != "auto":
        return config
    chat = bool(tokenizer.chat_template) and config.benchmark is None
    return config.model_copy(update={"template": "chat" if chat else "none"})


def control_tokens(tokenizer: Any, rows: Sequence[Row]) -> dict[str, int]:
    """The tokenizer's control tokens that stand in people's own text, each with the number of rows that hold it.

    The tokenizer cannot tell them from its own: an end within a prompt ends it.
    """
    names = special_tokens(tokenizer).values()
    if not names:
        return {}
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    counts = Counter(name for row in rows for name in {*pattern.findall(row.prompt), *pattern.findall(row.answer)})
    return dict(sorted(counts.items()))


class Encoder:
    """Rows of text to examples, by a tokenizer and the data settings.

    ends: further tokens with which the model ends an answer. positions: tokens that the model reads, at most.
    vectors: that the method puts before a row; `max_length` and `positions` are what they leave. `of`: for one task.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: DataConfig,
        *,
        ends: Sequence[int] = (),
        positions: int | None = None,
        vectors: int = 0,
    ) -> None:
        self.tokenizer, self.positions, self.vectors, self._given_ends = tokenizer, positions, vectors, tuple(ends)
        self._others: dict[str, Encoder] = {}
        self.config = config = with_template(config, tokenizer)
        if config.template == "chat" and not tokenizer.chat_template:
            raise InputError("data.template: chat, but this model's tokenizer has no chat template; use none or alpaca")
        if tokenizer.eos_token_id is None:
            raise InputError("the model's tokenizer has no end-of-text token, so answers could never end")
        if config.template == "chat":
            refuse_without_text(tokenizer)
        text_end = int(tokenizer.eos_token_id)
        # What an answer is trained to end with.
        self.end = end_of_turn(tokenizer) if config.template == "chat" else text_end
        self.ends = tuple(dict.fromkeys([self.end, text_end, *ends]))  # what a generated one may end with
        self.start = tokenizer.bos_token_id
        closed: list[int] = tokenizer("a", verbose=False).input_ids
        self._closes = closed[-1:] == [text_end]  # some tokenizers put end-of-text behind every text
        # Any token may pad: masks and labels come from lengths, so end-of-text is still learnt where it pads.
        self.pad = text_end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def of(self, task: Task) -> Encoder:
        """The encoder of a task's rows: in its own template, where it has one. Raises InputError naming the task."""
        if task.template in (None, self.config.template):
            return self
        template = str(task.template)
        if template not in self._others:
            own = self.config.model_copy(update={"template": template})
            try:
                self._others[template] = Encoder(
                    self.tokenizer, own, ends=self._given_ends, positions=self.positions, vectors=self.vectors
                )
            except InputError as error:
                raise InputError(f"task '{task.name}': {error}") from None
        return self._others[template]

    @property
    def described(self) -> str:
        """What stands around a prompt, in words."""
        return TEMPLATES[self.config.template]

    @property
    def length(self) -> str:
        """`max_length` in words, with what the method takes of it."""
        left = self.config.max_length
        return f"data.max_length ({self._beside(left)})"

    def _beside(self, left: int) -> str:
        if not self.vectors:
            return str(left)
        return f"{left + self.vectors}, of which the method's vectors take {self.vectors} and a row {left}"

    def fitting(self, task: Task) -> Task:
        """The task without rows whose answer does not fit into `max_length`, if `data.too_long` is `drop`.

        Raises InputError where that leaves no row of a split.
        """
        if self.config.too_long == "error":
            return task
        rows, dropped = {}, {}
        for split, every in task.rows.items():
            kept, own = Gathering(like(every)), self.of(task)
            for start in range(0, len(every), _AT_ONCE):
                part = every[start : start + _AT_ONCE]
                for row, (_, answer) in zip(part, own.lengths(part), strict=True):
                    if answer < self.config.max_length:
                        kept.add(row)
            rows[split] = kept.rows()
            dropped[split] = len(every) - len(rows[split])
            if every and not rows[split]:
                raise InputError(
                    f"task '{task.name}': no {split} row has an answer that fits into {self.length}; raise it"
                )
        return replace(task, rows=rows, too_long={split: count for split, count in dropped.items() if count})

    def encode(self, task: Task, split: str) -> list[Example]:
        """Every row of a split. Raises InputError where an answer alone does not fit into `max_length`."""
        return list(self.examples(task, split))

    def examples(self, task: Task, split: str) -> Iterator[Example]:
        """`encode`, a thousand rows at a time."""
        own = self.of(task)
        for start in range(0, len(task.rows[split]), _AT_ONCE):
            found = own._pairs([(row, row.answer) for row in task.rows[split][start : start + _AT_ONCE]])
            for index, ids in enumerate(found, start):
                yield self._example(task, f"{task.label}/{split}/{index}", *ids)

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
        found = self.of(task)._pairs([(row, choice) for row in rows for choice in task.choices])
        examples = [
            self._example(task, f"{task.label}/{split}/{index // count}", *ids) for index, ids in enumerate(found)
        ]
        return [examples[start : start + count] for start in range(0, len(examples), count)]

    def _example(self, task: Task, key: str, prompt: list[int], answer: list[int], body: Body) -> Example:
        room = self.config.max_length - len(answer)
        if room < 1:
            raise InputError(
                f"task '{task.name}', row {key}: the answer has {len(answer)} tokens with its end-of-text, "
                f"more than {self.length} leaves beside a prompt; answers are never cut: raise data.max_length, or "
                "leave such rows out with data.too_long=drop"
            )
        if len(prompt) <= room:
            return Example(task.name, key, prompt, answer, body=body)
        kept, left = self._cut(prompt, room, body)
        return Example(task.name, key, kept, answer, cut=True, body=left)

    def answer_limit(self, task: Task, setting: int | str, longest: int) -> int:
        """The most tokens of a generated answer.

        longest: tokens of the longest training answer, which `auto` uses.
        Raises InputError where the model's positions leave no room for a prompt.
        """
        limit = task.max_new_tokens or setting
        if not isinstance(limit, int):
            limit = min(LONGEST_AUTO, int(1.5 * longest) + 4)
            return limit if self.positions is None else min(limit, max(longest, self.positions // 2))
        if self.positions is not None and limit >= self.positions:
            raise InputError(
                f"task '{task.name}': max_new_tokens is {limit}, but the model reads at most "
                f"{self._beside(self.positions)} tokens, the prompt included"
            )
        return limit

    def room(self, max_new_tokens: int) -> int:
        """How many tokens a prompt may have in generation, so that the longest answer still fits."""
        room = max(self.config.max_length - max_new_tokens, self.config.max_length // 2)
        return room if self.positions is None else min(room, self.positions - max_new_tokens)

    def cut(self, prompt: list[int], room: int, body: Body = ()) -> list[int]:
        """At most `room` tokens of a prompt.

        body: its messages, of which the longest are cut, so that a template's turns stay whole; where they are too
        short for that, or there are none, anything is cut but a begin-of-text token at the start.
        """
        return self._cut(prompt, room, body)[0]

    def _cut(self, prompt: list[int], room: int, body: Body) -> tuple[list[int], Body]:
        """What is left, and where its messages are."""
        if len(prompt) <= room:
            return prompt, body
        sizes = _levelled([stop - start for start, stop in body], len(prompt) - room)
        if sizes is None:
            return self._cut_anything(prompt, room), ()
        kept: list[int] = []
        ranges, place = [], 0
        for (start, stop), size in zip(body, sizes, strict=True):
            kept += prompt[place:start]
            ranges.append((len(kept), len(kept) + size))
            kept += cut_prompt(prompt[start:stop], size, self.config.cut)
            place = stop
        return [*kept, *prompt[place:]], tuple(ranges)

    def _cut_anything(self, prompt: list[int], room: int) -> list[int]:
        front = prompt[:1] if room > 1 and prompt[:1] == [self.start] else []
        return front + cut_prompt(prompt[len(front) :], room - len(front), self.config.cut)

    def _pairs(self, pairs: Sequence[tuple[Row, str]]) -> list[tuple[list[int], list[int], Body]]:
        """Prompt ids, answer ids, and what of the prompt may be cut.

        Prompt and answer are tokenized together, as the model would see the finished text.
        """
        if not pairs:
            return []
        heads = [self._prompt(row) for row, _ in pairs]
        tails = [self._separator(head) + answer for head, (_, answer) in zip(heads, pairs, strict=True)]
        prompts = self._ids(heads)
        bodies = self._bodies([row for row, _ in pairs], heads)
        wholes = self._ids([head + tail for head, tail in zip(heads, tails, strict=True)])
        found = []
        for prompt, whole, tail, body in zip(prompts, wholes, tails, bodies, strict=True):
            joined = whole[: len(prompt)] == prompt  # else a token spans the border: the answer is encoded alone
            answer = whole[len(prompt) :] if joined else self._alone(tail)
            found.append((prompt, [*answer, self.end], body))
        return found

    def _prompt(self, row: Row) -> str:
        if self.config.template == "chat":
            try:
                return in_template(self.tokenizer, _turns(row), tools=row.tools)
            except TemplateError as error:
                beginning = row.prompt[:60]
                raise InputError(f"data.template: chat: the model's template: {error} (at {beginning!r})") from error
        return _ALPACA.format(prompt=row.prompt) if self.config.template == "alpaca" else row.prompt

    def _bodies(self, rows: Sequence[Row], prompts: Sequence[str]) -> list[Body]:
        """Which tokens of each prompt belong to its messages; none without a template around them."""
        if self.config.template == "none" or not self.tokenizer.is_fast:
            return [()] * len(rows)
        special = self.config.template != "chat"
        made = self.tokenizer(
            list(prompts), add_special_tokens=special, return_offsets_mapping=True, verbose=False
        ).offset_mapping
        return [_tokens_of(offsets, _spans(row, text)) for offsets, row, text in zip(made, rows, prompts, strict=True)]

    def _separator(self, prompt: str) -> str:
        return "" if self.config.template != "none" or prompt[-1:].isspace() else self.config.separator

    def _ids(self, texts: list[str]) -> list[list[int]]:
        special = self.config.template != "chat"  # a chat template writes its special tokens itself
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, verbose=False).input_ids
        return [row[:-1] for row in ids] if special and self._closes else ids  # a prompt must stay open

    def _alone(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids


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


def _turns(row: Row) -> list[dict[str, Any]]:
    """The messages before the answer; a plain prompt is one of the user's."""
    return [dict(turn) for turn in row.messages] or [{"role": "user", "content": row.prompt}]


def _spans(row: Row, text: str) -> list[tuple[int, int]]:
    """Where in the templated text each message stands, in its order there; one that the template changed is missing."""
    found: list[tuple[int, int]] = []
    for turn in sorted(_turns(row), key=lambda turn: -len(turn["content"])):
        content, start = turn["content"].strip(), -1
        while content and (start := text.find(content, start + 1)) >= 0:
            if all(start + len(content) <= begin or end <= start for begin, end in found):
                found.append((start, start + len(content)))
                break
    return sorted(found)


def _tokens_of(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Body:
    """The tokens whose characters lie within each span."""
    ranges = []
    for begin, end in spans:
        inside = [n for n, (start, stop) in enumerate(offsets) if begin <= start < stop <= end]
        if inside:
            ranges.append((inside[0], inside[-1] + 1))
    return tuple(ranges)


def _levelled(sizes: Sequence[int], excess: int) -> list[int] | None:
    """The sizes less `excess` in all, taken from the largest; None where less than one would be left of each."""
    if not sizes or sum(sizes) - len(sizes) < excess:
        return None
    low, high = 1, max(sizes)
    while low < high:  # the highest level to which cutting all takes enough
        level = (low + high + 1) // 2
        low, high = (level, high) if sum(max(size - level, 0) for size in sizes) >= excess else (low, level - 1)
    left = [min(size, low) for size in sizes]
    spare = sum(sizes) - excess - sum(left)
    for n, size in enumerate(sizes):
        if spare and size > left[n]:
            left[n], spare = left[n] + 1, spare - 1
    return left
