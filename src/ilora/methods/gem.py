"""GEM, gradient episodic memory: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840).

One reference gradient g_k for each remembered task. The step's gradient is replaced by the nearest one that raises no
remembered task's loss, to first order:

    minimise ½ |g̃ - g|²   subject to   g̃·g_k ≥ 0 for all k

solved in its dual, one variable a task: minimise ½ |Gᵀv + g|² subject to v ≥ margin; g̃ = Gᵀv + g.
"""

from __future__ import annotations

import torch
from pydantic import Field
from scipy.optimize import nnls
from torch import Tensor

from ilora.methods.base import METHODS
from ilora.methods.projection import GradientProjection, ProjectionConfig
from ilora.settings import Linear


class GEMConfig(ProjectionConfig):
    """The quadratic program."""

    search = ProjectionConfig.search | {"margin": Linear(0, 1)}

    margin: float = Field(
        0.0, ge=0, description="lower bound of the dual variables; a larger one protects the old tasks more"
    )


@METHODS("gem")
class GEM(GradientProjection[GEMConfig]):
    """GEM on the step that AdamW takes, or on the complete gradient before clipping (`project`).

    Differs: the memory is a reservoir over the whole stream; each g_k comes from `memory_batch` rows drawn anew, not
    from all rows of the task; gradients are scaled to unit length before the program is solved, which changes no
    constraint, and `margin` is in units of |g|, so that it means the same at every scale (and other papers' values
    do not carry over); 0, the plain projection, is the default. The optimizer is AdamW, whose step is not the
    gradient's direction: so the step itself is projected (`project: gradient`, the paper's, bounds the gradient alone).
    """

    title = "GEM"
    paper = "arXiv 1706.08840"

    def references(self, tasks: list[str]) -> Tensor:
        """One for each remembered task."""
        return torch.stack([self.reference([task]) for task in tasks])

    def project(self, gradient: Tensor, references: Tensor) -> Tensor:
        """The paper's equations 11 and 12."""
        return nearest(gradient, references, margin=self.config.margin)


def nearest(gradient: Tensor, references: Tensor, *, margin: float = 0.0) -> Tensor:
    """The nearest vector to `gradient` (n,) with no negative product with any of `references` (tasks, n).

    `gradient` itself, unchanged, where it violates no constraint; NaN, which the loop refuses, where any of them is
    not finite.
    """
    matrix, g = references.double(), gradient.double()
    lengths = matrix.norm(dim=1)
    matrix = matrix[lengths != 0] / lengths[lengths != 0, None]
    products = matrix @ g
    if bool((products >= 0).all()):
        return gradient
    if not bool(products.isfinite().all()):
        return torch.full_like(gradient, torch.nan)
    # With v = margin + w, w ≥ 0, the dual is non-negative least squares; QR leaves it the size of the tasks.
    g = g + margin * g.norm() * matrix.sum(0)
    q, r = torch.linalg.qr(matrix.T)
    dual, _ = nnls(r.cpu().numpy(), -(q.T @ g).cpu().numpy())
    moved: Tensor = g + torch.from_numpy(dual).to(matrix) @ matrix
    return moved.to(gradient.dtype)
