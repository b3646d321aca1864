"""Several packed batches as one row through one copy of the frozen layers, each with adapters of its own.

The frozen products are made once for all of them; attention sees each batch by itself, and so does every LoRA update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ilora.kernels.attention import attention_in_rows, grouped_attention
from ilora.kernels.packing import Packing

JOINT = "joint"  # the name of this attention, under which transformers knows it


@dataclass(frozen=True)
class Segments:
    """How several packed batches stand one behind the other; a decoder is given it as its `packing`.

    ends: the first token behind each batch. packings, masks: of each, where attention computes them one by one.
    starts: (rows + 1,) the first token of each row of all batches, where attention takes rows of several lengths.
    rows, length: of all batches, the longest row.
    """

    ends: tuple[int, ...]
    packings: tuple[Packing, ...] = ()
    masks: tuple[Tensor, ...] = ()
    starts: Tensor | None = None
    rows: int = 0
    length: int = 0

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The first token of each batch, and the one behind its last."""
        return list(zip((0, *self.ends[:-1]), self.ends, strict=True))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a recorded pass reads, by name."""
        return {} if self.starts is None else {"starts": self.starts}

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Segments:
        """The same with each of `tensors` changed."""
        return self if self.starts is None else replace(self, starts=change(self.starts))


def joint_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    packing: Segments,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query: (1, heads, tokens, size); key, value: (1, groups, tokens, size). Returns (1, tokens, heads, size)."""
    del attention_mask, kwargs
    if packing.starts is not None:
        return attention_in_rows(query, key, value, packing.starts, packing.length, scaling), None
    parts = []
    for (start, end), own, mask in zip(packing.spans, packing.packings, packing.masks, strict=True):
        of_query, of_key, of_value = (part[:, :, start:end] for part in (query, key, value))
        parts.append(grouped_attention(module, of_query, of_key, of_value, mask, scaling, packing=own)[0])
    return torch.cat(parts, dim=1), None


AttentionInterface.register(JOINT, joint_attention)
AttentionMaskInterface.register(JOINT, eager_mask)


@dataclass
class Piece:
    """An adapter of one batch in one layer. drop: its dropout of the batch's tokens; None: it has none."""

    a: Tensor
    b: Tensor
    scaling: float
    drop: Callable[[Tensor], Tensor] | None = None


class JointLinear(nn.Module):
    """A frozen linear layer, and what the batches' adapters add to it.

    spans: of the batches. pieces: the adapters of each batch, of which it takes the sum.
    stacked: in place of both: A (batches, r, in) and B (batches, out, r), for batches of as many tokens each.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.spans: Sequence[tuple[int, int]] = ()
        self.pieces: Sequence[Sequence[Piece]] = ()
        self.stacked: tuple[Tensor, Tensor, float] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(1, tokens, in) -> (1, tokens, out)."""
        out: Tensor = self.base_layer(x)
        if self.stacked is not None:
            stacked: Tensor = _Stacked.apply(out, x, *self.stacked)  # type: ignore[no-untyped-call]
            return stacked
        for number in range(max(map(len, self.pieces))):
            both = zip(self.spans, self.pieces, strict=True)
            batches = [(span, own[number]) for span, own in both if number < len(own)]
            spans, pieces = [span for span, _ in batches], [piece for _, piece in batches]
            factors = [factor for piece in pieces for factor in (piece.a, piece.b)]
            scalings = [piece.scaling for piece in pieces]
            out = _OneByOne.apply(out, _dropped(x, batches), spans, scalings, *factors)  # type: ignore[no-untyped-call]
        return out


def _dropped(x: Tensor, batches: Sequence[tuple[tuple[int, int], Piece]]) -> Tensor:
    if not any(piece.drop for _, piece in batches):
        return x
    parts, at = [], 0
    for (start, end), piece in batches:
        batch = x[:, start:end]
        parts += [x[:, at:start], batch if piece.drop is None else piece.drop(batch)]
        at = end
    return torch.cat([*parts, x[:, at:]], dim=1)


class _OneByOne(torch.autograd.Function):
    """base + scaling · (x Aᵀ) Bᵀ for the tokens of each span, in place: `kernels.lora.LowRankUpdate` for several."""

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, spans: list[tuple[int, int]], scalings: list[float], *factors: Tensor
    ) -> Tensor:
        """factors: A and B of each span in turn."""
        hidden = []
        for (start, end), scaling, a, b in zip(spans, scalings, factors[::2], factors[1::2], strict=True):
            hidden.append(x[0, start:end] @ a.T.to(x.dtype))
            base[0, start:end].addmm_(hidden[-1], b.T.to(x.dtype), alpha=scaling)
        ctx.mark_dirty(base)
        ctx.save_for_backward(x, *hidden, *factors)
        ctx.spans, ctx.scalings = spans, scalings
        return base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """As `LowRankUpdate`, span by span."""
        x, *kept = ctx.saved_tensors
        hidden, factors = kept[: len(ctx.spans)], kept[len(ctx.spans) :]
        of_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        found: list[Tensor | None] = []
        for number, ((start, end), scaling) in enumerate(zip(ctx.spans, ctx.scalings, strict=True)):
            a, b = factors[2 * number : 2 * number + 2]
            wide = grad[0, start:end]
            narrow = (wide @ b.to(x.dtype)) * scaling
            if of_x is not None:
                torch.mm(narrow, a.to(x.dtype), out=of_x[0, start:end])
            wants_a, wants_b = ctx.needs_input_grad[4 + 2 * number : 6 + 2 * number]
            found.append((narrow.T @ x[0, start:end]).to(a.dtype) if wants_a else None)
            found.append(((hidden[number].T @ wide) * scaling).T.to(b.dtype).contiguous() if wants_b else None)
        return grad, of_x, None, None, *found


class _Stacked(torch.autograd.Function):
    """The same for batches of as many tokens each: three products for all of them. Nothing waits for the device."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """base: (1, batches · tokens, out), changed in place; a: (batches, r, in); b: (batches, out, r)."""
        batches = len(a)
        hidden = torch.bmm(x.reshape(batches, -1, x.shape[-1]), a.transpose(1, 2))
        base.view(batches, -1, base.shape[-1]).baddbmm_(hidden, b.transpose(1, 2), alpha=scaling)
        ctx.mark_dirty(base)
        ctx.save_for_backward(x, hidden, a, b)
        ctx.scaling = scaling
        return base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The products of one short and one long side."""
        x, hidden, a, b = ctx.saved_tensors
        _, wants_x, wants_a, wants_b, _ = ctx.needs_input_grad
        wide, inputs = grad.reshape(len(a), -1, grad.shape[-1]), x.reshape(len(a), -1, x.shape[-1])
        narrow = torch.bmm(wide, b) * ctx.scaling
        of_x = torch.bmm(narrow, a).view_as(x) if wants_x else None
        of_a = torch.bmm(narrow.transpose(1, 2), inputs) if wants_a else None
        of_b = torch.bmm(hidden.transpose(1, 2), wide).transpose(1, 2) * ctx.scaling if wants_b else None
        return grad, of_x, of_a, of_b, None
