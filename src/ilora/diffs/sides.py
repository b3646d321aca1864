"""The two sides of a comparison: phases of a run, or two runs as they ended."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ilora.data.task import Task
from ilora.errors import InputError
from ilora.results.reader import Results, deleted, phase_labels, read_results
from ilora.results.scores import BASE, prediction_file, prediction_folder


@dataclass(frozen=True)
class Side:
    """The answers of a run after a phase. label: of the phase, `00-base` for the base model."""

    run: Path
    results: Results
    label: str

    @property
    def tasks(self) -> list[Task]:
        """The run's tasks, without their rows."""
        return [Task(str(task["name"]), {}) for task in self.results["tasks"]]

    @property
    def deleted(self) -> dict[str, str]:
        """The names of the tasks whose rows were deleted, each with the day."""
        return {self.tasks[number].name: day for number, day in deleted(self.results).items()}

    def file(self, task: Task) -> Path:
        """The predictions for a task; it may be missing."""
        answering = str(self.results["answers_with"])
        return prediction_file(self.run, self.label, answering, task, answering=answering)


@dataclass(frozen=True)
class Stages:
    """A run's stages that have predictions, in order: the base model, if it was evaluated, and the phases."""

    run: Path
    results: Results
    labels: tuple[str, ...]

    @staticmethod
    def of(run: Path) -> Stages:
        """Raises InputError where the folder is no run, or has no predictions."""
        results = read_results(run)
        every = [BASE, *phase_labels(results)]
        labels = tuple(label for label in every if any(prediction_folder(run, label).glob("*.jsonl*")))  # or .jsonl.gz
        if not labels:
            raise InputError(f"{run}: no predictions in predictions/, of which the changes could be read")
        return Stages(run, results, labels)

    def find(self, name: str) -> Side | None:
        """The stage of a name: `2`, `02-fomc`, `fomc`, `base` or `0`, `release:3`; None where there is none."""
        kind, _, number = name.partition(":")
        if kind == "release" and number.isdecimal():
            name = _phase_of_release(self.run, int(number))
        for label in self.labels:
            number, _, task = label.partition("-")
            if name in (label, task, number, str(int(number))):
                return self.side(label)
        return None

    def named(self, name: str) -> Side:
        """As `find`. Raises InputError with the names that there are."""
        found = self.find(name)
        if found is None:
            raise InputError(
                f"{self.run}: no phase {name!r} with predictions, and no run folder of that name; there are "
                f"{', '.join('base' if label == BASE else label for label in self.labels)}"
            )
        return found

    def side(self, label: str) -> Side:
        """The stage of a label."""
        return Side(self.run, self.results, label)


def both_sides(run: Path, names: Sequence[str]) -> tuple[Side, Side]:
    """The two that are meant: none named: the last phase and the current release
    or the phase before; one: it and the last phase; two: they.

    The only name may also be another run's folder: then both are taken as they ended. Raises InputError.
    """
    stages = Stages.of(run)
    if len(names) == 1 and stages.find(names[0]) is None and (Path(names[0]) / "results.json").is_file():
        other = Stages.of(Path(names[0]))
        return stages.side(stages.labels[-1]), other.side(other.labels[-1])
    if len(names) == 2:
        first, second = (stages.named(name) for name in names)
    elif names:
        first, second = stages.named(names[0]), stages.side(stages.labels[-1])
    elif len(stages.labels) > 1:
        last = stages.labels[-1]
        first, second = stages.side(_released(stages) or stages.labels[-2]), stages.side(last)
    else:
        raise InputError(f"{run}: predictions of {stages.labels[0]} alone; a comparison needs two phases")
    if first.label == second.label:
        raise InputError(f"{run}: {first.label} on both sides; name two phases")
    return first, second


def _released(stages: Stages) -> str | None:
    """The label of the current release's phase, where that has predictions and is not the last one; else None."""
    if not (stages.run / "releases").is_dir():
        return None
    from ilora.releases.store import current  # here, since it brings torch along

    number = current(stages.run)
    label = None if number is None else _phase_of_release(stages.run, number)
    return label if label in stages.labels[:-1] else None


def _phase_of_release(run: Path, number: int) -> str:
    """The label of the last phase of a release.

    Raises InputError where there is no such release, it is damaged, or a rollback left it behind: what the run predicts
    after that phase now is another training's.
    """
    from ilora.releases.journal import line
    from ilora.releases.store import read_release

    release = read_release(run, number)
    if number not in line(run):
        raise InputError(
            f"{run}: release {number} was left behind by a rollback; the predictions of that time are in "
            f"{run / 'releases' / 'withdrawn'}"
        )
    return release.manifest.phase


def titles(first: Side, second: Side) -> tuple[str, str]:
    """What the sides are called: their phases, with the runs' folders where these differ."""
    if first.run == second.run:
        return first.label, second.label
    one, other = (f"{side.run.resolve().name}/{side.label}" for side in (first, second))
    return (one, other) if one != other else (f"{first.run}/{first.label}", f"{second.run}/{second.label}")


def page_of(first: Side, second: Side) -> Path:
    """Where the page lies: in the first run. Another run is named with a digest of its place, as names may repeat."""
    other = ""
    if first.run != second.run:
        place = second.run.resolve()
        digest = hashlib.sha256(str(place).encode()).hexdigest()[:6]
        name = re.sub(r"[^\w+-]+", "-", place.name)[:40]
        other = f"{name}-{digest}-"
    return first.run / "diffs" / f"{first.label}..{other}{second.label}.html"
