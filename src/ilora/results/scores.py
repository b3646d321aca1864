"""results.json: made from the prediction files, which are the only place where scores are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ilora.data.task import Phase, Task
from ilora.errors import InputError
from ilora.results.matrix import standard_error, summarise
from ilora.settings import method_label

SCHEMA = 1
BASE = "00-base"  # the base model's own answers, before any training


def contrast_folder(run: Path, method: str) -> Path:
    """Where a method of `contrast` has its run."""
    return run / "contrast" / method_label(method)


def prediction_folder(run: Path, phase: str) -> Path:
    """All predictions made after a phase."""
    return run / "predictions" / f"after-{phase}"


def prediction_file(run: Path, phase: str, variant: str, task: Task, *, answering: str) -> Path:
    """The answering variant's files lie in the phase's folder itself, another variant's in a folder below it."""
    folder = prediction_folder(run, phase)
    if phase != BASE and variant != answering:
        folder = folder / variant
    return folder / f"{task.label}.jsonl"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a prediction file. Raises InputError naming the line that is not JSON."""
    records = []
    # Not splitlines: a prediction may hold U+2028 and its like.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON: {error.msg}") from None
    return records


def perplexity_file(run: Path, phase: str) -> Path:
    """Where the perplexity of the text of `evaluation.perplexity_file` after a phase is kept."""
    return prediction_folder(run, phase) / "perplexity.json"


def read_perplexity(run: Path, last: str) -> dict[str, Any] | None:
    """{before, after: {variant: ...}, tokens}, each None where not measured; None without a text."""
    files = [perplexity_file(run, phase) for phase in (BASE, last)]
    before, after = (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {} for file in files)
    if not before and not after:
        return None
    measured = [*before.values(), *after.values()]
    return {
        "before": before["base"]["perplexity"] if before else None,
        "after": {variant: value["perplexity"] for variant, value in after.items()} or None,
        "tokens": measured[0]["tokens"],
    }


def score_matrix(run: Path, phases: list[Phase], tasks: list[Task], *, variants: list[str]) -> dict[str, Any]:
    """For every variant: R, its standard errors and the rows behind each score, the zero-shot row and the summary.

    None where not evaluated.
    """
    trained = [tasks.index(phase.tasks[0]) if len(phase.tasks) == 1 else -1 for phase in phases]
    matrices = {}
    labels = [BASE, *(phase.label for phase in phases)]
    for variant in variants:
        cells = [
            [_cell(prediction_file(run, label, variant, task, answering=variants[0])) for task in tasks]
            for label in labels
        ]
        while len(cells) > 1 and all(cell.score is None for cell in cells[-1]):
            cells.pop()
        scores, errors, counts = ([[getattr(cell, key) for cell in row] for row in cells] for key in Cell._fields)
        zero_shot = scores[0] if any(score is not None for score in scores[0]) else None
        summary = summarise(scores[1:], zero_shot, trained=trained[: len(scores) - 1])
        matrices[variant] = {
            "zero_shot": zero_shot,
            "zero_shot_se": errors[0] if zero_shot else None,
            "R": scores[1:],
            "se": errors[1:],
            "n": counts[1:],
            "summary": summary,
        }
        routed = routing_accuracy(run, labels[: len(scores)], tasks, variant=variant, answering=variants[0])
        if routed is not None:
            matrices[variant]["routed_right"] = routed
    return matrices


def routing_accuracy(
    run: Path, labels: list[str], tasks: list[Task], *, variant: str, answering: str
) -> list[list[float | None]] | None:
    """For a method that guesses the task: the share of rows guessed right, in the form of R; None for any other."""
    matrix = [
        [_mean(prediction_file(run, label, variant, task, answering=answering), "routed_right") for task in tasks]
        for label in labels[1:]
    ]
    return matrix if any(cell is not None for row in matrix for cell in row) else None


class Cell(NamedTuple):
    """One entry of R; all None where it was not evaluated. `error` is the standard error of `score` over `rows`."""

    score: float | None = None
    error: float | None = None
    rows: int | None = None


def _cell(path: Path) -> Cell:
    if not path.is_file():
        return Cell()
    scores = [record["score"] for record in read_records(path)]
    return Cell(sum(scores) / len(scores), standard_error(scores), len(scores)) if scores else Cell(rows=0)


def _mean(path: Path, key: str) -> float | None:
    if not path.is_file():
        return None
    values = [record[key] for record in read_records(path) if key in record]
    return sum(values) / len(values) if values else None
