"""Differences between rows of a comparison, paired by order and seed, and the groups that cannot be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from ilora.comparison.items import item_values, measures
from ilora.comparison.lines import Line, Pairing
from ilora.comparison.statistics import LEVEL, Difference, Floats, difference, holm, letters, mean_interval
from ilora.results.reader import SUMMARY

TOO_FEW = "too few pairs"  # the verdict on a difference of fewer than LEAST_PAIRS
NOT_TRAINED = "not trained"  # the verdict on a row that learnt too little (learning.py)
NOTHING_TO_BEAT = "baseline not trained"
Values = dict[Pairing, dict[str, Floats]]
"""What every item adds to every measure, run by run."""


def values_of(line: Line, tasks: Sequence[str]) -> Values:
    """The values of a line's runs, with the items in the order of `tasks`."""
    return {pairing: item_values(run, line.variant, tasks) for pairing, run in line.runs.items()}


class Contrast(NamedTuple):
    """(pairs, items), the stratum of every pair, and whether these are the orders."""

    values: Floats
    strata: list[int]
    within_orders: bool


def contrast_of(one: Values, other: Values, key: str) -> Contrast | None:
    """Over the orders and seeds that both have; None where there is none or it is not defined.

    The orders are strata where each has several seeds: then the interval is over seeds, in these orders.
    """
    common = [pairing for pairing in one if pairing in other]
    if not common or any(key not in values[pairing] for pairing in common for values in (one, other)):
        return None
    values = np.stack([one[pairing][key] - other[pairing][key] for pairing in common])
    seeds = Counter(order for order, _ in common)
    orders, within = list(seeds), min(seeds.values()) > 1
    return Contrast(values, [orders.index(order) if within else 0 for order, _ in common], within)


def mean_difference(contrast: Contrast, sizes: Sequence[int]) -> Difference:
    """The mean of a contrast, with its interval. sizes: items of each task."""
    return difference(contrast.values, sizes, contrast.strata)


def against_baseline(
    base: str, baseline: Values, others: Mapping[str, Values], sizes: Sequence[int], untrained: Collection[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every other row minus the baseline, by row and measure; the p-values of a measure are adjusted together.

    base: the baseline's name. untrained: the names of rows that get no verdict, and no p.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in others}
    for key in SUMMARY:
        made = {name: contrast_of(values, baseline, key) for name, values in others.items()}
        contrasts = {name: contrast for name, contrast in made.items() if contrast is not None}
        reasons = {
            name: NOT_TRAINED if name in untrained else NOTHING_TO_BEAT if base in untrained else "" for name in made
        }
        means = [_unjudged(mean_difference(contrast, sizes), reasons[name]) for name, contrast in contrasts.items()]
        adjusted = holm([mean.p for mean in means])
        for (name, contrast), mean, p in zip(contrasts.items(), means, adjusted, strict=True):
            entry = _entry(mean, p, lower_is_better=key == "forgetting", without=reasons[name] or TOO_FEW)
            found[name][key] = entry | {"within_orders": contrast.within_orders}
    return found


def _unjudged(found: Difference, reason: str) -> Difference:
    """The difference without its p where there is a reason for it."""
    return replace(found, p=None) if reason else found


def _entry(found: Difference, adjusted: float | None, *, lower_is_better: bool, without: str) -> dict[str, Any]:
    """without: the verdict where there is no p."""
    better = (found.mean < 0) == lower_is_better
    verdict = ("better" if better else "worse") if found.distinguishable else "not distinguishable"
    if found.p is None:
        verdict = without
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "pairs": found.pairs,
        "p": found.p,
        "p_holm": adjusted,
        "verdict": verdict,
        "holds_after_holm": adjusted is not None and adjusted < 1 - LEVEL,
    }


@dataclass(frozen=True)
class Ranking:
    """OP of every two rows, the better one first, and each row's letters: rows without a common one differ."""

    pairs: list[dict[str, Any]]
    letters: dict[str, str]


def rank(lines: Sequence[Line], values: Mapping[str, Values], sizes: Sequence[int]) -> Ranking:
    """Compare all rows in OP, with Holm's adjustment over all pairs of rows."""
    names = [line.name for line in sorted(lines, key=_mean_op, reverse=True)]
    contrasts = {}
    for one, other in combinations(range(len(names)), 2):
        contrast = contrast_of(values[names[one]], values[names[other]], "OP")
        if contrast is not None:
            contrasts[one, other] = contrast
    found = [mean_difference(contrast, sizes) for contrast in contrasts.values()]
    adjusted = holm([mean.p for mean in found])
    pairs, differ = [], set()
    for (one, other), mean, p in zip(contrasts, found, adjusted, strict=True):
        apart = p is not None and p < 1 - LEVEL
        if apart:
            differ.add((one, other))
        numbers = {key: getattr(mean, key) for key in ("mean", "low", "high", "pairs", "p")}
        pairs.append({"rows": [names[one], names[other]], **numbers, "p_holm": p, "apart": apart})
    return Ranking(pairs, dict(zip(names, letters(len(names), differ), strict=True)))


def _mean_op(line: Line) -> float:
    found = [measures(run, line.variant)["OP"] for run in line.runs.values()]
    known = [value for value in found if value is not None]
    return mean_interval(known).mean if len(known) == len(found) else 0.0
