"""Run folders with prediction files whose scores are given by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilora import add, run
from ilora.releases import change
from tests.helpers import ANIMALS, COLOURS, MakeConfig

Scores = Mapping[str, Mapping[str, Sequence[float]]]  # by phase and task
MakeRun = Callable[..., Path]

TASKS = ("one", "two", "three")


def right(count: int, of: int) -> list[float]:
    """The first `count` rows right, the others wrong."""
    return [1.0] * count + [0.0] * (of - count)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run folder with the predictions that are given by phase (`01-one`, `00-base`) and task."""

    def make(scores: Scores, *, tasks: Sequence[str] = TASKS, method: Any = "sequential", **more: Any) -> Path:
        run = tmp_path / "run"
        for phase, found in scores.items():
            for task, values in found.items():
                write_rows(run / "predictions" / f"after-{phase}" / f"{task}.jsonl", task, values)
        (run / "config.yaml").write_text(yaml.safe_dump({"method": method}))
        (run / "results.json").write_text(json.dumps(results(scores, tasks) | more))
        return run

    return make


def write_rows(file: Path, task: str, values: Sequence[float]) -> None:
    """A prediction file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"{task}/test/{place}", "score": value} for place, value in enumerate(values)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def results(scores: Scores, tasks: Sequence[str]) -> dict[str, Any]:
    """A results.json with these means."""
    phases = [f"{place:02d}-{task}" for place, task in enumerate(tasks, 1)]
    table = [
        [sum(found) / len(found) if (found := scores.get(phase, {}).get(task)) else None for task in tasks]
        for phase in phases
    ]
    return {
        "schema": 1,
        "name": "months",
        "method": "sequential",
        "tasks": [{"name": task, "label": task} for task in tasks],
        "phases": list(tasks),
        "answers_with": "fast",
        "variants": {"fast": {"R": table}},
        "adapter": f"adapters/{phases[-1]}/fast",
        "complete": True,
    }


def write_opposed(folder: Path) -> dict[str, Any]:
    """Rows of two tasks that ask the same and want other answers; the section `data` of a run on them."""
    for shift, task in enumerate(("one", "two")):
        (folder / task).mkdir(parents=True)
        for split, count in {"train": 24, "eval": 8, "test": 8}.items():
            rows = [
                {"prompt": f"{number} {COLOURS[number % 4]} :", "answer": ANIMALS[(number + shift) % 4]}
                for number in range(count)
            ]
            (folder / task / f"{split}.json").write_text(json.dumps(rows))
    return {"path": str(folder), "tasks": ["one", "two"], "max_length": 64, "template": "none"}


@pytest.fixture(scope="session")
def trained_run(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tasks of which the first one is lost. Copy it to write."""
    folder = tmp_path_factory.mktemp("gate")
    data, method = write_opposed(folder / "data"), {"name": "sequential"}
    config = make_config("training.epochs=12", "training.learning_rate=0.02", data=data, method=method)
    return run(config, folder / "run", quiet=True).path


@pytest.fixture(scope="session")
def replayed_run(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a memory of four rows; the first task is release 1. Copy it to write."""
    folder = tmp_path_factory.mktemp("replayed")
    data, method = write_opposed(folder / "data") | {"tasks": ["one"]}, {"name": "er", "memory_size": 4}
    config = make_config("training.epochs=12", "training.learning_rate=0.02", data=data, method=method)
    made = run(config, folder / "run", quiet=True).path
    change.promote(made, report=lambda _run: None)
    return add(made, ["two"], quiet=True).path
