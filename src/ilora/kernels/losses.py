"""Cross-entropy over a large vocabulary with two wide tensors at a time instead of five."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ilora.data.examples import IGNORED


class _TokenLosses(torch.autograd.Function):
    """The gradient is made with the loss, from the same exponentials, and kept in the logits' dtype."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, count: int | None) -> Tensor:
        """logits: (..., vocabulary); labels: (...). Computed in float32, for the positions with a label only."""
        flat = labels.flatten()
        chosen = flat != IGNORED
        places = (chosen.nonzero() if count is None else chosen.nonzero_static(size=count))[:, 0]
        wanted = flat.index_select(0, places).unsqueeze(1)
        wide = logits.flatten(0, -2).index_select(0, places).float()
        top = wide.amax(1, keepdim=True)
        of_label = wide.gather(1, wanted) - top
        total = wide.sub_(top).exp_().sum(1, keepdim=True)
        losses = logits.new_zeros(flat.shape, dtype=torch.float32)
        losses.index_copy_(0, places, (total.log() - of_label).squeeze(1))
        if ctx.needs_input_grad[0]:
            wide.div_(total).scatter_add_(1, wanted, torch.full_like(total, -1.0))
            ctx.save_for_backward(places, wide.to(logits.dtype))
            ctx.shape = labels.shape
        return losses.view(labels.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """(softmax - onehot) · the loss's gradient; zero where there is no label."""
        places, unit = ctx.saved_tensors
        whole = unit.new_zeros(grad.numel(), unit.shape[1])
        scale = grad.flatten().index_select(0, places).unsqueeze(1).to(unit.dtype)
        whole.index_copy_(0, places, unit * scale)
        return whole.view(*ctx.shape, unit.shape[1]), None, None


def token_losses(logits: Tensor, labels: Tensor, *, count: int | None = None) -> Tensor:
    """-log p(label) at every position, in float32; 0 where the label is IGNORED.

    logits: (..., vocabulary); labels: (...). count: how many labels there are, where that is known: a GPU is then not
    waited for. Equal to `cross_entropy(..., reduction="none")` of the float32 logits.
    """
    losses: Tensor = _TokenLosses.apply(logits, labels, count)  # type: ignore[no-untyped-call]
    return losses
