"""Run folders: found below a place, and read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ilora.comparison.run import CellScores, Items, Run, used_results, used_settings
from ilora.comparison.schema import FinishedResults
from ilora.data.task import Phase, Task
from ilora.errors import InputError
from ilora.files import from_yaml
from ilora.present.numbers import number, plain
from ilora.results.matrix import still_scored
from ilora.results.reader import Results, read_results, refuse_no_place, retired, task_labels
from ilora.results.schema import validated
from ilora.results.scores import BASE, prediction_file, read_records


def run_folders(place: Path) -> list[Path]:
    """Those in or below `place`. Raises InputError where there is none."""
    refuse_no_place(place)
    found = list(_below(place))
    if not found:
        raise InputError(f"{place}: no run folder in it (a run folder has config.yaml and results.json)")
    return found


def _below(place: Path) -> Iterable[Path]:
    for here, inner, files in os.walk(place):
        inner.sort()
        if "config.yaml" in files:
            yield Path(here)
        if "config.yaml" in files and "results.json" in files:
            inner[:] = [name for name in inner if name == "contrast"]
        else:
            inner[:] = [name for name in inner if not name.startswith(".")]


def read_folder(folder: Path, place: Path) -> Run | str:
    """The run in `folder`, which lies in or below `place`; of an unfinished one why it cannot be compared.

    Raises InputError for a damaged file.
    """
    if not (folder / "results.json").is_file():
        return "not finished: no results.json yet"
    results = read_results(folder)
    if not results.get("complete"):
        rows = len(results["variants"][results["answers_with"]]["R"])
        return f"not finished: {rows} of {len(results['tasks'])} tasks"
    results, stages = _still_scored(results)
    validated(FinishedResults, results, str(folder / "results.json"))
    results = used_results(results)
    return Run(
        place=str(folder),
        name=plain("/".join(filter(None, (place.resolve().name, *folder.relative_to(place).parts)))),
        own_label=_label(folder, results),
        results=results,
        settings=_settings(folder / "config.yaml"),
        items=_items(folder, results, stages),
        read_cell=partial(_read_cell, folder, results, stages),
    )


def _still_scored(results: Results) -> tuple[Results, list[str]]:
    """The results without tasks that are scored no longer, and every stage's name in file names, from the base model
    on.
    """
    phases = [str(phase) for phase in results.get("phases") or []]
    stages = [BASE, *(Phase(number, phase, ()).label for number, phase in enumerate(phases, 1))]
    rows = results["variants"][results["answers_with"]]["R"]
    counted = still_scored(rows, () if results.get("stream") == "joint" else retired(results))
    if len(counted) == len(rows):
        return results, stages
    variants = {}
    for name, variant in results["variants"].items():
        before = variant.get("zero_shot")
        variants[name] = {
            "zero_shot": [before[task] for task in counted] if before else None,
            "R": [[variant["R"][k][task] for task in counted] for k in counted if k < len(variant["R"])],
        }
    parts = {key: [results[key][k] for k in counted] for key in ("tasks", "phases")}
    return {**results, **parts, "variants": variants}, [BASE, *(stages[k + 1] for k in counted)]


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of settings at the top level")
    return used_settings(dict(_flat(content)))


def _flat(content: dict[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


# -- its label -----------------------------------------------------------------------------------------------------


def _label(folder: Path, results: Results) -> str:
    """The label in its sweep, else the method's name (`joint`: plain training on all tasks at once)."""
    method = str(results.get("method", "?"))
    if results.get("stream") == "joint" and method == "sequential":
        method = "joint"
    return plain(_label_in_sweep(folder.absolute()) or method, 60)


def _label_in_sweep(folder: Path) -> str | None:
    """Of DIR/runs/<label>/<run>: what DIR/sweep.json calls it, else the folder's name; None outside a sweep."""
    if len(folder.parents) < 3 or folder.parents[1].name != "runs":
        return None
    sweep = folder.parents[2]
    path = sweep / "sweep.json"
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["runs"]
        pairs = entries.items() if isinstance(entries, dict) else ((entry["folder"], entry) for entry in entries)
        labels = {(sweep / str(place)).resolve(): str(entry["label"]) for place, entry in pairs}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read ({error!r}); expected 'runs', each with 'folder' and 'label'"
        ) from None
    return labels.get(folder.resolve(), folder.parent.name)


# -- its test rows -------------------------------------------------------------------------------------------------


def asked_digest(records: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of what test rows ask and of their reference answers. Of rows that were deleted it was kept."""
    records = list(records)
    if records and "asked_sha256" in records[0]:
        return str(records[0]["asked_sha256"])
    asked = sorted((record["id"], record.get("prompt"), record.get("reference")) for record in records)
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _items(folder: Path, results: Results, stages: list[str]) -> Items:
    """The test rows, as the answers after the last phase have them."""
    items = Items()
    for label in task_labels(results):
        file = _file(folder, results, stages[-1], results["answers_with"], label)
        records = _records(file)
        ids = [record["id"] for record in records]
        if not ids or len(set(ids)) < len(ids):
            raise InputError(f"{file}: {'two rows have one id' if ids else 'no rows'}")
        items.ids[label] = ids
        items.digests[label] = asked_digest(records)
    return items


def _read_cell(folder: Path, results: Results, stages: list[str], stage: int, variant: str, label: str) -> CellScores:
    file = _file(folder, results, stages[stage], variant, label)
    records = _records(file)
    return CellScores(str(file), [record["id"] for record in records], [record["score"] for record in records])


def _file(folder: Path, results: Results, phase: str, variant: str, label: str) -> Path:
    return prediction_file(folder, phase, variant, Task(label, {}), answering=results["answers_with"])


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        records = read_records(file)
    except FileNotFoundError:
        raise InputError(f"{file}: file not found; the scores of single test rows are compared") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    for line, record in enumerate(records, 1):
        score = number(record.get("score")) if isinstance(record, dict) else None
        if score is None or not 0 <= score <= 1 or not isinstance(record.get("id"), str):
            raise InputError(f"{file}, row {line}: expected an object with an 'id' and a 'score' between 0 and 1")
    return records
