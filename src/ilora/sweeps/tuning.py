"""The section `tune` of a sweep file, and the orders and seeds to tune on: none of those that the sweep reports."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ilora.errors import InputError
from ilora.section import Section
from ilora.settings import PositiveInt

SPLIT: Literal["eval"] = "eval"  # what tuning is scored on
Seed = Annotated[int, Field(ge=0, lt=2**63)]
_FIRST_SEED = 1000  # far from the few that a sweep reports, so that more of those may be added later


class TuneConfig(Section):
    """How the methods of a sweep are tuned: successive halving, whose rungs are numbers of runs."""

    trials: PositiveInt = Field(8, description="settings that are tried for each method, its own first")
    runs: list[PositiveInt] = Field(
        [1, 2, 4], min_length=1, description="how many runs a trial has at the end of each rung, rising"
    )
    reduction: int = Field(2, ge=2, description="one of so many trials goes on to the next rung, the best ones")
    seeds: PositiveInt | list[Seed] = Field(2, description="seeds to tune on, or how many; none that is reported")
    orders: PositiveInt | list[list[str]] = Field(
        2, description="orders to tune on, or how many; none that is reported. They may be of a part of the tasks"
    )
    tasks: int | None = Field(
        None, ge=2, description="tasks of each order that is not written out, for shorter streams; None: all"
    )
    config: dict[str, Any] = Field({}, description="settings of the runs that tune, over those of the sweep")

    @model_validator(mode="after")
    def _rising(self) -> TuneConfig:
        if any(later <= earlier for earlier, later in itertools.pairwise(self.runs)):
            raise ValueError(f"runs: {self.runs} must rise from rung to rung")
        for key, given in (("seeds", self.seeds), ("orders", self.orders)):
            values = list(map(str, given)) if isinstance(given, list) else [""]
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key}: give at least one, and none twice")
        return self


def seeds_to_tune(tune: TuneConfig, reported: Collection[int]) -> list[int]:
    """Those of the file, or the first that are not reported. Raises InputError for a reported one."""
    if isinstance(tune.seeds, int):
        free = (seed for seed in itertools.count(_FIRST_SEED) if seed not in reported)
        return list(itertools.islice(free, tune.seeds))
    refuse_reported_seeds(tune.seeds, reported, "tune.seeds")
    return tune.seeds


def orders_to_tune(tune: TuneConfig, names: Sequence[str], reported: Sequence[Sequence[str]]) -> list[list[str]]:
    """Those of the file, or shuffled ones, always the same, that are not reported.

    Raises InputError for a reported order, one that is none of the stream's tasks, and where not enough are left.
    """
    if isinstance(tune.orders, int):
        return _shuffled(tune.orders, names, min(tune.tasks or len(names), len(names)), reported)
    for order in tune.orders:
        if len(order) < 2 or len(set(order)) < len(order) or not set(order) <= set(names):
            raise InputError(f"tune.orders: {order} is not an order of at least two of the tasks {', '.join(names)}")
    refuse_reported_orders(tune.orders, reported, "tune.orders")
    return tune.orders


def _shuffled(count: int, names: Sequence[str], length: int, reported: Sequence[Sequence[str]]) -> list[list[str]]:
    source, seen = random.Random("tune"), set[tuple[str, ...]]()
    found: list[list[str]] = []
    while len(found) < count:
        if len(seen) == math.perm(len(names), length):
            raise InputError(
                f"tune.orders: {count} asked for, but of the {len(seen)} orders of {length} tasks only {len(found)} "
                "are not reported; report fewer orders, or tune on fewer"
            )
        order = source.sample(list(names), length)
        if tuple(order) not in seen:
            seen.add(tuple(order))
            if not any(_alike(order, other) for other in reported):
                found.append(order)
    return found


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one stream is the other, or its beginning."""
    return all(a == b for a, b in zip(one, other, strict=False))


def refuse_reported_seeds(tuned: Collection[int], reported: Collection[int], what: str) -> None:
    """Raises InputError where a seed is both tuned on and reported. what: the place of the one to change."""
    common = sorted(set(tuned) & set(reported))
    if common:
        raise InputError(f"{what}: {_listed(common)} is tuned on and reported; settings chosen on it would flatter it")


def refuse_reported_orders(tuned: Sequence[Sequence[str]], reported: Sequence[Sequence[str]], what: str) -> None:
    """Raises InputError where an order, or its beginning, is both tuned on and reported."""
    for one, other in itertools.product(tuned, reported):
        if _alike(one, other):
            raise InputError(
                f"{what}: {_listed(one)} is tuned on and {_listed(other)} is reported; settings chosen on an order "
                "would flatter it"
            )


def _listed(values: Collection[object]) -> str:
    return ", ".join(map(str, values))
