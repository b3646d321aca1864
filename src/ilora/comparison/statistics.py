"""Means over runs, paired differences over runs and test items, and which methods are distinguishable.

Pure functions of arrays. docs/comparing.md has the definitions, bench/coverage.py how often the intervals are wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

LEVEL = 0.95
LEAST_PAIRS = 3  # under that no verdict: two pairs that agree do so by chance too often
_LEAST_P = 1e-12

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


class Interval(NamedTuple):
    """A mean and its interval at LEVEL over `n` runs; no ends for a single run."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A paired difference with its interval at LEVEL.

    p: two-sided, the error at which the interval would end at 0; None under LEAST_PAIRS.
    """

    mean: float
    low: float
    high: float
    p: float | None
    pairs: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 0 out, of enough pairs."""
        return self.p is not None and self.p < 1 - LEVEL


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's t over the runs: mean ± t(n - 1) · s / √n."""
    mean, n = math.fsum(values) / len(values), len(values)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


class _Component(NamedTuple):
    """A part of the variance of a mean, and the degrees of freedom of its estimate."""

    variance: float
    freedom: float


def difference(contrast: Floats, sizes: Sequence[int], strata: Sequence[int] | None = None) -> Difference:
    """The mean of a contrast over pairs of runs and over test items, with its interval.

    contrast: (pairs, items), one method's item values minus the other's. A pair's difference is the sum over tasks of
    the mean over the task's items.
    sizes: the number of items of each task, in the order of the columns.
    strata: the stratum of each pair, two pairs or more in each. Pairs vary around the mean of their stratum, so the
    interval is for these strata. None: one stratum.

    The variance of the mean has two components, pairs and items, each estimated with degrees of freedom of its own. The
    interval is mean ± √(Σ t(freedom)² · variance), which covers the truth at least as often as it says (Banerjee 1960,
    Sankhyā 22). Satterthwaite's single t does not: it fails when a component of few degrees of freedom comes out small
    by chance. With a single pair there is the items' component alone.
    """
    strata = [0] * len(contrast) if strata is None else strata
    if len(strata) > 1 and min(Counter(strata).values()) < 2:
        raise ValueError("a stratum needs two pairs or more")
    members = [np.flatnonzero(np.array(strata) == stratum) for stratum in sorted(set(strata))]
    blocks = np.split(contrast, np.cumsum(sizes)[:-1], axis=1)
    noises = [_noise(block, members) for block in blocks]
    per_pair = np.sum([block.mean(axis=1) for block in blocks], axis=0)
    components = [_of_items(blocks, noises)]
    if len(contrast) > 1:
        least = sum(noise / size for noise, size in zip(noises, sizes, strict=True))
        components.append(_of_pairs(per_pair, members, least))
    mean = float(per_pair.mean())
    half = _half_width(components, 1 - LEVEL)
    p = _p_value(mean, components) if len(contrast) >= LEAST_PAIRS else None
    return Difference(mean, mean - half, mean + half, p, len(contrast))


def _noise(block: Floats, members: Sequence[Places]) -> float:
    """The variance of a single answer: what is left of a task's (pairs, items) without pair and item effects."""
    pairs, items = block.shape
    freedom = (pairs - len(members)) * (items - 1)
    if not freedom:
        return 0.0
    left = 0.0
    for places in members:
        part = block[places]
        left += float(((part - part.mean(axis=1, keepdims=True) - part.mean(axis=0) + part.mean()) ** 2).sum())
    return left / float(freedom)


def _of_items(blocks: Sequence[Floats], noises: Sequence[float]) -> _Component:
    """What the choice of the test items adds to the variance of the mean.

    The mean of an item over the pairs still holds 1/pairs of the noise of single answers. The pairs' component has
    that noise too, so it is taken off here, or it would count twice.
    """
    parts = []
    for block, noise in zip(blocks, noises, strict=True):
        pairs, items = block.shape
        if items > 1:
            variance = float(block.mean(axis=0).var(ddof=1)) - noise / pairs
            parts.append(_Component(max(0.0, variance) / items, items - 1))
    return _sum(parts)


def _of_pairs(per_pair: Floats, members: Sequence[Places], least: float) -> _Component:
    """What the choice of the pairs adds to the variance of the mean. per_pair: (pairs,), the difference of each pair.

    least: the variance that the noise of single answers alone gives a pair. Pairs that agree better do so by chance.
    """
    parts = []
    for places in members:
        variance = max(float(per_pair[places].var(ddof=1)), least)
        parts.append(_Component(variance * len(places) / len(per_pair) ** 2, len(places) - 1))
    return _sum(parts)


def _sum(parts: Iterable[_Component]) -> _Component:
    """Independent components as one, with Satterthwaite's degrees of freedom."""
    known = [part for part in parts if part.variance > 0]
    total = sum(part.variance for part in known)
    spent = sum(part.variance**2 / part.freedom for part in known)
    return _Component(total, total**2 / spent if spent else math.inf)


def _half_width(components: Iterable[_Component], error: float) -> float:
    """Of the interval that misses the truth with probability `error`."""
    known = [part for part in components if part.variance > 0]
    return math.sqrt(sum(float(special.stdtrit(part.freedom, error / 2)) ** 2 * part.variance for part in known))


def _p_value(mean: float, components: Sequence[_Component]) -> float:
    """The error at which the interval ends at 0; not below _LEAST_P."""
    if abs(mean) < 1e-12:  # equal but for rounding
        return 1.0
    if _half_width(components, _LEAST_P) <= abs(mean):
        return _LEAST_P
    found = optimize.brentq(lambda log: _half_width(components, math.exp(log)) - abs(mean), math.log(_LEAST_P), 0.0)
    return math.exp(float(found))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values (1979): those below 0.05 hold together with an error of at most 5 %.

    A difference without a p-value is no test and is not counted.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted


def letters(count: int, differ: set[tuple[int, int]]) -> list[str]:
    """Compact letter display (Piepho 2004): two of `count` share a letter exactly where they do not `differ`.

    Number 0 gets the letter a; number them from best to worst. differ: pairs (smaller, larger).
    """
    groups = [frozenset(range(count))]
    for one, other in sorted(differ):
        split = []
        for group in groups:
            split += [group - {one}, group - {other}] if {one, other} <= group else [group]
        distinct = list(dict.fromkeys(split))
        groups = [group for group in distinct if not any(group < larger for larger in distinct)]
    groups.sort(key=lambda group: sorted(group))
    return ["".join(_letter(n) for n, group in enumerate(groups) if item in group) for item in range(count)]


def _letter(number: int) -> str:
    """a to z, then a1 to z1 and so on."""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")
