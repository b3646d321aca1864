"""Prompts at one point: each goes through the model once, and everything asked of it is read from the cache.

Loss and greedy answer need the same prompt, which is nearly all of the work where answers are short, so the prompt and
the reference answer go through the model together; the prompts of a task mostly begin alike (its instruction), and that
stem is read once for all rows. The greedy answer is found by drafts (speculative decoding, Leviathan et al. 2023, for
greedy search): a guess of the whole answer goes through the model in one pass, and is right as far as it is what greedy
search would have said token by token. The first guess is the reference, the next the neighbouring point's answer, which
is mostly this point's answer too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ilora.data.examples import IGNORED, Batch
from ilora.kernels.losses import token_losses
from ilora.model.engine import Engine

_WINDOW = 16  # columns of drafts a pass reads at most: a wrong draft wastes no more than these
_SHORTEST = 0.8  # a batch holds no row shorter than this share of its longest: padding is computed, too


def stem_length(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with; each keeps at least one of its own."""
    first, last = min(prompts), max(prompts)  # what these two share, all that sort between them share
    limit = min(map(len, prompts)) - 1
    return next((place for place in range(limit) if first[place] != last[place]), max(0, limit))


def batches(lengths: Sequence[int], *, size: int) -> Iterator[list[int]]:
    """Row numbers, longest first, in batches of at most `size` rows of like length."""
    rows: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if rows and (len(rows) == size or lengths[index] < _SHORTEST * lengths[rows[0]]):
            yield rows
            rows = []
        rows.append(index)
    if rows:
        yield rows


class Stem:
    """The keys and values of the tokens with which all prompts begin, at the weights that are active now."""

    def __init__(self, engine: Engine, tokens: Sequence[int]) -> None:
        self.tokens = len(tokens)
        self._layers: list[tuple[Tensor, Tensor]] = []
        if tokens:
            cache = DynamicCache()
            ids = torch.tensor([list(tokens)], device=engine.device)
            engine.model(input_ids=ids, past_key_values=cache, use_cache=True)
            self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def cache(self, rows: int) -> DynamicCache:
        """A cache that begins with the stem, for so many rows."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self._layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
        return cache


class Reading:
    """What the weights active now make of prompts (left-padded, without their stem) and of their reference answers.

    losses: each row's mean cross-entropy over its answer's tokens, end-of-text included, in nats.
    """

    def __init__(self, engine: Engine, batch: Batch, stem: Stem, answers: Sequence[Sequence[int]]) -> None:
        known = inspect.signature(engine.core.forward).parameters
        self._takes_positions, self._slices_logits = "position_ids" in known, "logits_to_keep" in known
        self._model: Any = engine.model
        rows, length = batch.input_ids.shape
        self._cache = stem.cache(rows)
        self._prompt = stem.tokens + length
        self._mask = torch.cat([batch.attention_mask.new_ones(rows, stem.tokens), batch.attention_mask], dim=1)
        logits = self._read(batch.input_ids, answers, skipped=stem.tokens)
        labels = self._padded(answers, logits.shape[1], IGNORED)
        self.losses: list[float] = (token_losses(logits, labels).sum(1) / (labels != IGNORED).sum(1)).tolist()
        self._tried, self._said = answers, logits.argmax(-1).tolist()

    def _read(self, prompts: Tensor, answers: Sequence[Sequence[int]], *, skipped: int) -> Tensor:
        """Logits (rows, columns, vocabulary) after each prompt and after each answer token but the last."""
        width = max(map(len, answers))
        fed = torch.cat([prompts, self._padded(answers, width, 0)[:, :-1]], dim=1)
        # Behind a shorter answer stands filler, which nothing before it attends to.
        mask = torch.cat([self._mask, self._mask.new_ones(len(fed), width - 1)], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, skipped:]
        return self._forward(fed, mask, positions, keep=width)

    def greedy(self, drafts: Sequence[Sequence[int]], *, limit: int, end: int) -> list[list[int]]:
        """Each row's greedy answer, up to `limit` tokens or end-of-text (included). Once only: it uses up the cache.

        What the reference answer was met with is used again: a right answer needs no further pass, and a further one
        holds only the rows that are not finished. A draft changes the time only.
        """
        known = [heard[:1] for heard in self._said]
        for ids, tried, heard in zip(known, self._tried, self._said, strict=True):
            _accept(ids, tried, heard[1:], start=0, limit=limit, end=end)
        rows = list(range(len(known)))
        while left := [row for row in rows if known[row][-1] != end and len(known[row]) < limit]:
            self._keep([rows.index(row) for row in left])
            rows = left
            # Before this column every one of these rows' known tokens are in the cache.
            start = min(len(known[row]) for row in rows) - 1
            guesses = [_follow(known[row], drafts[row]) for row in rows]
            width = min(max(map(len, guesses)) - start, _WINDOW, limit - 1 - start)
            fed = self._padded([guess[start : start + width] for guess in guesses], width, end)
            for row, guess, said in zip(
                rows, guesses, self._continue(fed, start=start).argmax(-1).tolist(), strict=True
            ):
                _accept(known[row], guess, said, start=start, limit=limit, end=end)
        return known

    def _keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        if len(rows) < len(self._mask):
            chosen = torch.tensor(rows, device=self._mask.device)
            self._cache.batch_select_indices(chosen)
            self._mask = self._mask[chosen]

    def _continue(self, tokens: Tensor, *, start: int) -> Tensor:
        """Logits (rows, columns, vocabulary) after each of these answer tokens, the first standing at `start`."""
        surplus = self._cache.get_seq_length() - self._prompt - start
        if surplus:
            self._cache.crop(-surplus)
        rows, width = tokens.shape
        mask = torch.cat([self._mask, self._mask.new_ones(rows, start + width)], dim=1)
        positions = self._mask.sum(1, keepdim=True) + torch.arange(start, start + width, device=tokens.device)
        return self._forward(tokens, mask, positions, keep=width)

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, *, keep: int) -> Tensor:
        inputs = {"input_ids": tokens, "attention_mask": mask, "past_key_values": self._cache, "use_cache": True}
        if self._takes_positions:
            inputs["position_ids"] = positions
        if self._slices_logits:
            inputs["logits_to_keep"] = keep
        logits: Tensor = self._model(**inputs).logits
        return logits[:, -keep:]

    def _padded(self, rows: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
        filled = [[*row, *[filler] * (width - len(row))] for row in rows]
        return torch.tensor(filled, device=self._mask.device)


def _follow(known: list[int], draft: Sequence[int]) -> list[int]:
    """The known tokens, and the draft's further ones while it agreed with them so far."""
    return [*known, *draft[len(known) :]] if list(draft[: len(known)]) == known else known


def _accept(known: list[int], fed: Sequence[int], said: list[int], *, start: int, limit: int, end: int) -> None:
    """Add what the model said after each fed token that was right; said[j] follows fed[start + j]."""
    while known[-1] != end and len(known) < limit:
        last = len(known) - 1
        if last - start >= len(said) or list(fed[last : last + 1]) != known[-1:]:
            return
        known.append(said[last - start])
