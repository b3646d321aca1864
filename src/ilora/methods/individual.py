"""Individual fine-tuning: an adapter of its own for every task, told at inference which task it is (the upper bound
of plasticity: nothing is forgotten, nothing is shared).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ilora.methods.base import METHODS, ConfigT, Method
from ilora.methods.view import RunView
from ilora.model import adapters


@METHODS("individual")
class Individual(Method[ConfigT]):
    """Every task begins with a fresh adapter; the finished ones stay, frozen."""

    stores = "one adapter a task"
    needs_task_id = True
    one_adapter_answers = False
    fixed_answers = True
    fresh_start = True
    without: tuple[str, ...] = ("start_from",)

    def __init__(self, run: RunView, config: ConfigT) -> None:
        super().__init__(run, config)
        self.adapter_of: dict[str, str] = {}  # by task

    def begin_task(self) -> None:
        """From scratch, not from the task before."""
        if self.adapter_of:
            seed = self.position.key("adapter", self.position.task)
            adapters.begin_again(self.engine.model, "fast", seed=seed)

    def end_task(self) -> None:
        """Put the finished adapter aside."""
        name = f"task-{self.position.task_index:04d}"
        adapters.keep_copy(self.engine.model, "fast", name)
        self.adapter_of |= dict.fromkeys(sorted(self.position.current_tasks), name)

    @contextmanager
    def inference(self, task: str, variant: str) -> Iterator[None]:
        """The task's own adapter; the newest one for a task that has none yet."""
        with self.weights(self.adapter_of.get(task, variant)):
            yield

    def stored(self) -> dict[str, int]:
        """The finished adapters; the one in training is a copy of the newest."""
        sizes = super().stored()
        training = sum(value.nbytes for value in adapters.parameters(self.engine.model, "fast").values())
        return sizes | {"adapters": sizes["adapters"] - training}

    def state_dict(self) -> dict[str, Any]:
        """Which adapter is whose."""
        return {"adapter_of": dict(self.adapter_of)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.adapter_of = dict(state["adapter_of"])
