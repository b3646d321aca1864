"""Rows of several lengths as one long row without padding; attention alone sees them row by row.

Linear layers, norms and rotations work token by token, so whatever is padding there is work for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Packing:
    """taken: (tokens,) the place of each token among rows · length. token_at: (rows · length,) back; 0 at padding."""

    taken: Tensor
    token_at: Tensor
    rows: int
    length: int

    @staticmethod
    def of(mask: Tensor) -> Packing:
        """mask: (rows, length), 1 where there is a token."""
        flat = mask.flatten().bool()
        token_at = (flat.cumsum(0) - 1).clamp(min=0).masked_fill(~flat, 0)
        return Packing(flat.nonzero()[:, 0], token_at, *mask.shape)

    def pack(self, padded: Tensor) -> Tensor:
        """(rows, length, ...) -> (1, tokens, ...)."""
        return padded.flatten(0, 1).index_select(0, self.taken).unsqueeze(0)

    def spread(self, packed: Tensor) -> Tensor:
        """(1, tokens, ...) -> (rows, length, ...), zero at padding."""
        empty = packed.new_zeros(self.rows * self.length, *packed.shape[2:])
        return empty.index_copy(0, self.taken, packed[0]).view(self.rows, self.length, *packed.shape[2:])

    def columns(self, count: int) -> Tensor:
        """(rows · count,): which token stands in each row's last columns; token 0 where there is padding."""
        return self.token_at.view(self.rows, self.length)[:, self.length - count :].flatten()

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """(rows, 1, length, length), to be added to scores: earlier tokens of the same row only."""
        real = torch.zeros(self.rows * self.length, dtype=torch.bool, device=self.taken.device)
        real[self.taken] = True
        earlier = torch.ones(self.length, self.length, dtype=torch.bool, device=real.device).tril()
        allowed = earlier & real.view(self.rows, 1, 1, self.length)
        return torch.zeros(allowed.shape, dtype=dtype, device=real.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )


class Spread(torch.autograd.Function):
    """(1, heads, tokens, size) -> (rows, heads, length, size), whatever at padding: attention masks it.

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
        """What padding got is dropped: nobody reads it."""
        tokens = grad.transpose(1, 2).flatten(0, 1).index_select(0, ctx.packing.taken)
        return tokens.transpose(0, 1).unsqueeze(0), None


class Gather(torch.autograd.Function):
    """(rows, length, heads, size) -> (1, tokens, heads, size)."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, packing: Packing) -> Tensor:
        """The real tokens."""
        ctx.packing = packing
        return packing.pack(padded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Zero at padding: its queries look at real keys."""
        return ctx.packing.spread(grad), None
