"""results.json: made from the prediction files, which are the only place where scores are kept."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilora.data.task import Phase, Task
from ilora.errors import InputError
from ilora.results.matrix import ALL, mean_of_all, standard_error, still_scored, summarise
from ilora.settings import method_label

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


def compressed(path: Path) -> Path:
    """Where a prediction file lies where `keep.predictions` is `compressed`."""
    return path.with_name(f"{path.name}.gz")


def written(path: Path) -> Path | None:
    """Where a prediction file lies: as it was written, else compressed; None where it is not there."""
    return next((place for place in (path, compressed(path)) if place.is_file()), None)


def is_written(path: Path) -> bool:
    """Whether a prediction file is there, as it was written or compressed."""
    return written(path) is not None


def read_predictions(path: Path) -> str:
    """The text of a prediction file, also of a compressed one. Raises InputError for a damaged one, and OSError."""
    small = compressed(path)
    if path.is_file() or not small.is_file():
        data, path = path.read_bytes(), path
    else:
        try:
            data, path = gzip.decompress(small.read_bytes()), small
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{small}: cannot be decompressed ({error}); move it away") from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); move it away") from None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a prediction file. Raises InputError naming the line that is not JSON."""
    records = []
    # Not splitlines: a prediction may hold U+2028 and its like.
    for number, line in enumerate(read_predictions(path).split("\n"), 1):
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


@dataclass(frozen=True)
class ScoredCell:
    """The scores of one task after one phase, from its prediction file; all None where it was not evaluated."""

    score: float | None = None
    error: float | None = None  # the standard error of `score` over the rows
    rows: int | None = None
    unreadable: int | None = None  # rows in whose prediction the metric found no answer
    routed_right: float | None = None  # for a method that guesses the task: the share of rows guessed right


def score_matrix(run: Path, phases: list[Phase], tasks: list[Task], *, variants: list[str]) -> dict[str, Any]:
    """For every variant: R, its standard errors and the rows behind each score, the zero-shot row and the summary.

    Each prediction file is read once. None where not evaluated.
    """
    trained = [tasks.index(phase.tasks[0]) if len(phase.tasks) == 1 else ALL for phase in phases]
    replaced = {task.replaces for task in tasks}
    retired = {number for number, task in enumerate(tasks) if task.forgotten or task.name in replaced}
    before = _read_row(run, BASE, variants[0], tasks, answering=variants[0])  # the variants share it
    matrices = {}
    for variant in variants:
        after = [_read_row(run, phase.label, variant, tasks, answering=variants[0]) for phase in phases]
        while after and all(cell.score is None for cell in after[-1]):
            after.pop()
        matrices[variant] = _variant_entry(before, after, trained[: len(after)], retired)
    return matrices


def _variant_entry(
    before: list[ScoredCell], after: list[list[ScoredCell]], trained: list[int], retired: set[int]
) -> dict[str, Any]:
    """The entry of a variant in results.json. before, after: the cells before any training and after each phase.

    retired: the tasks that may be scored no longer.
    """
    scores = [[cell.score for cell in row] for row in after]
    evaluated_before = any(cell.score is not None for cell in before)
    zero_shot = [cell.score for cell in before] if evaluated_before else None
    counted = still_scored(scores, set() if ALL in trained else retired)
    entry = {
        "zero_shot": zero_shot,
        "zero_shot_se": [cell.error for cell in before] if evaluated_before else None,
        "R": scores,
        "se": [[cell.error for cell in row] for row in after],
        "n": [[cell.rows for cell in row] for row in after],
        "unreadable": [[cell.unreadable for cell in row] for row in after],
        "summary": summarise([scores[k] for k in counted], zero_shot, trained=[trained[k] for k in counted]),
    }
    if any(cell.routed_right is not None for row in after for cell in row):
        entry["routed_right"] = [[cell.routed_right for cell in row] for row in after]
    return entry


def _read_row(run: Path, phase: str, variant: str, tasks: list[Task], *, answering: str) -> list[ScoredCell]:
    return [_read_cell(prediction_file(run, phase, variant, task, answering=answering)) for task in tasks]


def _read_cell(path: Path) -> ScoredCell:
    if not is_written(path):
        return ScoredCell()
    records = read_records(path)
    scores = [record["score"] for record in records]
    routed = [record["routed_right"] for record in records if "routed_right" in record]
    unreadable = sum(record.get("parsed") is None for record in records)
    return ScoredCell(mean_of_all(scores), standard_error(scores), len(scores), unreadable, mean_of_all(routed))
