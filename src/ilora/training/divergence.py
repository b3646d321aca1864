"""Stops training that has diverged, while the last good checkpoint is still there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ilora.errors import IloraError
from ilora.methods.view import Position

PATIENCE = 20  # steps in a row
SAID = "training has diverged"  # in every message of it, by which the log of a run tells
LARGEST = 1e3  # a trained LoRA factor's or soft prompt's largest entry is a few units


class DivergenceError(IloraError):
    """Training has diverged. The checkpoints are older than that."""


def diverged(what: str, position: Position, rate: float) -> DivergenceError:
    """The error to raise. what: a clause, such as "the loss is not finite"; rate: the step's learning rate."""
    return DivergenceError(
        f"{what} at task '{position.task}', step {position.task_step} of {position.task_steps} "
        f"(step {position.step} of the run, learning rate {rate:g}): {SAID}, and a resume would "
        "compute the same again. Start a new run with a lower training.learning_rate; a longer "
        "training.warmup_ratio or a lower training.max_grad_norm helps, too"
    )


class DivergenceWatch:
    """Finds a run that has diverged although its loss is finite.

    A model that gives all tokens the same probability has a cross-entropy of log(vocabulary). Twice that, for PATIENCE
    steps in a row or for a whole task, is no unlucky batch.
    """

    def __init__(self, vocabulary: int) -> None:
        self.highest = 2 * math.log(vocabulary)
        self.steps = 0  # with a loss above that, one after the other

    @property
    def doubtful(self) -> bool:
        """Whether the last step's loss was too high: such weights should not replace good ones yet."""
        return self.steps > 0

    def check(self, loss: float, weights: Sequence[Tensor], position: Position, rate: float) -> None:
        """Raises DivergenceError. loss: the step's mean cross-entropy; weights: what the step has moved."""
        largest = float(torch.stack(torch._foreach_norm([weight.detach() for weight in weights], math.inf)).max())
        if not largest < LARGEST:
            raise diverged(f"a weight has grown to {largest:.3g}", position, rate)
        self.steps = self.steps + 1 if loss > self.highest else 0
        if self.steps >= min(PATIENCE, position.task_steps):
            raise diverged(f"the loss is {loss:.3g} for {self.steps} steps", position, rate)
