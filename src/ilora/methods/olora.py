"""O-LoRA: Wang et al. 2023, "Orthogonal subspace learning for language model continual learning" (arXiv 2310.14152).

Every task gets a LoRA of its own beside the earlier, frozen ones, and all are added up; the new one is held orthogonal
to them by its input side:

    L = CE(x) + strength · Σ_{k < t} ‖A_k A_tᵀ‖²      (squared entries, over all layers)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ilora.methods.base import METHODS, Method
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.settings import MethodConfig


class OLoRAConfig(MethodConfig):
    """The orthogonality term."""

    strength: float = Field(0.5, ge=0, description="weight of the orthogonality term; 0.5 as in the released code")


@METHODS("olora")
class OLoRA(Method[OLoRAConfig]):
    """A growing sum of adapters. What is saved is the sum, one PEFT folder of rank r · tasks, exact by concatenation.

    Differs: squared entries as in the paper's equation 8 (its code sums absolute values); no further L2 term.
    """

    title = "O-LoRA"
    family = "isolation"
    paper = "arXiv 2310.14152"
    stores = "one adapter a task"
    fresh_start = True
    # A sum of adapters is saved as one; each task begins a new one.
    without = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "start_from")

    def __init__(self, run: RunView, config: OLoRAConfig) -> None:
        super().__init__(run, config)
        self._compute_with_all()

    @property
    def earlier(self) -> list[str]:
        """The frozen adapters of the tasks before."""
        return [name for name in adapters.names(self.engine.model) if name.startswith("task-")]

    def begin_task(self) -> None:
        """Put the last task's adapter aside, frozen, and begin a new one beside it."""
        if self.position.task_index > 1:
            adapters.keep_copy(self.engine.model, "fast", f"task-{self.position.task_index - 1:04d}")
            adapters.begin_again(self.engine.model, "fast", seed=self.position.key("adapter", self.position.task))
        self._compute_with_all()

    def penalty(self) -> Tensor | None:
        """strength · Σ ‖A_k A_tᵀ‖²."""
        if not self.earlier or not self.config.strength:
            return None
        model, total = self.engine.model, torch.zeros((), device=self.engine.device)
        new = adapters.parameters(model, "fast")
        for name in self.earlier:
            for key, old in adapters.parameters(model, name).items():
                if "lora_A" in key:
                    total = total + (old @ new[key].T).square().sum()
        return self.config.strength * total

    @contextmanager
    def inference(self, task: str, variant: str) -> Iterator[None]:
        """The sum of all adapters."""
        del task, variant
        with self.weights([*self.earlier, "fast"]):
            yield

    def save(self, folder: Path) -> None:
        """The sum, as one adapter."""
        adapters.save_sum(self.engine.model, folder, [*self.earlier, "fast"], name="fast")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing of its own; all adapters that came back take part."""
        del state
        self._compute_with_all()

    def _compute_with_all(self) -> None:
        # For good, not only around the forward pass: gradient checkpointing computes again inside `backward`.
        adapters.activate(self.engine.model, [*self.earlier, "fast"])
