"""What a benchmark is, and the registry of their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ilora.data.task import Task
from ilora.registry import Registry
from ilora.settings import TaskConfig

Generator = Callable[..., list[Task]]
"""A seed and sizes to tasks."""


@dataclass(frozen=True)
class Stream:
    """A benchmark over files: `read(task, folder, resplit)` returns one task.

    A task is read from its own place, else from the benchmark's folder, else from the Hugging Face hub.
    tasks: the default stream, in its order.
    known: every task that `data.tasks` may name.
    """

    about: str
    tasks: tuple[str, ...]
    known: tuple[str, ...]
    read: Callable[[TaskConfig, Path | None, bool], Task]


BENCHMARKS: Registry[Generator | Stream] = Registry("benchmark")
