"""SD-LoRA: Wu et al. 2025, "SD-LoRA: scalable decoupled low-rank adaptation for class incremental learning" (ICLR,
arXiv 2501.13198).

Every task gets a LoRA of its own beside the earlier ones, and all are added up. Of the earlier ones the directions
stay frozen and the magnitudes α are learnt on, with the new task's:

    W + Σ_{k < t} α_k · B_k A_k / ‖B_k A_k‖ + B_t A_t
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ilora.data.examples import Batch, Totals
from ilora.methods.base import METHODS
from ilora.methods.summed import SummedAdapters
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.model.adapted import A_OF, B_OF, layers
from ilora.settings import MethodConfig


class SDLoRAConfig(MethodConfig):
    """The magnitudes."""

    train_magnitudes: bool = Field(True, description="false: earlier adapters stay as they are, a plain growing sum")


@METHODS("sd_lora")
class SDLoRA(SummedAdapters[SDLoRAConfig]):
    """A growing sum of adapters whose earlier terms are scaled anew by every task, one number a layer and task.

    The gradient of α_k is that of the earlier A_k along its direction, since A_k = α_k · (A_k at α_k = 1).
    Cost: gradients of all earlier A_k. Stored: an adapter a task, and its A once more, as the direction.
    Differs: α_k begins at the norm that B_k A_k had when its task ended, so that a task begins with the function that
    the last one left (the paper does not say; its code begins all of them anew at 0.8); one for each layer (its code:
    one for all). The new term needs no α beside its own norm. The two variants that save parameters, by smaller ranks
    for later tasks (RR) and by dropping directions that others span (KD), are not here.
    """

    title = "SD-LoRA"
    paper = "arXiv 2501.13198"
    stores = "one and a half adapters a task"

    def __init__(self, run: RunView, config: SDLoRAConfig) -> None:
        super().__init__(run, config)
        self.layers = list(layers(self.engine.model))
        self.magnitudes = nn.Parameter(torch.zeros(0, len(self.layers), device=self.engine.device))  # (tasks, layers)
        self.directions: list[Tensor] = []  # for each row of `magnitudes`: A_k at α = 1, all layers, flat

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The new adapter and the earlier ones' magnitudes."""
        return [*super().trainable, self.magnitudes] if self.directions else super().trainable

    @torch.no_grad()
    def begin_task(self) -> None:
        """The last task's adapter becomes a direction with a magnitude."""
        super().begin_task()
        if self.config.train_magnitudes and self.earlier:
            last = adapters.parameters(self.engine.model, self.earlier[-1])
            norms = torch.stack([self._norm(last, path) for path in self.layers])
            self.magnitudes = nn.Parameter(torch.cat([self.magnitudes.detach(), norms[None]]))
            downs = [last[A_OF.format(path)] for path in self.layers]
            self.directions.append(
                torch.cat([(down / norm).flatten() for down, norm in zip(downs, norms, strict=True)])
            )
            self._want_gradients()

    def _norm(self, factors: dict[str, nn.Parameter], path: str) -> Tensor:
        """‖scaling · B A‖ in the Frobenius norm, by the factors' small products; 1 for a term that is zero."""
        down, up = (factors[form.format(path)].double() for form in (A_OF, B_OF))
        scaling = layers(self.engine.model)[path].scaling["fast"]
        norm = ((down @ down.T) * (up.T @ up)).sum().clamp(min=0).sqrt() * scaling
        return torch.where(norm > 0, norm, 1.0).float()

    def _downs(self, index: int) -> list[nn.Parameter]:
        """A of the index-th earlier adapter, layer by layer."""
        found = adapters.parameters(self.engine.model, self.earlier[index])
        return [found[A_OF.format(path)] for path in self.layers]

    def _want_gradients(self) -> None:
        for index in range(len(self.directions)):
            for down in self._downs(index):
                down.requires_grad_()

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """Cross-entropy; a step's first pass (or its second attempt's, where memory ended) begins gradients anew."""
        if self.trainable[0].grad is None:
            for index in range(len(self.directions)):
                for down in self._downs(index):
                    down.grad = None
        return super().loss(batch, totals)

    @torch.no_grad()
    def before_step(self) -> None:
        """dL/dα_k = ⟨dL/dA_k, A_k at α = 1⟩, summed over processes."""
        if not self.directions:
            return
        parts = []
        for index, direction in enumerate(self.directions):
            downs = self._downs(index)
            gradients = [torch.zeros_like(down) if down.grad is None else down.grad for down in downs]
            along = torch.cat([gradient.flatten() for gradient in gradients]) * direction
            parts.append(torch.stack([part.sum() for part in _split(along, downs)]))
        found = torch.stack(parts)
        self.engine.all_reduce([found])
        self.magnitudes.grad = found

    @torch.no_grad()
    def after_step(self) -> None:
        """A_k <- α_k · (A_k at α = 1)."""
        for index, direction in enumerate(self.directions):
            downs = self._downs(index)
            for down, part, magnitude in zip(downs, _split(direction, downs), self.magnitudes[index], strict=True):
                down.copy_(part.view_as(down) * magnitude)

    def notes(self) -> dict[str, Any]:
        """Each earlier task's mean magnitude over the layers."""
        return {"magnitudes": [round(float(row.mean()), 4) for row in self.magnitudes.detach()]}

    def state_dict(self) -> dict[str, Any]:
        """The magnitudes, and directions.<n>."""
        found = {f"directions.{n:04d}": value for n, value in enumerate(self.directions)}
        return {"magnitudes": self.magnitudes.detach()} | found if found else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        super().load_state_dict(state)
        self.directions = [state[key] for key in sorted(state) if key.startswith("directions.")]
        if self.directions:
            self.magnitudes = nn.Parameter(state["magnitudes"].clone())
            self._want_gradients()


def _split(flat: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The parts of a vector that belong to tensors of these sizes."""
    return torch.split(flat, [tensor.numel() for tensor in like])
