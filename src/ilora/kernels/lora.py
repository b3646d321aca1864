"""A LoRA layer that computes its update as one node of the graph: PEFT's result with half of its cost.

PEFT's own layer multiplies, scales, adds and casts one after another, and keeps a float32 copy of the input for every
layer that reads it. The update is small arithmetic on large tensors, so these passes over memory are what it costs:
18 % of a training step in bfloat16 on two CPU cores (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LowRankUpdate(torch.autograd.Function):
    """base + scaling · (x Aᵀ) Bᵀ, added in place to `base`.

    base: (..., out); x: (..., in), both in the model's dtype; a: (r, in); b: (out, r). Returns `base`.
    """

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Keeps x as it is and x Aᵀ, which has r columns only."""
        hidden = x.flatten(0, -2) @ a.T.to(x.dtype)
        base.flatten(0, -2).addmm_(hidden, b.T.to(x.dtype), alpha=scaling)
        ctx.mark_dirty(base)
        ctx.save_for_backward(x, hidden, a, b)
        ctx.scaling = scaling
        return base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The products of one short and one long side; `(hᵀ g)ᵀ` is twice as fast as `gᵀ h`."""
        x, hidden, a, b = ctx.saved_tensors
        wide = grad.flatten(0, -2)
        narrow = (wide @ b.to(x.dtype)) * ctx.scaling
        of_x = (narrow @ a.to(x.dtype)).view_as(x) if ctx.needs_input_grad[1] else None
        of_a = (narrow.T @ x.flatten(0, -2)).to(a.dtype) if ctx.needs_input_grad[2] else None
        of_b = (hidden.T @ wide).T.to(b.dtype) * ctx.scaling if ctx.needs_input_grad[3] else None
        return grad, of_x, of_a, of_b, None


class FusedLinear(lora.Linear):  # type: ignore[misc]
    """PEFT's LoRA layer around `nn.Linear`; the common case, one plain adapter at work, goes the short way."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out)."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if args or kwargs or self.disable_adapters or self.merged or len(names) != 1 or names[0] in self.lora_variant:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        name = names[0]
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        dropped = self.lora_dropout[name](x)
        if torch.compiler.is_compiling():  # which fuses, and decides itself what to keep
            update = (dropped @ a.T.to(x.dtype)) @ b.T.to(x.dtype)
            fused: Tensor = self.base_layer(x) + self.scaling[name] * update
            return fused
        out: Tensor = LowRankUpdate.apply(self.base_layer(x), dropped, a, b, self.scaling[name])  # type: ignore[no-untyped-call]
        return out


def fuse(config: lora.LoraConfig) -> lora.LoraConfig:
    """Have PEFT take the fused layer for every plain linear one; quantized layers keep PEFT's own."""
    config._register_custom_module({nn.Linear: _layer})
    return config


def _layer(target: nn.Module, adapter_name: str, config: lora.LoraConfig, **kwargs: Any) -> FusedLinear | None:
    return FusedLinear(target, adapter_name, config=config, **kwargs) if type(target) is nn.Linear else None
