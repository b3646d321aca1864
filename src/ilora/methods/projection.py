"""What GEM and A-GEM share: rows of earlier tasks are not trained on; their gradients bound the step's gradient."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypeVar

from ilora.data.examples import Example
from ilora.methods.base import Method
from ilora.settings import MethodConfig, PositiveInt


class ProjectionConfig(MethodConfig):
    """The memory."""

    memory_size: int = Field(500, ge=0, description="rows in the memory, over the whole stream; 0: no projection")
    memory_batch: PositiveInt | None = Field(
        None, description="rows from the memory in each reference gradient; None: training.global_batch_size"
    )


ProjectionT = TypeVar("ProjectionT", bound=ProjectionConfig, default=ProjectionConfig)


class GradientProjection(Method[ProjectionT]):
    """Fills the reservoir in each task's first epoch; before the step, `project` may turn the gradient."""

    family = "projection"
    stores = "memory_size examples"

    def extend_batch(self, examples: list[Example]) -> list[Example]:
        """Trains on the current rows alone, and shows them to the memory."""
        if self.position.epoch == 0:
            self.memory.offer(examples)
        return examples

    def before_step(self) -> None:
        """Replace the step's gradient by its projection."""
        remembered = sorted(set(self.memory.tasks) - self.position.current_tasks)
        if not remembered:
            return
        gradients = [parameter.grad for parameter in self.trainable if parameter.grad is not None]
        now = torch.cat([gradient.flatten() for gradient in gradients])
        new = self.project(now, remembered)
        parts = torch.split(new, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @abstractmethod
    def project(self, gradient: Tensor, tasks: list[str]) -> Tensor:
        """The flat gradient to step with, given the remembered tasks."""

    def reference(self, tasks: list[str]) -> Tensor:
        """The flat gradient of the mean loss of rows drawn from these tasks' part of the memory."""
        others = set(self.memory.tasks) - set(tasks)
        count = self.config.memory_batch or self.run.training.global_batch_size
        return self.gradient(self.memory.draw(count, key=f"{self.position.step}/{'+'.join(tasks)}", without=others))
