"""EWC, elastic weight consolidation: Kirkpatrick et al. 2017 (arXiv 1612.00796); online: Schwarz et al. 2018
(1805.06370).

A quadratic penalty holds every weight near where it was when an earlier task k ended, by its importance F_k:

    strength / 2 · Σ_k Σ_i F_k,i (θ_i - θ*_k,i)²,      F_k,i = mean over rows of (∂ log p(answer | prompt) / ∂θ_i)²

Online: strength / 2 · decay · F (θ - θ*)² with one F and the newest anchor; F <- decay · F + F_k at a task's end.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ilora.data.examples import Batch, Example
from ilora.kernels.losses import token_losses
from ilora.methods.base import METHODS, Method
from ilora.methods.view import RunView
from ilora.model.fitting import fitted
from ilora.model.gradients import gradients
from ilora.settings import Fraction, Log, MethodConfig, PositiveInt


class EWCConfig(MethodConfig):
    """The penalty."""

    search = MethodConfig.search | {"strength": Log(1, 10_000)}

    strength: float = Field(100.0, ge=0, description="weight of the penalty")
    fisher: Literal["per_task", "online"] = Field("per_task", description="online: one anchor only, the newest")
    decay: Fraction = Field(0.9, description="online: factor on the earlier tasks' importance")
    fisher_rows: PositiveInt = Field(
        200, description="training rows, at most, over which a task's Fisher information is averaged"
    )


@METHODS("ewc")
class EWC(Method[EWCConfig]):
    """EWC with the diagonal empirical Fisher of each task's own rows, computed row by row at the task's end.

    A sum of quadratics is a quadratic: of the summed importance F = Σ F_k, around the F-weighted mean of the anchors
    θ*_k. So `per_task` stores two numbers a weight however many tasks there were, and has the paper's gradient
    exactly (the penalty's value differs by a constant).
    Differs: the Fisher uses the reference answers (empirical),
    and at most `fisher_rows` rows.
    """

    title = "EWC"
    family = "regularisation"
    paper = "arXiv 1612.00796"
    stores = "two numbers a weight: importance and anchor"

    def __init__(self, run: RunView, config: EWCConfig) -> None:
        super().__init__(run, config)
        self.importance: list[Tensor] = []
        self.anchor: list[Tensor] = []

    def penalty(self) -> Tensor | None:
        """strength / 2 · Σ F (θ - anchor)²; nothing before the second task."""
        if not self.importance:
            return None
        parts = zip(self.importance, self.trainable, self.anchor, strict=True)
        total = torch.stack([(fisher * (weight - anchor).square()).sum() for fisher, weight, anchor in parts]).sum()
        strength = self.config.strength * (self.config.decay if self.config.fisher == "online" else 1.0)
        return 0.5 * strength * total

    def end_task(self) -> None:
        """Add the task's importance, and move the anchor."""
        new, now = self.fisher(), [weight.detach().clone() for weight in self.trainable]
        if not self.importance:
            self.importance, self.anchor = new, now
        elif self.config.fisher == "online":
            self.importance = [
                self.config.decay * old + fisher for old, fisher in zip(self.importance, new, strict=True)
            ]
            self.anchor = now
        else:
            total = [old + fisher for old, fisher in zip(self.importance, new, strict=True)]
            self.anchor = [
                # anchor + share of the new task · (weight - anchor): exact where the importance is 0, too
                torch.lerp(anchor, weight, torch.nan_to_num(fisher / whole))
                for anchor, weight, fisher, whole in zip(self.anchor, now, new, total, strict=True)
            ]
            self.importance = total

    def fisher(self) -> list[Tensor]:
        """The diagonal empirical Fisher information of the task's rows at the present weights, per parameter."""
        size = min(self.config.fisher_rows, len(self.rows))
        rows = random.Random(f"{self.position.seed}/fisher/{self.position.task}").sample(self.rows, size)
        # Squares of single rows' gradients, not of a batch's mean.
        total = fitted(self.engine, self.engine.mine(rows), partial(self._squares, rows), size=1)
        self.engine.all_reduce(total)
        return total

    def _squares(self, rows: Sequence[Example]) -> list[Tensor]:
        """Of the rows of this process: the sum of their squared gradients over the number of all rows."""
        total = [torch.zeros_like(weight) for weight in self.trainable]
        for batch in self.engine.micro_batches(rows, size=1):
            found = gradients(self.engine, partial(self._row_loss, batch), self.trainable)
            for mean, gradient in zip(total, found, strict=True):
                mean += gradient.square() / len(rows)
            self.engine.passes["backward"] += 1
        return total

    def _row_loss(self, batch: Batch) -> Tensor:
        return token_losses(self.engine.forward(batch, dropout=False).answer_logits, batch.targets).sum()

    def state_dict(self) -> dict[str, Any]:
        """importance.<n> and anchor.<n> of the n-th parameter."""
        return {f"importance.{n}": value for n, value in enumerate(self.importance)} | {
            f"anchor.{n}": value for n, value in enumerate(self.anchor)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        count = len(state) // 2
        self.importance = [state[f"importance.{n}"] for n in range(count)]
        self.anchor = [state[f"anchor.{n}"] for n in range(count)]
