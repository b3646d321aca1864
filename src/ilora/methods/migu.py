"""MIGU, magnitude-based gradient updating: Du et al., "Unlocking continual learning abilities in language models"
(EMNLP 2024, arXiv 2406.17245).

Tasks differ in which outputs of a linear layer are large. Only the weights behind the largest outputs of the step's
tokens are updated, n_i = mean |h_i| / Σ_j mean |h_j| for the i-th output of a layer:

    ∇W <- M ⊙ ∇W,      M_i = 1 for the largest n_i, 0 for a share `threshold` of them
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ilora.data.examples import Batch, Totals
from ilora.methods.base import METHODS, Method
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.model.observing import observed
from ilora.settings import Linear, MethodConfig

DOWN = "lora_A"


class MIGUConfig(MethodConfig):
    """The mask."""

    search = MethodConfig.search | {"threshold": Linear(0.3, 0.9)}

    threshold: float = Field(0.7, ge=0, lt=1, description="share of each layer's outputs whose weights get no gradient")


@METHODS("migu")
class MIGU(Method[MIGUConfig]):
    """Sequential fine-tuning that masks the gradient by the layers' own outputs; no memory, no task's name.

    In LoRA, rows of B (and DoRA's magnitudes) go by the layer's output, rows of A by A's output. As in the released
    code, the first task trains all weights, and the mask holds for the gradient: AdamW's moments may still move a
    masked weight. Cost: one product with A a layer and step; nothing is kept from step to step.
    Differs: magnitudes are not divided by their sum, which would change no order; outputs are masked one by one,
    without the released code's clusters.
    """

    title = "MIGU"
    family = "projection"
    paper = "arXiv 2406.17245"

    def __init__(self, run: RunView, config: MIGUConfig) -> None:
        super().__init__(run, config)
        self.magnitudes: dict[str, Tensor] = {}  # of this step: the sum of |output| over tokens, by matrix

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """Cross-entropy; what the layers make of the batch is noted."""
        if not self.has_past or not self.config.threshold:
            return super().loss(batch, totals)
        if not self.run.terms:  # the step begins, perhaps again in smaller micro-batches
            self.magnitudes.clear()
        down = adapters.parameters(self.engine.model, "fast")

        def look(name: str, x: Tensor, y: Tensor, counts: Tensor) -> None:
            key = f"{name}.{DOWN}.weight"
            self._note(key, x @ down[key].detach().T.to(x.dtype), counts)
            self._note(name, y, counts)

        with observed(self.engine, look):
            output = self.engine.forward(batch)
        return self.cross_entropy(output, batch, totals)

    def _note(self, key: str, outputs: Tensor, counts: Tensor) -> None:
        total = (outputs.float().abs() * counts[:, None]).sum(0)
        self.magnitudes[key] = self.magnitudes[key] + total if key in self.magnitudes else total

    def before_step(self) -> None:
        """Mask the step's gradient, by the magnitudes over all its rows."""
        if not self.has_past or not self.config.threshold:
            return
        named = adapters.parameters(self.engine.model, "fast")
        sizes = {key if DOWN in key else key.partition(".lora_")[0]: len(value) for key, value in named.items()}
        device = self.engine.device  # a process may have had no rows
        found = {key: self.magnitudes.pop(key, torch.zeros(size, device=device)) for key, size in sizes.items()}
        self.engine.all_reduce(list(found.values()))
        masks = {key: largest(value, threshold=self.config.threshold) for key, value in found.items()}
        for key, parameter in named.items():
            if parameter.grad is not None:
                mask = masks[key if DOWN in key else key.partition(".lora_")[0]]
                parameter.grad.mul_(mask.view(-1, *[1] * (parameter.dim() - 1)))


def largest(magnitudes: Tensor, *, threshold: float) -> Tensor:
    """1.0 for the largest of (outputs,) magnitudes, 0.0 for a share `threshold` of them, rounded down."""
    kept = len(magnitudes) - int(threshold * len(magnitudes))
    return torch.zeros_like(magnitudes).index_fill_(0, magnitudes.topk(kept).indices, 1.0)
