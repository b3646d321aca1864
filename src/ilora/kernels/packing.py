"""Packing: rows of several lengths become one long row without padding. Only attention sees them row by row.

Linear layers, norms and rotary positions work token by token, so computing them for padding is wasted work. A token's
state depends on the tokens before it only, so a beginning that several rows share (an instruction) is computed once
for the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def round_up(number: int, *, parts: int = 8) -> int:
    """The next of a few sizes: `parts` of them between a power of two and the next, 16 apart at least."""
    step = max(16, (1 << max(number - 1, 1).bit_length() - 1) // parts)
    return math.ceil(number / step) * step


def fill(mask: Tensor) -> Tensor:
    """The mask with rows and columns of filling, so that few shapes occur: (more rows, more columns).

    mask: (rows, columns), 1 where there is a token. The number of tokens is rounded up by rows of filling behind the
    others; columns of padding are put on the left.
    """
    rows, columns = mask.shape
    tokens = int(mask.sum())
    # Columns cost nothing but memory for a moment, and 8 % more tokens less than a recording for a few steps.
    length, total = round_up(columns, parts=1), round_up(tokens, parts=4)
    most = math.ceil(max(16, total // 4) / length)  # rows of filling that any number of tokens up to `total` needs
    filled = nn.functional.pad(mask, (length - columns, 0, 0, math.ceil(rows / 8) * 8 - rows + most))
    missing = total - tokens
    for row in range(rows, rows + math.ceil(missing / length)):
        filled[row, -min(missing, length) :] = 1
        missing -= min(missing, length)
    return filled


@dataclass(frozen=True)
class Packing:
    """Which token of the packed row is at which place of the padded batch. Places count through rows · length.

    taken: (tokens,) the place of each token; of a shared token, its place in the first row that has it.
    token_at: (rows · length,) the token at each place; 0 at padding.
    real: (rows · length,) whether there is a token at all.
    again: the other places of shared tokens.
    starts: (rows + 1,) the first token of each row, and the number of tokens; None where rows share tokens.
    sizes: the tokens of each row, where they share none.
    shown: how many of the rows, the first ones, and of their columns, the last ones, a caller gets back; the rest are
    filling.
    """

    taken: Tensor
    token_at: Tensor
    real: Tensor
    again: Tensor
    starts: Tensor | None
    rows: int
    length: int
    shown: tuple[int, int]
    sizes: tuple[int, ...] = ()

    @staticmethod
    def of(mask: Tensor, ids: Tensor | None = None, *, shown: tuple[int, int] | None = None) -> Packing:
        """mask: (rows, length), 1 where there is a token. ids: the tokens, if equal beginnings are to be shared."""
        rows, length = mask.shape
        shown = shown or (rows, length)
        real = mask.flatten().bool()
        if ids is None:
            taken = real.nonzero()[:, 0]
            token_at = (real.cumsum(0) - 1).clamp(min=0).masked_fill(~real, 0)
            sizes = mask.sum(1)
            starts = nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
            return Packing(taken, token_at, real, taken[:0], starts, rows, length, shown, tuple(sizes.tolist()))
        first, at = _shared_beginnings(mask.tolist(), ids.tolist())
        taken, token_at = (torch.tensor(numbers, device=mask.device) for numbers in (first, at))
        again = real.index_fill(0, taken, False).nonzero()[:, 0]
        return Packing(taken, token_at, real, again, None, rows, length, shown)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by name."""
        found = {name: getattr(self, name) for name in ("taken", "token_at", "real", "again", "starts")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Packing:
        """The same with each tensor changed: moved, or copied."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors.items()}
        return replace(self, **changed)

    @property
    def saves(self) -> bool:
        """Whether there are fewer tokens than places."""
        return len(self.taken) < len(self.real)

    @property
    def counts(self) -> Tensor:
        """(tokens,): at how many places each token stands."""
        return torch.bincount(self.token_at[self.real], minlength=len(self.taken))

    def pack(self, padded: Tensor) -> Tensor:
        """(rows, length, ...) -> (1, tokens, ...)."""
        return padded.flatten(0, 1).index_select(0, self.taken).unsqueeze(0)

    def spread(self, packed: Tensor) -> Tensor:
        """(1, tokens, ...) -> (rows, columns, ...) of those shown, zero at padding."""
        places = packed[0].index_select(0, self._shown(self.token_at, self.shown[1]))
        real = self._shown(self.real, self.shown[1]).view(-1, *[1] * (places.dim() - 1))
        return places.masked_fill(~real, 0).view(*self.shown, *packed.shape[2:])

    def columns(self, count: int) -> Tensor:
        """(rows · count,): which token stands in each shown row's last columns; token 0 where there is padding."""
        return self._shown(self.token_at, count)

    def _shown(self, of_places: Tensor, columns: int) -> Tensor:
        return of_places.view(self.rows, self.length)[: self.shown[0], self.length - columns :].flatten()

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """(rows, 1, length, length), to be added to scores: earlier tokens of the same row only."""
        earlier = torch.ones(self.length, self.length, dtype=torch.bool, device=self.real.device).tril()
        allowed = earlier & self.real.view(self.rows, 1, 1, self.length)
        return torch.zeros(allowed.shape, dtype=dtype, device=self.real.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )


class Spread(torch.autograd.Function):
    """(1, heads, tokens, size) -> (rows, heads, length, size). Values at padding are arbitrary: attention masks them.

    Rows are copied both ways; `index_select`'s own backward pass would add them up one by one.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, packing: Packing) -> Tensor:
        """Copies whole tokens: a head's numbers lie together."""
        ctx.packing = packing
        places = packed[0].transpose(0, 1).index_select(0, packing.token_at)
        return places.view(packing.rows, packing.length, *places.shape[1:]).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Drops the gradient at padding, and adds up the gradients that a shared token has in several rows."""
        packing, places = ctx.packing, grad.transpose(1, 2).flatten(0, 1)
        tokens = places.index_select(0, packing.taken)
        if len(packing.again):
            owners = packing.token_at.index_select(0, packing.again)
            tokens.index_add_(0, owners, places.index_select(0, packing.again))
        return tokens.transpose(0, 1).unsqueeze(0), None


class Gather(torch.autograd.Function):
    """(rows, length, heads, size) -> (1, tokens, heads, size)."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, packing: Packing) -> Tensor:
        """Takes the real tokens. A shared token is taken from its first row: the others hold the same."""
        ctx.packing = packing
        return packing.pack(padded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Back to where it was taken from, zero elsewhere."""
        packing = ctx.packing
        places = grad.new_zeros(packing.rows * packing.length, *grad.shape[2:])
        places.index_copy_(0, packing.taken, grad[0])
        return places.view(packing.rows, packing.length, *grad.shape[2:]), None


def _shared_beginnings(mask: list[list[int]], ids: list[list[int]]) -> tuple[list[int], list[int]]:
    """`taken` and `token_at` of rows. A token is new unless an earlier row has it with the same tokens before it."""
    known: dict[tuple[int, int], int] = {}  # (the token before, an id): the token
    taken: list[int] = []
    token_at: list[int] = []
    for marks, row in zip(mask, ids, strict=True):
        before = -1
        for mark, token in zip(marks, row, strict=True):
            if not mark:  # padding may also stand behind a soft prompt
                token_at.append(0)
                continue
            if (before, token) not in known:
                known[before, token] = len(taken)
                taken.append(len(token_at))
            before = known[before, token]
            token_at.append(before)
    return taken, token_at
