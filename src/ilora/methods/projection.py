"""What GEM and A-GEM share: rows of earlier tasks are not trained on; their gradients bound the step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypeVar

from ilora.data.examples import Example
from ilora.methods.base import Method
from ilora.methods.view import RunView
from ilora.settings import MethodConfig, PositiveInt


class ProjectionConfig(MethodConfig):
    """The memory, and what is bounded."""

    memory_size: int = Field(500, ge=0, description="rows in the memory, over the whole stream; 0: no projection")
    memory_batch: PositiveInt | None = Field(
        None, description="rows from the memory in each reference gradient; None: training.global_batch_size"
    )
    project: Literal["gradient", "update"] | None = Field(
        None,
        description="gradient: before AdamW, as in the paper; update: what AdamW made of it; None: update in a new "
        "run, gradient in one that began before there was the choice",
    )

    def for_a_new_run(self) -> Self:
        """`update` holds the bound, `gradient` does not (docs/log.md)."""
        return self.model_copy(update={"project": self.project or "update"})


ProjectionT = TypeVar("ProjectionT", bound=ProjectionConfig, default=ProjectionConfig)


class GradientProjection(Method[ProjectionT]):
    """Fills the reservoir in each task's first epoch; `project` may turn the gradient, or the step that AdamW took.

    Both are bounded by the reference gradients at the weights before the step.
    """

    family = "projection"
    stores = "memory_size examples"

    def __init__(self, run: RunView, config: ProjectionT) -> None:
        super().__init__(run, config)
        self._begun: tuple[Tensor, Tensor] | None = None  # the references and the weights, within a step

    def extend_batch(self, examples: list[Example]) -> list[Example]:
        """Trains on the current rows alone, and shows them to the memory."""
        if self.position.epoch == 0:
            self.memory.offer(examples)
        return examples

    def before_step(self) -> None:
        """Replace the step's gradient by its projection, or keep what the step is to be bounded by."""
        self._begun = None
        remembered = sorted(set(self.memory.tasks) - self.position.current_tasks)
        if not remembered:
            return
        references = self.references(remembered)
        gradients = [parameter.grad for parameter in self.trainable if parameter.grad is not None]
        if self.config.project == "update":
            self._begun = references, flat([parameter.detach() for parameter in self.trainable])
            gradients[0] += (references * 0).sum()  # nothing, unless one is not finite: the loop then refuses the step
            return
        _put(gradients, self.project(flat(gradients), references))

    @torch.no_grad()
    def after_step(self) -> None:
        """project: update: replace the step by its projection."""
        if self._begun is None:
            return
        (references, before), self._begun = self._begun, None
        weights = [parameter.detach() for parameter in self.trainable]
        step = before - flat(weights)  # as a gradient counts: what is subtracted
        allowed = self.project(step, references)
        if allowed is not step:
            _put(weights, before - allowed)

    @abstractmethod
    def references(self, tasks: list[str]) -> Tensor:
        """The gradients that bound the step, (bounds, n), given the remembered tasks."""

    @abstractmethod
    def project(self, gradient: Tensor, references: Tensor) -> Tensor:
        """The flat gradient (n,), or step, that they allow; itself where they allow it."""

    def reference(self, tasks: list[str]) -> Tensor:
        """The flat gradient of the mean loss of rows drawn from these tasks' part of the memory."""
        others = set(self.memory.tasks) - set(tasks)
        count = self.config.memory_batch or self.run.training.global_batch_size
        return self.gradient(self.memory.draw(count, key=f"{self.position.step}/{'+'.join(tasks)}", without=others))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _put(places: Sequence[Tensor], values: Tensor) -> None:
    """Inverse of `flat`, in place."""
    for place, part in zip(places, torch.split(values, [place.numel() for place in places]), strict=True):
        place.copy_(part.view_as(place))
