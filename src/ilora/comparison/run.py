"""A run to compare, from a folder or an evidence file: the results and settings that count, and its item scores.

A `Run` holds nothing of the data, and no path on this machine except `place`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from ilora.comparison.statistics import Floats
from ilora.errors import InputError
from ilora.present.numbers import number
from ilora.results.reader import Results, matrix, task_labels, zero_shot_scores
from ilora.settings import AdapterConfig, EvaluationConfig, ModelConfig, TrainingConfig

DIGITS = 6  # of a test row's score: enough for its mean, and every form of a run gives the same numbers
_USED = ("schema", "method", "model", "base", "seed", "stream", "phases", "answers_with")
_USED_OF_TASKS = ("name", "label", "metric", "scoring", "train", "train_sha256")
# What may differ between runs of one label: it is averaged over, or changes no score.
_ASIDE = (
    "name", "seed", "contrast", "trackers", "data.tasks", "data.path", "model.name", "model.attention",
    "model.gradient_checkpointing", "training.micro_batch_size", "training.checkpoint_every", "training.trajectory",
    "keep.checkpoints", "keep.moments", "keep.trajectory", "keep.adapters", "keep.predictions",
    "evaluation.batch_size", "evaluation.merge", "evaluation.zero_shot", "evaluation.unseen",
    "evaluation.perplexity_file", "evaluation.perplexity_tokens", "adapter.keep_below",
)  # fmt: skip
_SECTIONS = {"model": ModelConfig, "adapter": AdapterConfig, "training": TrainingConfig, "evaluation": EvaluationConfig}


@dataclass(frozen=True)
class Items:
    """The test rows that all runs have in common: their ids and a digest of what they ask, by the task's label."""

    ids: dict[str, list[str]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


class CellScores(NamedTuple):
    """What is behind one entry of R: a score (0..1) for each id. `source`: where it is from, for messages."""

    source: str
    ids: Sequence[str]
    scores: Sequence[float]


ReadCell = Callable[[int, str, str], CellScores]
"""Reads the scores of a stage (0: the base model), a variant and a task's label. Raises InputError where it cannot."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    place: where it is, for messages. name: its path without what lies above the given place.
    own_label, apart: its label, and the settings that tell it from other runs of that label. settings: flat, with
    dotted keys.
    """

    place: str
    name: str
    own_label: str
    results: Results
    settings: dict[str, Any]
    items: Items
    read_cell: ReadCell
    apart: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What its row is called."""
        return " ".join([self.own_label, *self.apart])

    @property
    def seed(self) -> int:
        """Of everything random in it."""
        return int(self.results["seed"])

    @property
    def order(self) -> tuple[str, ...]:
        """The labels of its tasks."""
        return tuple(task_labels(self.results))

    @property
    def variants(self) -> list[str]:
        """The answering one first."""
        return sorted(self.results["variants"], key=lambda name: name != self.results["answers_with"])

    def rows(self, variant: str) -> list[list[float | None]]:
        """(1 + stages, tasks): R below the zero-shot row."""
        return [zero_shot_scores(self.results, variant), *matrix(self.results, variant)]

    def scores(self, stage: int, variant: str, label: str) -> tuple[Floats, str]:
        """The items' scores after a stage (0: the base model), in the common order, and where they are from."""
        cell, ids = self.read_cell(stage, variant, label), self.items.ids[label]
        if cell.ids != ids and sorted(cell.ids) != sorted(ids):
            raise InputError(f"{cell.source}: not the test rows of task {label!r} in the other prediction files")
        found = dict(zip(cell.ids, cell.scores, strict=True))
        scores: Floats = np.array([found[key] for key in ids], dtype=np.float64)
        return scores.round(DIGITS), cell.source


# -- what counts ---------------------------------------------------------------------------------------------------


def used_results(results: Results) -> Results:
    """What a comparison uses of a finished run's results (in the form of `FinishedResults`)."""
    variants = {
        name: {"zero_shot": _scores(variant.get("zero_shot")), "R": [_scores(row) for row in variant["R"]]}
        for name, variant in results["variants"].items()
    }
    return {
        **portable({key: results[key] for key in _USED if key in results}),
        "tasks": portable([{key: task[key] for key in _USED_OF_TASKS if key in task} for task in results["tasks"]]),
        "answers_with": str(results["answers_with"]),
        "variants": variants,
        "cost": _numbers(results.get("cost") or {}),
    }


def _scores(values: Sequence[object] | None) -> list[float | None] | None:
    return [number(value) for value in values] if values else None


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _numbers(inner) for key, inner in value.items()}
    return None if number(value) is None else value


def used_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that runs of one label have in common, with defaults for settings that are newer than the run."""
    defaults = {
        f"{name}.{key}": value
        for name, section in _SECTIONS.items()
        for key, value in section().model_dump(mode="json").items()
        if any(setting.startswith(f"{name}.") for setting in settings)
    }
    whole = defaults | dict(settings) | dict(_changes(settings.get("data.tasks")))
    return {key: portable(value) for key, value in whole.items() if key not in _ASIDE}


def _changes(tasks: Any) -> Iterator[tuple[str, Any]]:
    """The settings that change along the stream: `training.epochs from three`, `data.template of three`."""
    for task in tasks if isinstance(tasks, list) else []:
        changed = task.get("settings") if isinstance(task, Mapping) else None
        if isinstance(changed, Mapping):
            yield from ((f"{key} from {task.get('name')}", value) for key, value in changed.items())
        if isinstance(task, Mapping) and task.get("template"):
            yield f"data.template of {task.get('name')}", task["template"]


def portable(value: Any) -> Any:
    """A value as JSON can hold it. Of an absolute path only its last part and a digest, which tells paths apart."""
    if isinstance(value, Mapping):
        return {str(key): portable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [portable(inner) for inner in value]
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    for path in (PurePosixPath(text), PureWindowsPath(text)):
        if path.is_absolute() and path.name:
            return f"{path.name} ({hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]})"
    return text
