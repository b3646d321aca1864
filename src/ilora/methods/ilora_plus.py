"""I-LoRA+: I-LoRA that ends every task on the path between the old minimum and the new one, and goes on from there.

Modes that are connected have a path of low loss between them, and the best point on it is rarely an end (arXiv
2402.18865, section 3). So when a task ends, the slow adapter, which answers, becomes such a point,

    slow <- (1 - t) · slow before the task + t · slow now,      for A and B each on their own,

and the next task's fast adapter starts from it.
"""

from __future__ import annotations

import zlib
from typing import Any, Literal

import torch
from pydantic import Field

from ilora import adapters
from ilora.config import Fraction
from ilora.data.examples import Example, Totals
from ilora.kernels.losses import token_losses
from ilora.methods.base import METHODS
from ilora.methods.ilora import ILoRA
from ilora.training.learner import Learner

OLD = "old"  # the answering adapter as the task found it


@METHODS("ilora+")
class ILoRAPlus(ILoRA):
    """I-LoRA with interpolation at a task's end.

    t: `memory` takes the point at which the memory's rows, those of each task counting alike, have the least loss;
    without memory the new minimum. Replayed rows are soon known by heart, so that it rarely stays far from the new
    minimum; `held_out` keeps some from being replayed, which costs replay. `mean` is 1 / (number of tasks so far), the
    least sum of the tasks' losses if the old minimum serves each earlier task, the new one the new task, and all curve
    alike: (i - 1) t² + (1 - t)² is least at 1 / i. What each is worth: docs/results.md.
    """

    title = "I-LoRA+"
    paper = "this project; after arXiv 2402.18865"
    stores = "memory_size examples, two more adapters"

    class Config(ILoRA.Config):
        """I-LoRA's, with another start of a task, and the interpolation."""

        next_task_from: Literal["fast", "slow"] = Field("slow", description="weights with which the next task begins")
        inference: Literal["slow"] = Field("slow", description="the adapter that answers; both are evaluated")
        t: Fraction | Literal["mean", "memory"] = Field("memory", description="where on the path from old to new")
        path_points: int = Field(11, ge=2, description="points that `memory` compares, both ends included")
        held_out: float = Field(
            0.0, ge=0, lt=1, description="share of the memory that is never replayed, so that it can judge the path"
        )

    def __init__(self, learner: Learner, config: Any) -> None:
        super().__init__(learner, config)
        self.t_of: dict[str, float] = {}  # by task

    def replays(self, example: Example) -> bool:
        """Not the rows that judge: by their id, so that it is settled once for all."""
        return not self._held_out(example)

    def _held_out(self, example: Example) -> bool:
        share: float = self.config.held_out
        return zlib.crc32(example.id.encode()) % 1000 < 1000 * share

    def _judges(self, example: Example) -> bool:
        return not self.config.held_out or self._held_out(example)

    def begin_task(self) -> None:
        """The slow adapter, from which this task starts, is one end of the path."""
        super().begin_task()
        adapters.keep_copy(self.learner.model, "slow", OLD)

    def end_task(self) -> None:
        """Move the slow adapter to the chosen point; the first task's minimum is taken as it is."""
        if self.learner.task_index > 1:
            t = self.t_of[self.learner.task] = self.chosen()
            adapters.ema(self.learner.model, slow="slow", fast=OLD, decay=t)

    def chosen(self) -> float:
        """t of this task."""
        if self.config.t == "mean":
            return 1.0 / self.learner.task_index
        if self.config.t == "memory":
            return self._best() if any(map(self._judges, self.learner.memory.examples)) else 1.0
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

    def notes(self) -> dict[str, Any]:
        """Where each task ended."""
        return {"t": dict(self.t_of)}

    def state_dict(self) -> dict[str, Any]:
        """t of the finished tasks."""
        return {"t": dict(self.t_of)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.t_of = dict(state["t"])

    def _old(self) -> list[torch.Tensor]:
        return list(adapters.parameters(self.learner.model, OLD).values())

    def _loss_of_memory(self) -> float:
        """Of the slow adapter: the mean over the remembered tasks of their rows' mean cross-entropy."""
        learner, found = self.learner, []
        groups: dict[str, list[Example]] = {}
        for example in learner.memory.examples:
            if self._judges(example):
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
