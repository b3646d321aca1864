"""Means over runs, paired differences over runs and test items, and which methods are distinguishable.

Pure functions of arrays; docs/comparing.md has the definitions and the simulated coverage.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 20240218
_CHUNK = 4_000_000  # numbers of one block of resamples, 32 MB

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
    """A paired difference and its interval at LEVEL; p: two-sided, by Student's t on the same variance."""

    mean: float
    low: float
    high: float
    p: float
    pairs: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's t over the runs: mean ± t(n - 1) · s / √n."""
    mean, n = math.fsum(values) / len(values), len(values)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = float(stats.t.isf((1 - LEVEL) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def differences(
    contrasts: Sequence[Floats],
    sizes: Sequence[int],
    strata: Sequence[Sequence[int]] | None = None,
    *,
    seed: int = SEED,
) -> list[Difference]:
    """Every contrast's mean and its bootstrap interval over pairs of runs and over test items.

    contrasts: each (pairs, items), one method's item values minus the other's; a pair's difference is the sum over
    tasks of the mean over the task's items. sizes: the number of items of each task, in the order of the columns.
    strata: for every contrast the stratum of each of its pairs, two pairs or more in each: pairs vary around the mean
    of theirs, so that the interval is for these strata; None: one stratum. A single pair: only items are resampled.
    Resample b draws the same items for every contrast.
    """
    strata = strata or [[0] * len(contrast) for contrast in contrasts]
    if any(len(of) > 1 and min(Counter(of).values()) < 2 for of in strata):
        raise ValueError("a stratum needs two pairs or more")
    effects = [_effects(contrast, sizes, _members(of)) for contrast, of in zip(contrasts, strata, strict=True)]
    if not effects:
        return []
    moved = _resampled_items(np.stack([effect.items for effect in effects]), sizes, seed)
    for row, effect in zip(moved, effects, strict=True):
        if len(effect.pairs) > 1:
            row += _resampled_pairs(effect.pairs, seed)
    return [_difference(effect, np.sort(row)) for effect, row in zip(effects, moved, strict=True)]


class _Variance(NamedTuple):
    """A part of the variance of the mean, with the degrees of freedom of its estimate."""

    value: float
    freedom: int


class _Effects(NamedTuple):
    """A contrast's mean, what its pairs and its items add to it, its standard error and the freedom of that."""

    mean: float
    pairs: Floats  # (pairs,), sum 0 within each stratum
    items: Floats  # (items,), sum 0 within each task
    error: float
    freedom: float


def _members(strata: Sequence[int]) -> list[Places]:
    return [np.flatnonzero(np.array(strata) == stratum) for stratum in sorted(set(strata))]


def _effects(contrast: Floats, sizes: Sequence[int], members: list[Places]) -> _Effects:
    """Split (pairs, items) into mean + pair + item effects, each scaled to show its own variance without bias.

    The same items are scored in every pair, so an item effect is a mean over pairs and still holds 1/pairs of the
    noise of an item in a single pair, which the pair effects hold as well. It is shrunk as the two-way analysis of
    variance says, or noise would count twice.
    """
    blocks = np.split(contrast, np.cumsum(sizes)[:-1], axis=1)
    per_pair = np.sum([block.mean(axis=1) for block in blocks], axis=0)
    noises = [_noise(block, members) for block in blocks]
    least = sum(noise / size for noise, size in zip(noises, sizes, strict=True))
    pairs, parts = _pair_effects(per_pair, members, least, items_freedom=sum(sizes) - len(sizes))
    items = [_item_effects(block, noise) for block, noise in zip(blocks, noises, strict=True)]
    parts += [_Variance(float((effect**2).sum()) / len(effect) ** 2, len(effect) - 1) for effect in items]
    total = sum(part.value for part in parts)
    # Satterthwaite: the degrees of freedom of a sum of estimated variances.
    spent = sum(part.value**2 / part.freedom for part in parts if part.value > 0)
    freedom = total**2 / spent if spent > 0 else math.inf
    return _Effects(float(per_pair.mean()), pairs, np.concatenate(items), math.sqrt(total), freedom)


def _pair_effects(
    per_pair: Floats, members: list[Places], least: float, *, items_freedom: int
) -> tuple[Floats, list[_Variance]]:
    """How far each pair is from the mean of its stratum, and what that adds to the variance of the mean.

    per_pair: (pairs,), the difference in each pair.
    members: the pairs of each stratum.
    least: the variance that the noise of single items alone gives a pair.
    items_freedom: the degrees of freedom of the items of one pair.
    """
    count, freedom = len(per_pair), len(per_pair) - len(members)
    effects = np.zeros(count)
    if freedom == 0:  # one pair: it does not show how pairs vary
        return effects, []
    for places in members:
        effects[places] = per_pair[places] - per_pair[places].mean()
    found = float((effects**2).sum()) / freedom
    agree_by_chance = found < least
    if agree_by_chance:
        effects = effects * math.sqrt(least / found) if found > 0 else _alternating(count, members, least)
    if found > 0:
        for places in members:  # deviations from a mean of n vary by (n - 1) / n of what the pairs do
            effects[places] *= math.sqrt(len(places) / (len(places) - 1))
    shares = [_Variance(float((effects[places] ** 2).sum()) / count**2, len(places) - 1) for places in members]
    if agree_by_chance:  # then the variance is that of the noise, known from as many answers
        return effects, [_Variance(sum(share.value for share in shares), freedom * items_freedom)]
    return effects, shares


def _alternating(count: int, members: list[Places], variance: float) -> Floats:
    """(pairs,): effects of this variance for pairs that are all equal."""
    effects = np.zeros(count)
    for places in members:
        effects[places] = math.sqrt(variance) * _signs(len(places))
    return effects


def _signs(count: int) -> Floats:
    """Mean 0, variance 1."""
    signs = np.resize([1.0, -1.0], count)
    made: Floats = (signs - signs.mean()) / signs.std()
    return made


def _noise(block: Floats, members: list[Places]) -> float:
    """The variance of one item in one pair, what its pair and the item in its stratum leave; (pairs, n) of a task."""
    pairs, n = block.shape
    freedom = (pairs - len(members)) * (n - 1)
    if not freedom:
        return 0.0
    left = 0.0
    for places in members:
        part = block[places]
        left += float(((part - part.mean(axis=1, keepdims=True) - part.mean(axis=0) + part.mean()) ** 2).sum())
    return left / float(freedom)


def _item_effects(block: Floats, noise: float) -> Floats:
    """(pairs, n) of one task to (n,)."""
    pairs, n = block.shape
    effects = block.mean(axis=0) - block.mean()
    if n < 2:
        return np.zeros(n)
    of_items = pairs * float((effects**2).sum()) / (n - 1)
    if of_items > 0:
        effects = effects * math.sqrt(max(0.0, 1 - noise / of_items))
    shown: Floats = effects * math.sqrt(n / (n - 1))
    return shown


def _resampled_items(effects: Floats, sizes: Sequence[int], seed: int) -> Floats:
    """(contrasts, items) to (contrasts, RESAMPLES): the sum over tasks of the mean effect of the items drawn."""
    weighted = effects / np.repeat(sizes, sizes)
    blocks = [counts @ weighted.T for counts in _item_counts(sizes, seed)]
    moved: Floats = np.concatenate(blocks).T.copy()
    return moved


def _item_counts(sizes: Sequence[int], seed: int) -> Iterator[Floats]:
    """How often each item is drawn, (resamples, items) block by block; within each task as many as it has."""
    generator = np.random.default_rng([seed, 1])
    total = sum(sizes)
    for start in range(0, RESAMPLES, height := max(1, _CHUNK // total)):
        rows = min(height, RESAMPLES - start)
        yield np.concatenate([_counts(generator, rows, size) for size in sizes], axis=1)


def _counts(generator: np.random.Generator, rows: int, size: int) -> Floats:
    drawn = generator.integers(size, size=(rows, size)) + np.arange(rows)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _resampled_pairs(effects: Floats, seed: int) -> Floats:
    """(pairs,) to (RESAMPLES,): the mean of the effects, each times a standard normal number (the wild bootstrap).

    Drawing a few pairs with replacement could never go beyond the most extreme of them. All contrasts with the same
    number of pairs get the same random numbers.
    """
    count = len(effects)
    weights = np.random.default_rng([seed, 2, count]).standard_normal((RESAMPLES, count))
    moved: Floats = weights @ effects / count
    return moved


def _difference(effect: _Effects, moved: Floats) -> Difference:
    """The interval of a contrast from its sorted resamples, and its p."""
    tail, mean = (1 - LEVEL) / 2, effect.mean
    # Percentiles, widened by t / z: so few pairs and items give only an estimate of the variance.
    wider = float(stats.t.isf(tail, effect.freedom) / stats.norm.isf(tail))
    low, high = (mean + wider * float(end) for end in np.quantile(moved, [tail, 1 - tail]))
    # Equal but for rounding.
    equal = abs(mean) < 1e-12
    # By Student's t: in the tails there are too few resamples to count.
    p = 2 * float(stats.t.sf(abs(mean) / effect.error, effect.freedom)) if effect.error else 0.0
    return Difference(mean, low, high, 1.0 if equal else p, len(effect.pairs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (1979): those below 0.05 hold together with an error of at most 5 %."""
    count, largest = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, place in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[place]))
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
