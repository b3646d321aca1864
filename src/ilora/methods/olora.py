"""O-LoRA: Wang et al. 2023, "Orthogonal subspace learning for language model continual learning" (arXiv 2310.14152).

Every task gets a LoRA of its own beside the earlier, frozen ones, and all are added up; the new one is held orthogonal
to them by its input side:

    L = CE(x) + strength · Σ_{k < t} ‖A_k A_tᵀ‖²      (squared entries, over all layers)
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ilora.methods.base import METHODS
from ilora.methods.subspace import off
from ilora.methods.summed import SummedAdapters
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.settings import Log, MethodConfig


class OLoRAConfig(MethodConfig):
    """The orthogonality term."""

    search = MethodConfig.search | {"strength": Log(0.05, 5)}

    strength: float = Field(0.5, ge=0, description="weight of the orthogonality term; 0.5 as in the released code")
    project: Literal["none", "gradient", "update"] = Field(
        "none",
        description="gradient, update: A_t begins orthogonal to the earlier A_k, and its gradient, or A_t itself after "
        "each step, is projected off them; none: the term alone, as in the paper",
    )


@METHODS("olora")
class OLoRA(SummedAdapters[OLoRAConfig]):
    """A growing sum of adapters, orthogonal by a penalty, or exactly (`project: update`).

    Differs: squared entries as in the paper's equation 8 (its code sums absolute values); no further L2 term.
    `project` is not the paper's. AdamW's step is not the gradient's direction: only `update` holds A_t orthogonal.
    Where the earlier adapters' ranks add up to a layer's inputs, it leaves A_t nothing.
    """

    title = "O-LoRA"
    paper = "arXiv 2310.14152"

    def __init__(self, run: RunView, config: OLoRAConfig) -> None:
        super().__init__(run, config)
        self._spans: tuple[int, dict[str, Tensor]] = (0, {})  # by A's key, for so many earlier adapters

    def begin_task(self) -> None:
        """A new adapter; projected, if so told."""
        super().begin_task()
        if self.config.project != "none":
            self._project_weights()

    def penalty(self) -> Tensor | None:
        """strength · Σ ‖A_k A_tᵀ‖²."""
        if not self.earlier or not self.config.strength:
            return None
        model, total = self.engine.model, torch.zeros((), device=self.engine.device)
        new = adapters.parameters(model, "fast")
        for name in self.earlier:
            for key, old in adapters.parameters(model, name).items():
                if "lora_A" in key:
                    total = total + (old @ new[key].T).square().sum()
        return self.config.strength * total

    @torch.no_grad()
    def before_step(self) -> None:
        """project: gradient: what of A_t's gradient lies in the earlier A_k's rows is taken out."""
        if self.config.project == "gradient":
            new = adapters.parameters(self.engine.model, "fast")
            for key, span in self.spans.items():
                gradient = new[key].grad
                if gradient is not None:
                    gradient.copy_(off(gradient, span))

    def after_step(self) -> None:
        """project: update: what AdamW has put there is taken out."""
        if self.config.project == "update":
            self._project_weights()

    @torch.no_grad()
    def _project_weights(self) -> None:
        new = adapters.parameters(self.engine.model, "fast")
        for key, span in self.spans.items():
            new[key].copy_(off(new[key], span))

    @property
    def spans(self) -> dict[str, Tensor]:
        """Orthonormal columns (inputs, rank) that span the earlier adapters' rows of A, by its key."""
        count, found = self._spans
        if count != len(self.earlier):
            rows: dict[str, list[Tensor]] = {}
            for name in self.earlier:
                for key, old in adapters.parameters(self.engine.model, name).items():
                    if "lora_A" in key:
                        rows.setdefault(key, []).append(old.detach())
            found = {key: span_of_rows(torch.cat(parts)) for key, parts in rows.items()}
            self._spans = len(self.earlier), found
        return found


def span_of_rows(rows: Tensor) -> Tensor:
    """An orthonormal basis, as columns (n, rank), of the span of (m, n) rows."""
    _, sizes, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    kept = sizes > sizes.max() * max(rows.shape) * torch.finfo(rows.dtype).eps
    basis: Tensor = directions[kept].T.to(rows.dtype).contiguous()
    return basis
