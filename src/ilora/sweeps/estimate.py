"""How long a sweep's runs will take: from finished runs of the same method, else from a short calibration."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence

from ilora.check import audit as check
from ilora.config import Config
from ilora.sweeps.book import Entry
from ilora.sweeps.plan import Job


def estimates(entries: Sequence[Entry], *, say: Callable[[str], None]) -> list[float]:
    """Seconds of every run, one process at a time.

    A calibration takes a few steps of plain training for each model and data set. Passes that a method adds are counted
    if its settings tell them (replayed rows), but not if only its code does (GEM's reference gradients, a teacher's
    pass). Once a run of the method is done, its time is used instead.
    """
    measured: dict[str, tuple[float, float]] = {}
    found = []
    for entry in entries:
        alike = [other.seconds for other in entries if other.seconds and _alike(other.job, entry.job)]
        if entry.seconds or alike:
            found.append(entry.seconds or statistics.fmean(alike))
            continue
        key = _key(entry.job.config)
        if key not in measured:
            say(f"calibrating: {entry.job.config.model.name}, {entry.job.label}")
            measured[key] = _calibrated(entry.job.config)
        training, evaluation = measured[key]
        found.append(training * passes(entry.job.config) + evaluation)
    return found


def _alike(one: Job, other: Job) -> bool:
    return one.label == other.label and one.settings == other.settings


def _key(config: Config) -> str:
    """What the calibration depends on."""
    values = config.dump()
    values["data"]["tasks"] = sorted(json.dumps(task, sort_keys=True) for task in values["data"]["tasks"])
    return json.dumps({key: values[key] for key in ("model", "adapter", "data", "training", "stream", "evaluation")})


def _calibrated(config: Config) -> tuple[float, float]:
    """Seconds of plain training over the stream, and of evaluation: forward passes, at twice the speed of training."""
    reports = list(check.check_config(config, near=False))
    summary = check.summarised(reports, config, timed=True)
    if not summary["seconds"]:
        return 0.0, 0.0
    split, rounds = config.evaluation.split, 1 if config.stream == "joint" else (len(reports) + 1) / 2
    tokens = sum(report["tokens"]["median"] * report["rows"].get(split, 0) for report in reports if report["tokens"])
    return float(summary["seconds"]), rounds * tokens / (2 * summary["tokens_per_second"])


def passes(config: Config) -> float:
    """Rows in a step against plain training: from the second task on replay doubles them, and pseudo rows add more."""
    tasks = len(config.data.tasks or ())
    if config.stream == "joint" or not tasks:
        return 1.0
    more = float(config.method.memory_capacity > 0) + getattr(config.method, "pseudo_share", 0.0)
    return 1.0 + more * (tasks - 1) / tasks
