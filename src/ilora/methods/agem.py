"""A-GEM, averaged gradient episodic memory: Chaudhry et al. 2019 (arXiv 1812.00420).

One reference gradient, of rows from the whole memory. Where the step would raise their loss, its gradient is projected:

    g̃ = g                                        if g·g_ref ≥ 0
    g̃ = g - (g·g_ref / g_ref·g_ref) g_ref        otherwise, so that g̃·g_ref = 0
"""

from __future__ import annotations

import torch
from torch import Tensor

from ilora.methods.base import METHODS
from ilora.methods.projection import GradientProjection


@METHODS("agem")
class AGEM(GradientProjection):
    """A-GEM on the step that AdamW takes, or on the complete gradient before clipping (`project`).

    Differs: the memory is a reservoir over the whole stream, rows of the task in training are not drawn, and
    reference gradients are computed without dropout. The optimizer is AdamW, whose step is not the gradient's
    direction: so the step itself is projected (`project: gradient`, the paper's, bounds the gradient alone).
    """

    title = "A-GEM"
    paper = "arXiv 1812.00420"

    def references(self, tasks: list[str]) -> Tensor:
        """One, of rows of all remembered tasks."""
        return self.reference(tasks)[None]

    def project(self, gradient: Tensor, references: Tensor) -> Tensor:
        """The paper's equation 11."""
        (reference,) = references
        # Its length does not matter, but the square of a very small one would be 0.
        reference = reference / reference.abs().max().clamp(min=torch.finfo(reference.dtype).tiny)
        along = gradient @ reference
        return gradient if along >= 0 else gradient - along / (reference @ reference) * reference
