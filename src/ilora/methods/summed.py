"""What methods with a growing sum of adapters share: every task gets one of its own beside the earlier, frozen ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ilora.methods.base import ConfigT, Method
from ilora.methods.view import RunView
from ilora.model import adapters


class SummedAdapters(Method[ConfigT]):
    """Trains and answers with the sum, which is saved as one PEFT folder of rank r · tasks, by concatenation."""

    family = "isolation"
    stores = "one adapter a task"
    fresh_start = True
    # A sum of adapters is saved as one; each task begins a new one.
    without = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "start_from")

    def __init__(self, run: RunView, config: ConfigT) -> None:
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
