"""Early stopping: a task's training ends before its last planned step, when its validation loss no longer falls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from ilora.section import Section


class StopWhen(Section):
    """End a task whose validation loss no longer falls: the mean over the answer tokens of its eval rows.

    It is measured with the weights in training, without dropout. The task keeps the weights of its last step, not
    those of its lowest loss.
    """

    patience: int = Field(3, ge=1, description="the task ends after so many measurements in a row without a new lowest")
    every: int = Field(20, ge=1, description="optimizer steps between measurements")
    min_delta: float = Field(0.0, ge=0, description="a loss is a new lowest if it is lower by more than this")

    @property
    def earliest(self) -> int:
        """The first step after which a task can end: one measurement is the lowest, `patience` others are not."""
        return self.every * (self.patience + 1)

    def best(self, losses: Sequence[float]) -> int | None:
        """The place of the last loss that was a new lowest; None without one."""
        lowest, place = math.inf, None
        for number, loss in enumerate(losses):
            if loss < lowest - self.min_delta:
                lowest, place = loss, number
        return place

    def reached(self, losses: Sequence[float]) -> bool:
        """Whether the task ends. losses: all that were measured in it, in order."""
        best = self.best(losses)
        return len(losses) - (0 if best is None else best + 1) >= self.patience
