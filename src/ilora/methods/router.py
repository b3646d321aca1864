"""Per-task adapters with a nearest-prototype router: which task a prompt belongs to is guessed, not told.

A task's prototype is the mean feature of its training prompts; a prompt is answered by the adapter of the task whose
prototype is the most similar (cosine). The feature is the frozen base model's mean last hidden state over the
prompt's tokens, so it never changes and prototypes stay valid.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ilora.data.examples import Batch, Example
from ilora.methods.base import METHODS
from ilora.methods.individual import Individual
from ilora.methods.view import RunView
from ilora.model.fitting import fitted
from ilora.settings import MethodConfig, PositiveInt


class RouterConfig(MethodConfig):
    """The prototypes."""

    prototype_rows: PositiveInt = Field(
        200, description="training rows, at most, over which a task's prototype is averaged"
    )


@METHODS("router")
class Router(Individual[RouterConfig]):
    """Individual adapters, chosen by the prompt.

    Every prediction is kept with the adapter that made it; `routed_right` in results.json is the share of rows that
    went to their own task's. Rows of a batch may use different adapters, so `evaluation.merge` has no effect.
    """

    family = "isolation"
    stores = "one adapter and one feature vector a task"
    without = ("use_dora", "start_from")  # PEFT cannot give each row of a batch a DoRA adapter of its own
    needs_task_id = False
    fixed_answers = False  # a later task may take a row away

    def __init__(self, run: RunView, config: RouterConfig) -> None:
        super().__init__(run, config)
        self.prototypes: dict[str, Tensor] = {}  # by adapter

    def end_task(self) -> None:
        """Put the adapter aside, and the mean feature of the task's rows."""
        super().end_task()
        size = min(self.config.prototype_rows, len(self.rows))
        rows = random.Random(f"{self.position.seed}/prototype/{self.position.task}").sample(self.rows, size)
        total = fitted(self.engine, self.engine.mine(rows), partial(self._sum_of_features, rows))
        self.engine.all_reduce([total])
        self.prototypes[f"task-{self.position.task_index:04d}"] = total / size

    @torch.no_grad()
    def _sum_of_features(self, rows: Sequence[Example]) -> Tensor:
        """(features,), over the rows of this process."""
        total = torch.zeros(self.engine.model.config.hidden_size, device=self.engine.device)
        for batch in self.engine.micro_batches(rows):
            total += self.engine.features(batch).sum(0)
        return total

    @contextmanager
    def inference(self, task: str, variant: str) -> Iterator[None]:
        """Each row's nearest adapter; `task` is used only to note whether the choice was right."""
        del variant
        own = self.adapter_of.get(task)

        def route(batch: Batch) -> list[str]:
            chosen = self.nearest(self.engine.features(batch))
            for example, name in zip(batch.examples, chosen, strict=True):
                right = {} if own is None else {"routed_right": float(name == own)}
                self.run.notes[example.id] = {"adapter": name} | right
            return chosen

        with self.engine.routed(route):
            yield

    def nearest(self, features: Tensor) -> list[str]:
        """The adapter of the most similar prototype for each of (rows, features)."""
        names = list(self.prototypes)
        prototypes = torch.stack([self.prototypes[name] for name in names])
        similarity = functional.normalize(features, dim=1) @ functional.normalize(prototypes, dim=1).T
        return [names[index] for index in similarity.argmax(1).tolist()]

    def save(self, folder: Path) -> None:
        """The task's adapter, and beside it all prototypes, by adapter, with whose adapter is which."""
        super().save(folder)
        tensors = {name: vector.cpu() for name, vector in self.prototypes.items()}
        save_file(tensors, folder / "prototypes.safetensors", metadata={"adapter_of": json.dumps(self.adapter_of)})

    def state_dict(self) -> dict[str, Any]:
        """Which adapter is whose, and the prototypes."""
        return super().state_dict() | {f"prototype.{name}": vector for name, vector in self.prototypes.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        super().load_state_dict(state)
        found = {key.partition(".")[2]: value for key, value in state.items() if key.startswith("prototype.")}
        self.prototypes = {name: found[name] for name in sorted(found)}
