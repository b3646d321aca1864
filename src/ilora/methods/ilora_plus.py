"""I-LoRA+: I-LoRA that ends every task on the path between the old minimum and the new one, and goes on from there.

Modes that are connected have a path of low loss between them, and the best point on it is rarely an end (arXiv
2402.18865, section 3). So when a task ends, the answering adapter becomes that point,

    slow <- (1 - t) · slow before the task + t · slow now,      for A and B each on their own,

and the next task's fast adapter starts from it.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from ilora import adapters
from ilora.config import Count, Fraction
from ilora.data.examples import Example, Totals
from ilora.kernels.losses import token_losses
from ilora.methods.base import METHODS
from ilora.methods.ilora import ILoRA

OLD = "old"  # the answering adapter as the task found it


@METHODS("ilora+")
class ILoRAPlus(ILoRA):
    """I-LoRA with interpolation at a task's end.

    t: a number, `mean` (1 / number of tasks so far: every task's minimum counts alike) or `memory` (the point at which
    the memory's rows, those of each task counting alike, have the least loss; without memory the new minimum).
    """

    title = "I-LoRA+"
    paper = "this project; after arXiv 2402.18865"
    stores = "memory_size examples, two more adapters"

    class Config(ILoRA.Config):
        """I-LoRA's, with another start of a task, and the interpolation."""

        next_task_from: Literal["fast", "slow"] = Field("slow", description="weights with which the next task begins")
        t: Fraction | Literal["mean", "memory"] = Field("memory", description="where on the path from old to new")
        path_points: Count = Field(11, description="points that `memory` compares, both ends included", ge=2)

    def begin_task(self) -> None:
        """The slow adapter, from which this task starts, is one end of the path."""
        super().begin_task()
        adapters.keep_copy(self.learner.model, "slow", OLD)

    def end_task(self) -> None:
        """Move the slow adapter to the chosen point; the first task's minimum is taken as it is."""
        if self.learner.task_index > 1:
            adapters.ema(self.learner.model, slow="slow", fast=OLD, decay=self.chosen())

    def chosen(self) -> float:
        """t of this task."""
        if self.config.t == "mean":
            return 1.0 / self.learner.task_index
        if self.config.t == "memory":
            return self._best() if self.learner.memory.examples else 1.0
        return float(self.config.t)

    @torch.no_grad()
    def _best(self) -> float:
        """The first t of least loss on the memory; the adapters stay as they are."""
        slow = adapters.parameters(self.learner.model, "slow")
        ends = [(value, old, value.clone()) for value, old in zip(slow.values(), self._old(), strict=True)]
        losses: list[float] = []
        last: int = self.config.path_points - 1
        for step in range(last + 1):
            for value, old, new in ends:
                value.copy_(old.lerp(new, step / last))
            losses.append(self._loss_of_memory())
        for value, _, new in ends:
            value.copy_(new)
        return losses.index(min(losses)) / last

    def _old(self) -> list[torch.Tensor]:
        return list(adapters.parameters(self.learner.model, OLD).values())

    def _loss_of_memory(self) -> float:
        """Of the slow adapter: the mean over the remembered tasks of their rows' mean cross-entropy."""
        learner, found = self.learner, []
        groups: dict[str, list[Example]] = {}
        for example in learner.memory.examples:
            groups.setdefault(example.task, []).append(example)
        with adapters.active(learner.model, "slow"):
            for rows in groups.values():
                total = torch.zeros((), device=learner.device)
                for batch in learner.share(rows):
                    logits = learner.forward(batch, dropout=False).logits
                    total += token_losses(logits[:, :-1], batch.targets).sum() / Totals.of(rows).current.labels
                found.append(total)
        learner.add_up(found)
        return float(torch.stack(found).mean())
