"""What a method sees of a run: the engine, the memory, and where in the stream the run is."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ilora.data.examples import Example
from ilora.model.engine import Engine
from ilora.replay.memory import ReplayMemory
from ilora.settings import TrainingConfig


@dataclass(frozen=True)
class Position:
    """Where in the stream a run is. Tasks and steps count from 1, epochs from 0.

    seed: of the run.
    task: the name of the task in training, "joint" in a joint stream.
    task_index: its number in the stream; 0 before the first one.
    current_tasks: the tasks that are trained on now: `task` alone, or all of a joint stream.
    task_step: the optimizer step within the task; 0 before the first one.
    task_steps: how many steps the task has.
    epoch: the pass over the task's rows.
    step: the optimizer step within the run.
    """

    seed: int = 0
    task: str = ""
    task_index: int = 0
    current_tasks: frozenset[str] = frozenset()
    task_step: int = 0
    task_steps: int = 0
    epoch: int = 0
    step: int = 0

    def key(self, *parts: object) -> int:
        """A random seed for this run and these parts: the same in every process and after a resume."""
        return zlib.crc32("/".join(map(str, (self.seed, *parts))).encode())


@dataclass
class RunView:
    """What a method sees of a run. The loop moves `position` and `rows`; a method only reads them.

    rows: the training rows of the task.
    started: whether the run starts from an adapter that has learnt something (`adapter.start_from`).
    terms: parts of the loss that were logged since the step began.
    notes: what is to stand beside a row's prediction, by the row's id.
    """

    engine: Engine
    memory: ReplayMemory
    training: TrainingConfig
    position: Position = Position()
    rows: Sequence[Example] = ()
    started: bool = False
    terms: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def log(self, name: str, value: Tensor) -> None:
        """Report a term of the loss: its shares over micro-batches and processes are added up for metrics.jsonl."""
        value = value.detach().float()
        self.terms[name] = self.terms[name] + value if name in self.terms else value
