"""What `connect` is asked for, and the form of a job: one result and its file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilora.connectivity import paths
from ilora.connectivity import space as spaces
from ilora.connectivity.landscape import Landscape
from ilora.connectivity.sources import Stage
from ilora.connectivity.space import Adapter
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.evaluation.scoring import EvaluationSet
from ilora.progress import Display

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What `connect` is to measure, and how finely.

    paths: `factors` and `delta`, the straight lines in either space, and `spherical`, `bezier` and `chain`, in factors
        or, as `bezier:delta`, in delta. None: both straight lines, or `delta` alone where adapters differ in form.
    points: on each path, with both ends.
    split: whose rows are evaluated.
    rows: of each task, at most.
    plane: also the plane through three adapters, with `grid` points along each side, in the space `space`.
    similarity: also CKA, angles and distances, on the tasks' rows or on the lines of `text`.
    bend_steps, bend_learning_rate, bend_rows: how a bend is trained, on so many training rows of each task.
    """

    paths: tuple[str, ...] | None = None
    points: int = 11
    split: str = "test"
    rows: int | None = None
    plane: bool = False
    grid: int = 15
    space: str = "factors"
    similarity: bool = False
    text: Path | None = None
    bend_steps: int = 60
    bend_learning_rate: float = 2e-3
    bend_rows: int = 200

    def curves(self) -> list[tuple[str, str]]:
        """(kind, space) of each wanted path. Raises InputError for a name that is unknown."""
        found = []
        for text in spaces.SPACES if self.paths is None else self.paths:
            kind, _, where = ("linear", "", text) if text in spaces.SPACES else text.partition(":")
            if kind not in paths.KINDS or (where and where not in spaces.SPACES):
                raise InputError(
                    f"path {text!r}: allowed are factors, delta (straight lines), spherical, bezier and chain; these "
                    "are in factors, or with `:delta` in delta"
                )
            found.append((kind, where or "factors"))
        return list(dict.fromkeys(found))


class Job(ABC):
    """One result: its file, what it depends on, and how it is made.

    file: where it is written.
    adapters: what it is made of.
    tasks: with the rows that are evaluated.
    depends: the settings that change it.
    """

    file: Path
    adapters: Sequence[Adapter | Stage]
    tasks: Sequence[Task]
    depends: Mapping[str, Any]

    @abstractmethod
    def make(self, landscape: Landscape, display: Display, before: Result | None) -> Iterator[Result]:
        """Yield the content of the file, whole or as far as it is.

        before: what an earlier call, which was killed, has left.
        """


def head(kind: str, landscape: Landscape, tasks: Sequence[Task], ends: Sequence[Adapter]) -> dict[str, Any]:
    """What every result begins with."""
    return {
        "kind": kind,
        "complete": True,
        "model": landscape.config.model.name,
        "split": landscape.split,
        "ends": [{"label": end.label} for end in ends],
        "tasks": [{"name": task.name, "label": task.label, "metric": task.metric} for task in tasks],
    }


def sets_of(landscape: Landscape, tasks: Sequence[Task]) -> list[EvaluationSet]:
    """The encoded rows of these tasks."""
    labels = {task.label for task in tasks}
    return [data for data in landscape.sets if data.task.label in labels]
