"""What `ilora tune` tries: for every label of a sweep file settings spread over the scales that its method names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import qmc

from ilora.config import Config
from ilora.errors import InputError
from ilora.methods import method_class
from ilora.places import anchored
from ilora.settings import Scale
from ilora.sweeps.plan import Job, SweepConfig, config_of, job, merged, orders_of, shared_settings, task_names
from ilora.sweeps.presets import TunedOn, given
from ilora.sweeps.tuning import SPLIT, TuneConfig, orders_to_tune, seeds_to_tune

Settings = dict[str, Any]  # by the dotted key, `method.learning_rate`
# Scores of other stages are not used.
_SCORED = {"evaluation": {"split": SPLIT, "zero_shot": False, "unseen": "none"}}
_DRAWS = 64  # for each trial that is wanted: where a scale has few values, most draws are there already


@dataclass(frozen=True)
class Candidate:
    """A label of the sweep, the settings that all its runs have, and those that are tried, its own first."""

    label: str
    config: Config
    values: Mapping[str, Any]
    trials: list[Settings]

    @property
    def method(self) -> str:
        """Its name."""
        return self.config.method.name


@dataclass(frozen=True)
class TunePlan:
    """Everything that may be run. runs: (order, seed) of a trial's first run, its second, ..."""

    file: Path
    tune: TuneConfig
    tuned_on: TunedOn
    candidates: list[Candidate]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The number of the order, from 1, and the seed of a trial's first run, its second, ..."""
        orders = range(1, 1 + len(self.tuned_on.orders))
        return [(order, seed) for seed, order in itertools.product(self.tuned_on.seeds, orders)]

    def job(self, candidate: Candidate, trial: int, run: int) -> Job:
        """A run of a trial. Raises InputError for settings that it cannot have."""
        order, seed = self.runs[run]
        names, settings = self.tuned_on.orders[order - 1], candidate.trials[trial]
        return job(candidate.values, candidate.label, order, names, seed, settings, self.file)


def plan_tuning(sweep: SweepConfig, file: Path) -> TunePlan:
    """The trials of every label, and the orders and seeds of their runs.

    Raises InputError for a grid of settings, a sweep that reports eval scores, an order or a seed that is both tuned on
    and reported, and more runs of a trial than there are orders and seeds to tune on.
    """
    tune = sweep.tune or TuneConfig()
    if sweep.settings:
        raise InputError(f"{file}: settings: a grid is not tuned; give each combination a label in `methods`")
    whole = shared_settings(sweep, file)
    names, short = task_names(whole), sweep.model_copy(update={"config": merged(sweep.config, tune.config)})
    shared = merged(shared_settings(short, file), _SCORED)
    tuned_on = TunedOn(
        orders=orders_to_tune(tune, task_names(shared), orders_of(sweep, names)),
        seeds=seeds_to_tune(tune, sweep.seeds),
    )
    if tune.runs[-1] > len(tuned_on.orders) * len(tuned_on.seeds):
        raise InputError(
            f"{file}: tune.runs: {tune.runs[-1]} runs of a trial, but {len(tuned_on.orders)} orders x "
            f"{len(tuned_on.seeds)} seeds are only {len(tuned_on.orders) * len(tuned_on.seeds)}; give more in "
            "tune.orders or tune.seeds"
        )
    candidates = []
    for label, entry in sweep.methods.items():
        entry = anchored(entry, file)
        if config_of(merged(whole, entry), label).evaluation.split == SPLIT:
            raise InputError(f"methods.{label}: evaluation.split is {SPLIT}, which tuning is scored on; report test")
        values = merged(merged(shared, entry), _SCORED)
        config = config_of(values, label)
        candidates.append(Candidate(label, config, values, spread(config, given(entry), tune.trials)))
    return TunePlan(file, tune, tuned_on, candidates)


def spread(config: Config, fixed: set[str], count: int) -> list[Settings]:
    """As many settings as asked for, or all that there are: the method's own, then the points of a Halton sequence.

    It fills the scales evenly, is the same everywhere, and goes on where it ended if more are asked for.
    fixed: settings that are not searched.
    """
    method = config.method
    scales = method.to_search(fixed) if method_class(method.name).trains else {}
    start = {key: _value(config, key) for key in scales}
    found: list[Settings] = [start]
    if scales:
        points = qmc.Halton(len(scales), scramble=False).random(1 + _DRAWS * count)[1:]  # the first one is 0
        for point in points:
            made = _at(scales, start, point)
            if len(found) < count and made not in found:
                found.append(made)
    return [{f"method.{key}": value for key, value in settings.items()} for settings in found]


def _at(scales: Mapping[str, Scale], start: Mapping[str, Any], point: Any) -> Settings:
    return {key: scale.at(float(share), start[key]) for (key, scale), share in zip(scales.items(), point, strict=True)}


def _value(config: Config, key: str) -> Any:
    """A setting of the method as a run without tuning has it."""
    value = getattr(config.method, key)
    return config.training.learning_rate if key == "learning_rate" and value is None else value
