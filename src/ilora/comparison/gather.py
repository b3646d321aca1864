"""Gathers the runs to compare from folders and evidence files, and refuses those that cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ilora.comparison.evidence import read_evidence
from ilora.comparison.folders import read_folder, run_folders
from ilora.comparison.run import Run
from ilora.errors import InputError
from ilora.present.numbers import plain

_MODELS = "different models"


@dataclass(frozen=True)
class Gathered:
    """The runs, and the folders left out with the reason."""

    runs: list[Run]
    left_out: list[tuple[Path, str]]


def gather(places: Sequence[Path], only: Sequence[str] = ()) -> Gathered:
    """All finished runs in or below `places` (folders, evidence files), with distinct labels where settings differ.

    only: shell patterns for the end of a run's path, such as `er/1-*`; none: all runs. Raises InputError for a place
    without a run, a pattern that fits none, a damaged file, and two runs that cannot be compared.
    """
    runs: list[Run] = []
    left_out: list[tuple[Path, str]] = []
    for source, place in _sources(places):
        if source.is_file():
            runs += read_evidence(source)
        elif isinstance(found := read_folder(source, place), Run):
            runs.append(found)
        else:
            left_out.append((source, found))
    if not runs:
        named = "; ".join(f"{folder}: {reason}" for folder, reason in left_out)
        raise InputError(f"no finished run to compare ({named})")
    runs = _chosen(runs, only)
    runs = _told_apart([runs[0], *(_comparable(runs[0], run) for run in runs[1:])])
    like: dict[Any, Run] = {}  # the first run of each limit: runs of one limit learnt from the same rows
    for run in runs:
        _refuse_other_training(like.setdefault(run.settings.get("data.limit.train"), run), run)
    _refuse_twins(runs)
    return Gathered(runs, left_out)


def _chosen(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    for pattern in patterns:
        if not any(_fits(run, pattern) for run in runs):
            raise InputError(f"--only {pattern}: fits none of the {len(runs)} runs; the first is {runs[0].name}")
    return [run for run in runs if not patterns or any(_fits(run, pattern) for pattern in patterns)]


def _fits(run: Run, pattern: str) -> bool:
    return bool(PurePosixPath(pattern).parts) and PurePosixPath(run.name).match(pattern)


def _sources(places: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Every run folder and evidence file once, and the place that it was found in."""
    found: dict[Path, tuple[Path, Path]] = {}
    for place in places:
        for source in [place] if place.is_file() else run_folders(place):
            found.setdefault(source.resolve(), (source, place))
    return list(found.values())


# -- names -------------------------------------------------------------------------------------------------------


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Where runs of one label differ in settings, their labels name these settings."""
    runs, named = [_completed(run, runs) for run in runs], []
    for run in runs:
        same = [other for other in runs if other.own_label == run.own_label]
        known = dict.fromkeys(key for other in same for key in other.settings)
        keys = [key for key in known if len({_text(other.settings.get(key, "unset")) for other in same}) > 1]
        short = [key.rpartition(".")[2] for key in keys]
        parts = [
            f"{name if short.count(name) == 1 else key}={plain(_text(run.settings.get(key, 'unset')), 24)}"
            for key, name in zip(keys, short, strict=True)
        ]
        named.append(replace(run, apart=tuple(parts)))
    return named


def _completed(run: Run, runs: Sequence[Run]) -> Run:
    """The run with defaults for the method settings that other runs of its label have and that are newer than it."""
    newer = {key for other in runs if other.own_label == run.own_label for key in other.settings} - run.settings.keys()
    newer = {key for key in newer if key.startswith("method.")}
    name = str(run.settings.get("method.name"))
    if not newer or ":" in name:
        return run
    from ilora.methods import METHODS  # the import takes seconds and is seldom needed

    fields = METHODS[name].Config.model_fields if name in METHODS else {}
    settings = {key: fields[key.partition(".")[2]].default for key in newer if key.partition(".")[2] in fields}
    return replace(run, settings=run.settings | settings)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _refuse_twins(runs: Sequence[Run]) -> None:
    seen: dict[tuple[str, tuple[str, ...], int], str] = {}
    for run in runs:
        key = (run.label, run.order, run.seed)
        if key in seen:
            raise InputError(
                f"{seen[key]} and {run.place}: both are {run.label!r} with the same order and seed {run.seed}; "
                "leave one of them out"
            )
        seen[key] = run.place


# -- the same tasks, the same test rows ----------------------------------------------------------------------------


def _comparable(first: Run, run: Run) -> Run:
    """`run` with the common test rows. Raises InputError naming both runs and what differs."""
    ours, theirs = (_asked(one) for one in (first, run))
    hashes = [str((one.results.get("base") or {}).get("weights_sha256", "")) for one in (first, run)]
    if all(hashes):
        # the same weights under two names are one model, and other weights under one name are another
        for asked, digest in zip((ours, theirs), hashes, strict=True):
            asked[_MODELS] = f"{asked[_MODELS]} (weights {digest[:12]})"
        if hashes[0] == hashes[1]:
            theirs[_MODELS] = ours[_MODELS]
    for what, here in ours.items():
        if here != theirs.get(what):
            raise _other(first, run, what, here, theirs.get(what))
    for label, digest in first.items.digests.items():
        if run.items.digests[label] != digest:
            sizes = [f"{len(one.items.ids[label])} rows" for one in (first, run)]
            sizes[1] += ", with different ids, prompts or references" if sizes[0] == sizes[1] else ""
            raise _other(first, run, f"different test rows of task {label!r}", *sizes)
    return replace(run, items=first.items)


def _refuse_other_training(first: Run, run: Run) -> None:
    """Raises InputError where the two learnt from other rows. Evidence of an older version does not say from which."""
    here, there = (dict(zip(one.order, one.results["tasks"], strict=True)) for one in (first, run))
    for label, task in here.items():
        for key in ("train", "train_sha256"):
            values = [task.get(key), there[label].get(key)]
            if None not in values and values[0] != values[1]:
                shown = [f"{one[label].get('train', '?')} rows" for one in (here, there)]
                shown[1] += ", with other contents" if key == "train_sha256" else ""
                raise _other(first, run, f"different training rows of task {label!r}", *shown)


def _asked(run: Run) -> dict[str, Any]:
    tasks = dict(zip(run.order, run.results["tasks"], strict=True))
    model = [run.results.get("model"), run.settings.get("model.revision") or ""]
    asked: dict[str, Any] = {
        _MODELS: " ".join(map(str, model)).strip(),
        "different tasks": ", ".join(sorted(run.order)),
        "different splits": run.settings.get("evaluation.split", "test"),
    }
    for label in sorted(tasks):
        asked[f"different metrics of task {label!r}"] = tasks[label].get("metric")
        asked[f"different scoring of task {label!r}"] = tasks[label].get("scoring")
    return asked


def _other(first: Run, run: Run, what: str, here: Any, there: Any) -> InputError:
    return InputError(
        f"{first.place} and {run.place} cannot be compared: "
        f"{what}: {plain(here, 200)} / {plain(there, 200)}; compare them separately"
    )
