"""SLAO: Qiao and Mahdavi, "Merge before forget: a single LoRA continual learning via continual merging" (ICLR 2026,
arXiv 2512.23017).

Task i begins from the last task's own fine-tuned factors, with A replaced by an orthonormal basis of its rows, and is
merged when it ends, the two factors each in its way:

    A_i⁰ = Qᵀ where QR = A_{i-1}ᵀ,  B_i⁰ = B_{i-1};      A_merged = A_i,  B_merged += (B_i - B_merged) / √i
"""

from __future__ import annotations

import torch

from ilora.errors import InputError
from ilora.methods.base import METHODS, Method
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.settings import MethodConfig


@METHODS("slao")
class SLAO(Method):
    """Sequential merging into one adapter, of constant size.

    Differs: the QR decomposition is made unique by a positive diagonal of R, so that the basis keeps the rows' signs,
    to which B's columns belong (the paper does not say).
    """

    title = "SLAO"
    family = "merging"
    paper = "arXiv 2512.23017"
    stores = "one more adapter"
    fresh_start = True
    without = ("use_dora", "start_from")  # the merge is defined for A and B

    def __init__(self, run: RunView, config: MethodConfig) -> None:
        super().__init__(run, config)
        for key, weight in adapters.parameters(self.engine.model, "fast").items():
            rank, inputs = weight.shape
            if "lora_A" in key and rank > inputs:
                raise InputError(f"adapter.r: {rank}, but SLAO needs at most the {inputs} inputs of {key}")

    @property
    def variants(self) -> list[str]:
        """The merged adapter answers; the last task's own is evaluated beside it."""
        return ["merged", "fast"]

    @torch.no_grad()
    def begin_task(self) -> None:
        """Orthonormal A, B as the last task left it."""
        if self.position.task_index > 1:
            for key, weight in adapters.parameters(self.engine.model, "fast").items():
                if "lora_A" in key:
                    weight.copy_(orthonormal_rows(weight))

    @torch.no_grad()
    def end_task(self) -> None:
        """A: the newest; B: a running mean whose newest share is 1/√i."""
        model, index = self.engine.model, self.position.task_index
        if index == 1:
            adapters.keep_copy(model, "fast", "merged")
            return
        new = adapters.parameters(model, "fast")
        for key, weight in adapters.parameters(model, "merged").items():
            weight.lerp_(new[key], 1.0 if "lora_A" in key else index**-0.5)


def orthonormal_rows(matrix: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the row space of (r, n), r ≤ n, by QR with a positive diagonal of R."""
    q, r = torch.linalg.qr(matrix.T)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
    basis: torch.Tensor = (q * signs).T
    return basis
