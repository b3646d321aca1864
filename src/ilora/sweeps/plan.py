"""A sweep file, and the runs that it stands for."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from ilora.config import Config, load_config, problems, read_yaml, refusal
from ilora.errors import InputError
from ilora.overrides import apply_overrides
from ilora.places import NAMES, PLACES, anchored, place_of
from ilora.section import Section
from ilora.settings import PositiveInt, method_label
from ilora.stream import load_tasks, resolve
from ilora.sweeps.presets import filled, read_presets, refuse_tuned
from ilora.sweeps.tuning import SPLIT, Seed, TuneConfig
from ilora.words import translated


def _seeds(value: Any) -> Any:
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class SweepConfig(Section):
    """A sweep file."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="None: the file's name")
    base: Path | None = Field(None, description="configuration of every run; relative to the sweep file")
    config: dict[str, Any] = Field({}, description="settings of every run, over those of `base`")
    methods: dict[str, dict[str, Any]] = Field(
        description="names; or label: {name: ..., settings of the method}; or label: {method: ..., other settings}"
    )
    orders: PositiveInt | list[list[str]] = Field(
        1, description="lists of task names; or how many: the order given, then shuffled ones"
    )
    seeds: Annotated[list[Seed], BeforeValidator(_seeds)] = Field([0], min_length=1, description="a list, or how many")
    settings: dict[str, list[Any]] = Field(
        {}, description="dotted key: values, every combination; a method without a `method.` key runs once without it"
    )
    tune: TuneConfig | None = Field(None, description="how `ilora tune` looks for the methods' best settings")
    presets: Path | None = Field(
        None, description="presets.yaml of `ilora tune`: settings of each method that this file does not give"
    )

    @field_validator("methods", mode="before")
    @classmethod
    def _labelled(cls, value: Any) -> Any:
        """A list of names and mappings to a mapping from labels."""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, Mapping):
            return {str(label): _entry(str(label), entry) for label, entry in value.items()}
        if not isinstance(value, list):
            return value
        made: dict[str, Any] = {}
        for entry in value:
            name = entry.get("name") if isinstance(entry, Mapping) else entry
            if not isinstance(name, str):
                raise ValueError("in a list, give names or mappings with `name`; labels of your own need a mapping")
            if name in made:
                raise ValueError(f"{name!r} stands twice; give labels: {{my-label: {{name: {name}, ...}}}}")
            made[name] = _entry(name, entry)
        return made

    @model_validator(mode="after")
    def _some(self) -> SweepConfig:
        if not self.methods:
            raise ValueError("methods: give at least one")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one stands twice")
        empty = [key for key, values in self.settings.items() if not values]
        if empty:
            raise ValueError(f"settings: {empty[0]} has no values")
        return self


def _entry(label: str, entry: Any) -> Any:
    if entry is None or isinstance(entry, str):
        return {"method": {"name": entry or label}}
    if isinstance(entry, Mapping) and "method" not in entry:
        return {"method": {"name": label, **entry}}
    return dict(entry) if isinstance(entry, Mapping) else entry


@dataclass(frozen=True)
class Job:
    """One run of a sweep. `folder`: relative to the sweep's. `order` counts from 1."""

    label: str
    order: int
    seed: int
    config: Config
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """`runs/<label>/<order>-<seed>[-<settings>]`, from safe characters only."""
        parts = [f"{self.order}-{self.seed}", *(f"{k.rpartition('.')[2]}={v}" for k, v in self.settings.items())]
        return Path("runs") / method_label(self.label) / _safe("-".join(parts))

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.label} {self.folder.name}"


def _safe(text: str) -> str:
    """The text, cut and cleaned for a path. A changed text gets a digest, so that two names never become one."""
    clean = re.sub(r"[^\w.+=-]+", "_", text)[:80].strip(".")
    return clean if clean == text else f"{clean}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_sweep(path: Path, overrides: Iterable[str] = ()) -> SweepConfig:
    """The file's content. overrides: of the runs' settings. Raises InputError with all problems."""
    values = read_yaml(path)
    values.setdefault("name", re.sub(r"[^A-Za-z0-9_.-]", "-", path.stem).lstrip("_.-")[:64] or "sweep")
    config, overrides = values.get("config") or {}, list(overrides)
    if not isinstance(config, dict):
        raise InputError(f"{path}: config: expected a mapping of settings, found {config!r}")
    values["config"] = config
    apply_overrides(config, overrides)
    values["config"] = anchored(config, path, [override.partition("=")[0].strip() for override in overrides])
    if isinstance(tune := values.get("tune"), dict) and isinstance(tune.get("config"), dict):
        values["tune"] = {**tune, "config": anchored(translated(tune["config"]), path)}
    try:
        return SweepConfig(**values)
    except ValidationError as error:
        raise refusal(path, problems(error, values, SweepConfig)) from None


def expand(sweep: SweepConfig, file: Path) -> list[Job]:
    """Every run, those of the first seed and order first, so that a part of a sweep is a whole comparison.

    file: the sweep's, from whose folder its places count.

    Raises InputError for settings that no run can have, a task that is not in the stream, and two runs of one name.
    """
    shared = shared_settings(sweep, file)
    entries = {label: anchored(entry, file) for label, entry in sweep.methods.items()}
    orders = orders_of(sweep, task_names(shared))
    if sweep.presets is not None:
        if shared.get("evaluation", {}).get("split") == SPLIT:
            raise InputError(f"{file}: evaluation.split is {SPLIT}, on which its presets were chosen; report test")
        place = file.parent / sweep.presets
        presets = read_presets(place)
        refuse_tuned(presets, orders, sweep.seeds, place)
        entries = filled(entries, presets, place)
    jobs = []
    for seed, (number, order) in itertools.product(sweep.seeds, enumerate(orders, 1)):
        for label, entry in entries.items():
            values = merged(shared, entry)
            for settings in _grid(sweep, label, values):
                jobs.append(job(values, label, number, order, seed, settings, file))
    _refuse_twins(jobs)
    return jobs


def job(
    values: Mapping[str, Any],
    label: str,
    number: int,
    order: list[str],
    seed: int,
    settings: Mapping[str, Any],
    file: Path,
) -> Job:
    """One run. values: of all runs of the label; settings: dotted, of this one, which its folder's name tells.

    Raises InputError for settings that no run can have.
    """
    values = merged(values, {"seed": seed, "contrast": []})
    for key, value in settings.items():
        _place(values, key, _seen(key, value, file))
    values["data"]["tasks"] = _ordered(values["data"]["tasks"], order)
    return Job(label, number, seed, config_of(values, label), dict(settings))


def shared_settings(sweep: SweepConfig, file: Path) -> dict[str, Any]:
    """What all runs have: the base's settings and the file's own, the data found and the tasks by name."""
    from ilora.evaluation.scoring import refuse_no_split  # imports torch, which reading a file must not

    home = file.parent
    base = translated(read_yaml(home / sweep.base)) if sweep.base else {}
    if sweep.base:  # its places count from its own folder; the sweep file's own, which replace them, are seen from here
        base = anchored(base, home / sweep.base, list(_dotted(sweep.config)))
    values = merged({"training": {"trajectory": 0}}, merged(base, translated(sweep.config)))
    values["method"] = "sequential"  # a base file's own method and contrast have no part in a sweep
    values["contrast"] = []
    config = load_config(values)
    tasks = load_tasks(config.data)
    for task in tasks:
        refuse_no_split(task, config.evaluation.split)
    resolved = resolve(config, tasks)  # absolute paths, tasks by name
    values["data"] = resolved.dump()["data"]
    values["model"] = resolved.dump()["model"]
    return values


def _dotted(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield from _dotted(value, f"{above}{key}.") if isinstance(value, Mapping) else [f"{above}{key}"]


def task_names(shared: Mapping[str, Any]) -> list[str]:
    """Of the stream, in the order given."""
    return [task["name"] for task in shared["data"]["tasks"]]


def orders_of(sweep: SweepConfig, names: list[str]) -> list[list[str]]:
    """The orders of the tasks that a sweep's runs have. Raises InputError for one that is none."""
    if isinstance(sweep.orders, int):
        made = [names]
        source = random.Random("orders")
        while len(made) < sweep.orders:
            order = source.sample(names, len(names))
            if order in made and len(made) < math.factorial(len(names)):
                continue
            if order in made:
                raise InputError(f"orders: {sweep.orders} asked for, {len(names)} tasks have only {len(made)}")
            made.append(order)
        return made
    for order in sweep.orders:
        if sorted(order) != sorted(names):
            raise InputError(f"orders: {order} is not an order of the tasks {', '.join(names)}")
    return sweep.orders


def _ordered(tasks: list[Any], order: list[str]) -> list[Any]:
    by_name = {task["name"]: task for task in tasks}
    return [by_name[name] for name in order]


def _grid(sweep: SweepConfig, label: str, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Combinations of the settings that this method has."""
    known = type(config_of(values, label).method).model_fields
    of_method = {key: key.removeprefix("method.") for key in sweep.settings if key.startswith("method.")}
    chosen = {k: v for k, v in sweep.settings.items() if k not in of_method or of_method[k] in known}
    for combination in itertools.product(*chosen.values()):
        yield dict(zip(chosen, combination, strict=True))


def config_of(values: Mapping[str, Any], label: str) -> Config:
    """The settings of a label's run. Raises InputError, which names the label."""
    try:
        return load_config(values)
    except InputError as error:
        raise InputError(f"methods.{label}: {error}") from None


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, section by section. `method` is replaced as a whole."""
    made: dict[str, Any] = deepcopy(dict(below))
    for key, value in above.items():
        inner = made.get(key)
        whole = key == "method" or not (isinstance(inner, Mapping) and isinstance(value, Mapping))
        made[key] = deepcopy(value) if whole else merged(inner, value)  # type: ignore[arg-type]
    return made


def _place(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    section = values
    for parent in parents:
        inner = section.get(parent)
        section[parent] = {"name": inner} if isinstance(inner, str) else dict(inner or {})
        section = section[parent]
    section[leaf] = value


def _seen(key: str, value: Any, file: Path) -> Any:
    """A value of `settings`; a place as it is seen from the working directory."""
    placed = key in (*PLACES, *NAMES) and isinstance(value, str)
    return place_of(value, key, file, hub=key in NAMES) if placed else value


def _refuse_twins(jobs: list[Job]) -> None:
    seen: dict[Path, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.folder, job)
        if other is not job:
            raise InputError(f"{other.label!r} and {job.label!r} would share the folder {job.folder}; rename one")
