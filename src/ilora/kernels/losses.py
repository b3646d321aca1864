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
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """logits: (..., vocabulary); labels: (...). Computed in float32, for the positions with a label only."""
        chosen = labels != IGNORED
        wanted = labels[chosen].unsqueeze(1)
        wide = logits[chosen].float()
        top = wide.amax(1, keepdim=True)
        of_label = wide.gather(1, wanted) - top
        total = wide.sub_(top).exp_().sum(1, keepdim=True)
        losses = logits.new_zeros(labels.shape, dtype=torch.float32)
        losses[chosen] = (total.log() - of_label).squeeze(1)
        if ctx.needs_input_grad[0]:
            wide.div_(total).scatter_add_(1, wanted, torch.full_like(total, -1.0))
            ctx.save_for_backward(chosen, wide.to(logits.dtype))
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """(softmax - onehot) · the loss's gradient; zero where there is no label."""
        chosen, unit = ctx.saved_tensors
        whole = unit.new_zeros(*chosen.shape, unit.shape[1])
        whole[chosen] = unit * grad[chosen].unsqueeze(1).to(unit.dtype)
        return whole, None


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) at every position, in float32; 0 where the label is IGNORED.

    logits: (..., vocabulary); labels: (...). Equal to `cross_entropy(..., reduction="none")` of the float32 logits.
    """
    losses: Tensor = _TokenLosses.apply(logits, labels)  # type: ignore[no-untyped-call]
    return losses
