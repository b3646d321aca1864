"""OSFT, orthogonal-subspace fine-tuning: Nayak et al. 2025, "Sculpting subspaces: constrained full fine-tuning in LLMs
for continual learning" (arXiv 2504.07097; `osft` of training_hub), with LoRA.

What a weight matrix knows is taken to lie in its leading singular directions. Before every task each matrix, with all
that earlier tasks added, is taken apart, and the task's own update stays off the leading part on both sides:

    W + Σ_{k < t} B_k A_k = U S Vᵀ;      U_highᵀ B_t A_t = 0  and  B_t A_t V_high = 0
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ilora.methods.base import METHODS
from ilora.methods.subspace import off
from ilora.methods.summed import SummedAdapters
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.model.adapted import A_OF, B_OF, weights
from ilora.settings import Linear, MethodConfig


class OSFTConfig(MethodConfig):
    """The protected part of each matrix."""

    search = MethodConfig.search | {"protected_rank": Linear(0.1, 0.9)}

    protected_rank: float = Field(
        0.5, ge=0, lt=1, description="share of a matrix's singular directions, the leading ones, that stay as they are"
    )


@METHODS("osft")
class OSFT(SummedAdapters[OSFTConfig]):
    """A growing sum of adapters, each outside of the leading singular directions of what was there before it.

    Gradients are projected, so that AdamW's moments stay clean, and after the step the weights: element-wise scaling
    carries the step back into what was protected.
    Cost: a singular value decomposition of every matrix a task (and once more after a resume), and four small products
    a matrix and step. While it trains, it holds U_high and V_high, up to as large as the matrices themselves; stored is
    an adapter a task. Where the last protected singular value lies close to the next one, rounding, and so the number
    of processes, shows more than in other methods.
    Differs: the paper trains all weights in the remaining directions; here the update is a LoRA, which can leave as
    an adapter. The same share in every layer, as in training_hub (its `unfreeze_rank_ratio` is 1 minus this one); the
    paper gives each layer one between 0.1 and 0.8, by how similar its inputs and outputs are.
    """

    title = "OSFT (LoRA)"
    paper = "arXiv 2504.07097"

    def __init__(self, run: RunView, config: OSFTConfig) -> None:
        super().__init__(run, config)
        self._high: tuple[int, float, dict[str, tuple[Tensor, Tensor]]] | None = None

    @property
    def high(self) -> dict[str, tuple[Tensor, Tensor]]:
        """U_high (outputs, k) and V_high (inputs, k) by the layer's path; of the base and earlier weights."""
        count, share = len(self.earlier), self.config.protected_rank
        if self._high is None or self._high[:2] != (count, share):
            self._high = count, share, {}  # the old ones go first
            found = weights(self.engine.model, self.earlier) if share else ()
            self._high = count, share, {path: leading(weight, share=share) for path, weight in found}
        return self._high[2]

    def begin_task(self) -> None:
        """A new adapter outside of what is protected now."""
        super().begin_task()
        self.after_step()

    @torch.no_grad()
    def before_step(self) -> None:
        """The gradients of A and B, projected."""
        new = adapters.parameters(self.engine.model, "fast")
        for path, (up_high, down_high) in self.high.items():
            down, up = new[A_OF.format(path)].grad, new[B_OF.format(path)].grad
            if down is not None and up is not None:  # the loop has seen to it
                down.copy_(off(down, down_high))
                up.copy_(off(up.T, up_high).T)

    @torch.no_grad()
    def after_step(self) -> None:
        """A and B themselves, projected."""
        new = adapters.parameters(self.engine.model, "fast")
        for path, (up_high, down_high) in self.high.items():
            down, up = new[A_OF.format(path)], new[B_OF.format(path)]
            down.copy_(off(down, down_high))
            up.copy_(off(up.T, up_high).T)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing of its own; the directions are computed anew when they are needed."""
        super().load_state_dict(state)
        self._high = None


def leading(weight: Tensor, *, share: float) -> tuple[Tensor, Tensor]:
    """The leading `share` of the singular directions of (outputs, inputs): (outputs, k) and (inputs, k)."""
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    count = round(share * len(sizes))
    return left[:, :count].contiguous(), right[:count].T.contiguous()
