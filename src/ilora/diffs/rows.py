"""Rows that were right before and are wrong now, and the other way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ilora.data.task import Task
from ilora.diffs.sides import Side, titles
from ilora.errors import InputError
from ilora.present.numbers import plain
from ilora.registry import did_you_mean
from ilora.results.schema import Form, validated
from ilora.results.scores import is_written, read_records

_SLACK = 1e-9  # a difference of two scores is rounded


class Record(Form):
    """A line of a prediction file."""

    id: str
    prompt: str
    reference: str
    prediction: str
    score: float


@dataclass(frozen=True, slots=True)
class Change:
    """One row with both answers and their scores in [0, 1]."""

    id: str
    prompt: str
    reference: str
    before: str
    after: str
    score_before: float
    score_after: float


@dataclass(frozen=True)
class TaskChanges:
    """A task's rows. lost, gained: those whose score fell, or rose, by at least the threshold."""

    name: str
    rows: list[Change]
    lost: list[Change]
    gained: list[Change]


@dataclass(frozen=True)
class Changes:
    """All of it. titles: of both sides. skipped: tasks without predictions on both sides, in words."""

    titles: tuple[str, str]
    threshold: float
    tasks: list[TaskChanges]
    skipped: list[str]


def changes(first: Side, second: Side, *, threshold: float, only: Sequence[str] = ()) -> Changes:
    """What changed from the first side to the second, by task.

    threshold: of a change in score that counts, in (0, 1]; for scores of 0 and 1 any is the same.
    only: names of tasks; none: all. Raises InputError where the sides have other rows, or no task in common.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"--threshold {threshold:g}: above 0, and at most 1")
    theirs = {task.label: task for task in second.tasks}
    both = {task.name: task for task in first.tasks if task.label in theirs}
    for name in only:
        if name not in both:
            raise InputError(
                f"--task {name}: no such task{did_you_mean(name, list(both))}; there are {', '.join(both)}"
            )
    found, skipped, gone = [], [], first.deleted | second.deleted
    for task in both.values():
        missing = [str(side.file(task)) for side in (first, second) if not is_written(side.file(task))]
        if only and task.name not in only:
            continue
        if task.name in gone:
            skipped.append(f"{task.name}: its rows were deleted on {gone[task.name]}")
        elif missing:
            skipped.append(f"{task.name}: there is no {' and no '.join(missing)}")
        else:
            found.append(_of_task(task, first.file(task), second.file(task), threshold))
    if not found:
        raise InputError(f"no task has predictions on both sides; {'; '.join(skipped) or 'the runs share no task'}")
    return Changes(titles(first, second), threshold, found, skipped)


def _of_task(task: Task, first: Path, second: Path, threshold: float) -> TaskChanges:
    before, after = _read(first), _read(second)
    _refuse_other_rows(task, before, after, first, second)
    rows = [
        Change(key, one.prompt, one.reference, one.prediction, after[key].prediction, one.score, after[key].score)
        for key, one in before.items()
    ]
    least = threshold - _SLACK
    lost = [row for row in rows if row.score_before - row.score_after >= least]
    gained = [row for row in rows if row.score_after - row.score_before >= least]
    return TaskChanges(task.name, rows, lost, gained)


def _read(path: Path) -> dict[str, Record]:
    """The records by id. Raises InputError naming a line of another form, or an id that stands twice."""
    found: dict[str, Record] = {}
    for number, content in enumerate(read_records(path), 1):
        record = validated(Record, content, f"{path}, record {number}")
        if record.id in found:
            raise InputError(f"{path}, record {number}: the id {plain(record.id, 80)!r} stands twice")
        found[record.id] = record
    return found


def _refuse_other_rows(
    task: Task, before: dict[str, Record], after: dict[str, Record], first: Path, second: Path
) -> None:
    advice = f"only answers to the same rows can be compared; --task leaves '{task.name}' out"
    if alone := before.keys() ^ after.keys():
        place = first if (key := min(alone)) in before else second
        raise InputError(
            f"task '{task.name}': {first} has {len(before)} rows and {second} has {len(after)}; {plain(key, 80)!r} is "
            f"in {place} alone; {advice}"
        )
    for key, one in before.items():
        for field in ("prompt", "reference"):
            if getattr(one, field) != getattr(after[key], field):
                raise InputError(
                    f"task '{task.name}': row {plain(key, 80)!r} has another {field} in {first} than in {second}; "
                    f"{advice}"
                )
