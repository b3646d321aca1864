"""InfLoRA: Liang and Li 2024, "InfLoRA: interference-free low-rank adaptation for continual learning" (CVPR,
arXiv 2404.00228).

Every task gets a LoRA of its own beside the earlier, frozen ones, and all are added up. Its A is not trained: its rows
are the leading directions of the task's inputs outside of the subspace M of earlier tasks' inputs, layer by layer:

    A_t = the r leading left singular vectors of (I - M Mᵀ) H_t,   only B_t is trained,   so (B_t A_t) M = 0

When the task ends, M takes in as many further directions of its inputs as hold `threshold` of their energy.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ilora.methods.base import METHODS
from ilora.methods.subspace import Protected
from ilora.methods.summed import SummedAdapters
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.model.adapted import A_OF, input_moments
from ilora.settings import Choices, Fraction, MethodConfig, PositiveInt


class InfLoRAConfig(MethodConfig):
    """The subspace of earlier inputs."""

    search = MethodConfig.search | {"threshold": Choices((0.8, 0.9, 0.95, 0.98, 0.995))}

    threshold: Fraction = Field(
        0.95, description="ε: the share of a task's input energy that later tasks leave alone, in every layer"
    )
    input_rows: PositiveInt = Field(200, description="training rows, at most, whose inputs are looked at")


@METHODS("inflora")
class InfLoRA(SummedAdapters[InfLoRAConfig]):
    """A growing sum of adapters, each blind to the inputs of the tasks before it.

    Cost: two passes forward over `input_rows` a task, and an eigendecomposition of an (inputs, inputs) matrix of every
    layer. Stored: a basis of at most half of all directions a layer (inputs² / 2 numbers), however many tasks.
    Differs: ε is the same for all tasks (the paper lets it rise towards 1 with the task's number, which takes the
    number of tasks to be known); at most 200 of the task's rows; energies are squared singular values of H_t, as in the
    paper (its code takes those of H_t H_tᵀ). Rows of A have the length 1/√3 as in its code, that of PEFT's own.
    Where fewer than r directions are left, the other rows of A are zero.
    """

    title = "InfLoRA"
    paper = "arXiv 2404.00228"
    stores = "one adapter a task, a basis of its inputs a layer"

    def __init__(self, run: RunView, config: InfLoRAConfig) -> None:
        super().__init__(run, config)
        self.protected: dict[str, Protected] = {}  # by the layer's path
        for key, weight in adapters.parameters(self.engine.model, "fast").items():
            weight.requires_grad_("lora_B" in key)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """B alone."""
        new = adapters.parameters(self.engine.model, "fast")
        return [weight for key, weight in new.items() if "lora_B" in key]

    @torch.no_grad()
    def begin_task(self) -> None:
        """A new adapter whose A sees what is new in the task's inputs."""
        super().begin_task()
        new = adapters.parameters(self.engine.model, "fast")
        for path, moment in self._moments().items():
            down = new[A_OF.format(path)]
            _, directions = self._protected(path, moment).left_of(moment)
            leading = directions[:, : down.shape[0]].T
            down.zero_()[: len(leading)] = (leading / 3**0.5).to(down.dtype)

    def end_task(self) -> None:
        """Protect the inputs of the task from those to come."""
        for path, moment in self._moments().items():
            self.protected[path] = self._protected(path, moment).grown(moment, threshold=self.config.threshold)

    def _protected(self, path: str, moment: Tensor) -> Protected:
        return self.protected.get(path) or Protected.nothing(len(moment), moment.device)

    def _moments(self) -> dict[str, Tensor]:
        size = min(self.config.input_rows, len(self.rows))
        rows = random.Random(f"{self.position.seed}/inputs/{self.position.task}").sample(list(self.rows), size)
        return input_moments(self.engine, rows)

    def notes(self) -> dict[str, Any]:
        """How much of the layers' input directions is taken, on average: near 1, a new task can learn little."""
        shares = [found.share for found in self.protected.values()]
        return {"protected_share": round(sum(shares) / len(shares), 4)} if shares else {}

    def state_dict(self) -> dict[str, Any]:
        """subspace.<layer>: the basis, and which of them span what is free."""
        free = sorted(path for path, found in self.protected.items() if found.free)
        return {"free": free} | {f"subspace.{path}": found.basis for path, found in self.protected.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        super().load_state_dict(state)
        found = {key.partition(".")[2]: value for key, value in state.items() if key.startswith("subspace.")}
        self.protected = {path: Protected(basis, free=path in state["free"]) for path, basis in found.items()}
