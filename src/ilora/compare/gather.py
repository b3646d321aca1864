"""The runs to compare: found, read, named, and refused where they cannot stand in one table."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ilora.compare.statistics import Floats
from ilora.data.stream import Phase
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.report.html import read_results
from ilora.report.tables import Results, number, plain, task_labels
from ilora.results import BASE, prediction_file, read_records

# What may differ between runs of one label: it is averaged over, or changes no score.
_ASIDE = (
    "name", "seed", "contrast", "trackers", "data.tasks", "data.path", "model.name", "model.attention",
    "model.gradient_checkpointing", "training.micro_batch_size", "training.checkpoint_every", "training.trajectory",
    "evaluation.batch_size", "evaluation.merge", "evaluation.zero_shot", "evaluation.unseen",
    "evaluation.perplexity_file", "evaluation.perplexity_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Items:
    """The test rows that all runs have in common: their ids and a digest of what they ask, by the task's label."""

    ids: dict[str, list[str]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One finished run. `order`: the labels of its tasks. `settings`: its configuration, flat, with dotted keys."""

    path: Path
    label: str
    seed: int
    order: tuple[str, ...]
    results: Results
    settings: dict[str, Any]
    items: Items

    @property
    def variants(self) -> list[str]:
        """The answering one first."""
        return sorted(self.results["variants"], key=lambda name: name != self.results["answers_with"])

    def scores(self, stage: int, variant: str, label: str) -> tuple[Floats, Path]:
        """The items' scores after a stage (0: the base model), in the common order, and the file they are from."""
        file = _file(self.path, self.results, stage, variant, label)
        ids = self.items.ids[label]
        records = _records(file)
        found = {record["id"]: record["score"] for record in records}
        if [record["id"] for record in records] != ids and (len(found) != len(ids) or any(i not in found for i in ids)):
            raise InputError(f"{file}: not the test rows of task {label!r} in the other prediction files")
        return np.array([found[key] for key in ids], dtype=np.float64), file


@dataclass(frozen=True)
class Gathered:
    """The runs, and the folders left out with the reason."""

    runs: list[Run]
    left_out: list[tuple[Path, str]]


def gather(places: Sequence[Path]) -> Gathered:
    """All finished runs in or below `places`, with labels of their own where their settings differ.

    Raises InputError for a place without a run, a damaged file, and two runs that cannot be compared.
    """
    runs: list[Run] = []
    left_out: list[tuple[Path, str]] = []
    for folder in _run_folders(places):
        reason, results = _unfinished(folder)
        if results is None:
            left_out.append((folder, reason))
        else:
            runs.append(_read(folder, results))
    if not runs:
        named = "; ".join(f"{folder}: {reason}" for folder, reason in left_out)
        raise InputError(f"no finished run to compare ({named})")
    first = _with_items(runs[0])
    runs = [first, *(_comparable(first, run) for run in runs[1:])]
    runs = _told_apart(runs)
    _refuse_twins(runs)
    return Gathered(runs, left_out)


def _run_folders(places: Iterable[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise InputError(f"{place}: no such folder; give a run folder, or one below which run folders lie")
        here = list(_below(place))
        if not here:
            raise InputError(f"{place}: no run folder in it (a run folder has config.yaml and results.json)")
        found |= {folder.resolve(): folder for folder in here if folder.resolve() not in found}
    return list(found.values())


def _below(place: Path) -> Iterable[Path]:
    for here, inner, files in os.walk(place):
        inner.sort()
        if "config.yaml" in files:
            yield Path(here)
        if "config.yaml" in files and "results.json" in files:
            inner[:] = [name for name in inner if name == "contrast"]
        else:
            inner[:] = [name for name in inner if not name.startswith(".")]


def _unfinished(folder: Path) -> tuple[str, Results | None]:
    if not (folder / "results.json").is_file():
        return "not finished: no results.json yet", None
    results = read_results(folder)
    if not results.get("complete"):
        rows = len(results["variants"][results["answers_with"]]["R"])
        return f"not finished: {rows} of {len(results['tasks'])} tasks", None
    return "", results


def _read(folder: Path, results: Results) -> Run:
    place, seed = folder / "results.json", results.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"{place}: 'seed' must be a whole number, found {seed!r}")
    labels = task_labels(results)
    if len(set(labels)) < len(labels):
        raise InputError(f"{place}: two of its tasks have one label")
    unsafe = [name for name in results["variants"] if Path(name).name != name]
    if unsafe:
        raise InputError(f"{place}: {unsafe[0]!r} cannot be a variant: it would leave the run folder")
    joint = results.get("stream") == "joint"
    for name, variant in results["variants"].items():
        rows = 1 if joint else len(labels)
        if len(variant["R"]) != rows or len(results.get("phases") or ()) != rows:
            raise InputError(f"{place}: 'phases' and variants.{name}.R must have {rows} rows, one for each phase")
        if any(number(score) is None for score in variant["R"][-1]):
            raise InputError(f"{place}: variants.{name}.R: a task has no score after the last phase")
    settings = _settings(folder / "config.yaml")
    return Run(folder, _label(folder, results), seed, tuple(labels), results, settings, Items())


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of settings at the top level")
    flat = dict(_flat(content))
    return {key: value for key, value in flat.items() if key not in _ASIDE}


def _flat(content: dict[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


# -- names -------------------------------------------------------------------------------------------------------


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


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one label whose settings differ get them into their label."""
    named = []
    for run in runs:
        same = [other for other in runs if other.label == run.label]
        keys = [key for key in run.settings if len({_text(o.settings[key]) for o in same if key in o.settings}) > 1]
        short = [key.rpartition(".")[2] for key in keys]
        parts = [
            f"{name if short.count(name) == 1 else key}={plain(_text(run.settings[key]), 24)}"
            for key, name in zip(keys, short, strict=True)
        ]
        named.append(replace(run, label=" ".join([run.label, *parts])))
    return named


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False, sort_keys=True)


def _refuse_twins(runs: Sequence[Run]) -> None:
    seen: dict[tuple[str, tuple[str, ...], int], Path] = {}
    for run in runs:
        key = (run.label, run.order, run.seed)
        if key in seen:
            raise InputError(
                f"{seen[key]} and {run.path}: both are {run.label!r} with the same order and seed {run.seed}; "
                "leave one of them out"
            )
        seen[key] = run.path


# -- the same tasks, the same test rows ----------------------------------------------------------------------------


def _with_items(run: Run) -> Run:
    """The run with its test rows, as the answers after its last phase have them."""
    items = Items()
    for label in run.order:
        file = _file(run.path, run.results, len(run.results["phases"]), run.results["answers_with"], label)
        records = _records(file)
        ids = [record["id"] for record in records]
        if not ids or len(set(ids)) < len(ids):
            raise InputError(f"{file}: {'an id stands twice' if ids else 'no rows'}")
        asked = sorted((record["id"], record.get("prompt"), record.get("reference")) for record in records)
        items.ids[label] = ids
        items.digests[label] = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    return replace(run, items=items)


def _comparable(first: Run, run: Run) -> Run:
    """`run` with the common test rows. Raises InputError naming both runs and what differs."""
    ours, theirs = (_asked(one) for one in (first, run))
    for what, here in ours.items():
        if here != theirs.get(what):
            raise _other(first, run, what, here, theirs.get(what))
    own = _with_items(run).items
    for label, digest in first.items.digests.items():
        if own.digests[label] != digest:
            sizes = [f"{len(items.ids[label])} rows" for items in (first.items, own)]
            sizes[1] += ", with other ids, prompts or references" if sizes[0] == sizes[1] else ""
            raise _other(first, run, f"other test rows of task {label!r}", *sizes)
    return replace(run, items=first.items)


def _asked(run: Run) -> dict[str, Any]:
    tasks = {str(task.get("label", task["name"])): task for task in run.results["tasks"]}
    asked: dict[str, Any] = {
        "other models": " ".join(filter(None, (str(run.results.get("model")), run.settings.get("model.revision")))),
        "other tasks": ", ".join(sorted(run.order)),
        "other splits": run.settings.get("evaluation.split", "test"),
    }
    for label in sorted(tasks):
        asked[f"other metrics of task {label!r}"] = tasks[label].get("metric")
        asked[f"other scoring of task {label!r}"] = tasks[label].get("scoring")
    return asked


def _other(first: Run, run: Run, what: str, here: Any, there: Any) -> InputError:
    return InputError(
        f"{first.path} and {run.path} cannot stand in one comparison: "
        f"{what}: {plain(here, 200)} / {plain(there, 200)}; compare them in two calls"
    )


def _file(path: Path, results: Results, stage: int, variant: str, label: str) -> Path:
    phase = Phase(stage, str(results["phases"][stage - 1]), ()).label if stage else BASE
    return prediction_file(path, phase, variant, Task(label, {}), answering=results["answers_with"])


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
