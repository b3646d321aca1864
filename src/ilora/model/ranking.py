"""How likely each of several answers is: every prompt is read once, its answers behind what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ilora.data.examples import IGNORED, Batch, Example, collate, sent
from ilora.kernels.losses import token_losses
from ilora.model.engine import Engine
from ilora.model.passes import Inputs, ReadPrompts

NUMBERS = 2**29  # logits that are made at once, at most


def likelihoods(engine: Engine, batch: Batch, choices: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """log p(choice | prompt) of every row's choices, (rows, choices), in float32, with what is active in the engine.

    batch: prompts without answers.
    choices: token ids, as many choices for each row.
    """
    pairs = zip(batch.examples, choices, strict=True)
    answered = [[replace(row, answer=list(ids)) for ids in found] for row, found in pairs]
    read = engine.read_prompts(batch, whole=not engine.knows([example for row in answered for example in row]))
    plain = read.cache is not None and not read.inputs.upper and "adapter_names" not in read.inputs.arguments
    if engine.decoding is not None and plain:  # a GPU that waits for Python: as few passes as possible
        groups = _groups(choices, most=NUMBERS // (len(choices) * read.logits.shape[2]))
        return torch.cat([_together(engine, read, [row[group] for row in choices]) for group in groups], dim=1)
    return torch.stack([_alone(engine, read, rows) for rows in zip(*answered, strict=True)], dim=1)


def _groups(choices: Sequence[Sequence[Sequence[int]]], *, most: int) -> Iterator[slice]:
    """The choices in parts of at most so many columns, or of one choice."""
    widths = [_width(column) for column in zip(*choices, strict=True)]
    start, total = 0, 0
    for number, width in enumerate(widths):
        if number > start and total + width > most:
            yield slice(start, number)
            start, total = number, 0
        total += width
    yield slice(start, len(widths))


def _width(answers: Sequence[Sequence[int]]) -> int:
    """Columns that are read behind the prompts for these: every token but the last."""
    return max(map(len, answers)) - 1


def _together(engine: Engine, read: ReadPrompts, choices: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """log p of all choices, (rows, choices), by one pass: a choice's tokens see the prompt and their own choice."""
    widths = [_width(column) for column in zip(*choices, strict=True)]
    device = read.logits.device
    first = sent([[choice[0] for choice in row] for row in choices], device)
    found = read.logits[:, -1].float().log_softmax(1).gather(1, first)
    if not sum(widths):
        return found
    fed = _filled(choices, widths, slice(0, -1)).to(device)
    labels = _filled(choices, widths, slice(1, None)).to(device)
    prompts = read.inputs.arguments["attention_mask"]
    own = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))  # the choice of each column
    sees = (own[:, None] == own).tril().to(device)
    seen = torch.cat([prompts.bool()[:, None].expand(-1, len(own), -1), sees.expand(len(fed), -1, -1)], dim=2)
    place = torch.cat([torch.arange(width) for width in widths]).to(device)
    mask = torch.zeros(seen.shape, dtype=read.logits.dtype, device=device)
    mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
    with read.cache_for(len(own)) as cache, engine.as_written():
        logits = engine.model(
            input_ids=fed.clamp(min=0), attention_mask=mask[:, None], past_key_values=cache, use_cache=True,
            position_ids=prompts.sum(1, keepdim=True) + place,
        ).logits  # fmt: skip
    losses = token_losses(logits, labels)
    return found.index_add_(1, own.to(device), losses, alpha=-1)


def _filled(choices: Sequence[Sequence[Sequence[int]]], widths: Sequence[int], part: slice) -> Tensor:
    """A part of every choice, filled up to its columns, side by side: (rows, columns)."""
    pad = [[[*choice[part], *[IGNORED] * (width + 1 - len(choice))] for choice, width in zip(row, widths, strict=True)]
           for row in choices]  # fmt: skip
    return torch.tensor([[token for choice in row for token in choice] for row in pad])


def _alone(engine: Engine, read: ReadPrompts, rows: Sequence[Example]) -> Tensor:
    """log p(answer | prompt) of each row, (rows,): its prompt is read already."""
    if read.cache is None:  # a recurrent model without a cache to go on from
        batch = collate(rows, pad=engine.pad, device=engine.device)
        return -token_losses(engine.forward(batch, dropout=False).answer_logits, batch.targets).sum(1)
    width = max(len(row.answer) for row in rows)
    filled = [[*row.answer, *[IGNORED] * (width - len(row.answer))] for row in rows]
    labels, logits = sent(filled, engine.device), read.logits
    if width > 1:
        with read.cache_for(width - 1) as cache:
            logits = torch.cat([logits, _go_on(engine, read.inputs, rows, labels[:, :-1], cache)], dim=1)
    return -token_losses(logits, labels).sum(1)


def _go_on(engine: Engine, inputs: Inputs, rows: Sequence[Example], tokens: Tensor, cache: Any) -> Tensor:
    """Logits (rows, columns, vocabulary) after each of the answers' tokens behind what the cache holds.

    inputs: the prompts as they were read, padded. tokens: IGNORED where an answer has no more of them.
    """
    width = tokens.shape[1]
    mask = torch.cat([inputs.arguments["attention_mask"], torch.ones_like(tokens)], dim=1)
    more: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache}
    if engine.below is not None and inputs.upper:
        more["inputs_embeds"] = engine.below.behind(rows, width, engine.device)
    else:
        more["input_ids"] = tokens.clamp(min=0)
    if engine.takes_positions:
        more["position_ids"] = (mask.cumsum(1) - 1)[:, -width:]
    if "adapter_names" in inputs.arguments:
        more["adapter_names"] = inputs.arguments["adapter_names"]
    with engine.as_written(upper=inputs.upper):
        logits: Tensor = engine.model(**more, use_cache=True).logits
    return logits
