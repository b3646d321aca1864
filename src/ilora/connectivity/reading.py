"""Loss and greedy answer of prompts at one point, with each prompt read once.

Loss and answer need the same prompt, and where answers are short the prompt is nearly all of the work. So the prompt
and the reference answer go through the model together. Most prompts of a task begin with the same instruction: this
prefix is read once for all rows.

The greedy answer is found with drafts (speculative decoding, Leviathan et al. 2023): a draft of the whole answer goes
through the model in one pass, and its tokens are accepted as far as greedy search would have chosen them. The first
draft is the reference. The next is the neighbouring point's answer, which is mostly the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ilora.data.examples import IGNORED, Batch
from ilora.kernels.losses import token_losses
from ilora.model.engine import Engine

_WINDOW = 16  # columns of drafts a pass reads at most: a wrong draft wastes no more than these
_SHORTEST = 0.8  # a batch holds no row shorter than this share of its longest: padding is computed, too


def shared_length(prompts: Sequence[list[int]]) -> int:
    """The number of tokens with which all prompts begin; each keeps at least one token of its own."""
    first, last = min(prompts), max(prompts)  # what these two share, all prompts between them in order share too
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


class SharedPrefix:
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
        """A cache that begins with the prefix, for so many rows."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self._layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
        return cache


@dataclass
class Answer:
    """A greedy answer as far as it is known: at least one token, at most `limit`; one of `ends` is its last."""

    tokens: list[int]
    limit: int
    ends: Sequence[int]

    @property
    def finished(self) -> bool:
        """Whether nothing is to be added."""
        return self.tokens[-1] in self.ends or len(self.tokens) >= self.limit

    def continued(self, draft: Sequence[int]) -> list[int]:
        """The tokens, and the rest of the draft where it agrees with them so far."""
        known = len(self.tokens)
        return [*self.tokens, *draft[known:]] if list(draft[:known]) == self.tokens else self.tokens

    def accept(self, fed: Sequence[int], said: Sequence[int], *, start: int) -> None:
        """Add what the model said after each fed token that was right; said[n] follows fed[start + n]."""
        while not self.finished:
            last = len(self.tokens) - 1
            if last - start >= len(said) or list(fed[last : last + 1]) != self.tokens[-1:]:
                return
            self.tokens.append(said[last - start])


class Reading:
    """Prompts and their reference answers, read with the weights that are active now.

    batch: the prompts, left-padded, without the shared prefix.
    losses: each row's mean cross-entropy over its answer's tokens, with end-of-text, in nats.
    """

    def __init__(self, engine: Engine, batch: Batch, prefix: SharedPrefix, answers: Sequence[Sequence[int]]) -> None:
        known = inspect.signature(engine.core.forward).parameters
        self._takes_positions, self._slices_logits = "position_ids" in known, "logits_to_keep" in known
        self._model: Any = engine.model
        rows, length = batch.input_ids.shape
        self._cache = prefix.cache(rows)
        self._prompt = prefix.tokens + length
        self._mask = torch.cat([batch.attention_mask.new_ones(rows, prefix.tokens), batch.attention_mask], dim=1)
        logits = self._read(batch.input_ids, answers, skipped=prefix.tokens)
        labels = self._padded(answers, logits.shape[1], IGNORED)
        self.losses: list[float] = (token_losses(logits, labels).sum(1) / (labels != IGNORED).sum(1)).tolist()
        self._tried, self._said = answers, logits.argmax(-1).tolist()

    def _read(self, prompts: Tensor, answers: Sequence[Sequence[int]], *, skipped: int) -> Tensor:
        """Logits (rows, columns, vocabulary) after each prompt and after each answer token but the last."""
        width = max(map(len, answers))
        fed = torch.cat([prompts, self._padded(answers, width, 0)[:, :-1]], dim=1)
        # A shorter answer is followed by filler, to which no token before it attends.
        mask = torch.cat([self._mask, self._mask.new_ones(len(fed), width - 1)], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, skipped:]
        return self._forward(fed, mask, positions, keep=width)

    def greedy(self, drafts: Sequence[Sequence[int]], *, limit: int, ends: Sequence[int]) -> list[list[int]]:
        """Each row's greedy answer, up to `limit` tokens or the first end (included).

        It uses up the cache: call it once.
        drafts: a guess of each answer. It changes the time only, not the answer.
        """
        answers = [Answer(said[:1], limit, ends) for said in self._said]
        for answer, tried, said in zip(answers, self._tried, self._said, strict=True):
            answer.accept(tried, said[1:], start=0)  # where the reference is right, no further pass is needed
        rows = list(range(len(answers)))
        while unfinished := [row for row in rows if not answers[row].finished]:
            self._keep([rows.index(row) for row in unfinished])
            rows = unfinished
            self._extend([answers[row] for row in rows], [drafts[row] for row in rows])
        return [answer.tokens for answer in answers]

    def _extend(self, answers: Sequence[Answer], drafts: Sequence[Sequence[int]]) -> None:
        """Read the next columns of the drafts in one pass, and accept what is right: at least one token of each."""
        start = min(len(answer.tokens) for answer in answers) - 1  # the cache holds all tokens before this column
        guesses = [answer.continued(draft) for answer, draft in zip(answers, drafts, strict=True)]
        width = min(max(map(len, guesses)) - start, _WINDOW, answers[0].limit - 1 - start)
        fed = self._padded([guess[start : start + width] for guess in guesses], width, answers[0].ends[0])
        said = self._continue(fed, start=start).argmax(-1).tolist()
        for answer, guess, tokens in zip(answers, guesses, said, strict=True):
            answer.accept(guess, tokens, start=start)

    def _keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only."""
        if len(rows) < len(self._mask):
            chosen = torch.tensor(rows, device=self._mask.device)
            self._cache.batch_select_indices(chosen)
            self._mask = self._mask[chosen]

    def _continue(self, tokens: Tensor, *, start: int) -> Tensor:
        """Logits (rows, columns, vocabulary) after each of these tokens, the answer's from number `start` on."""
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
