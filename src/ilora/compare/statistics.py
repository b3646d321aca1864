"""Means over runs, paired differences over runs and test items, and which methods cannot be told apart.

Pure functions of arrays; docs/comparing.md has the definitions and the simulated coverage.
"""

from __future__ import annotations

import math
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
_LEAST = 1e-9  # the smallest p-value that is looked for

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
    """A paired difference and its interval at LEVEL; p: the smallest alpha whose 1 - alpha interval leaves 0 out."""

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
    strata: for every contrast the stratum of each of its pairs, two pairs or more in each: pairs are drawn within
    theirs, so that the interval is for these strata; None: one stratum. A single pair: only items are resampled.
    Resample b draws the same items for every contrast.
    """
    strata = strata or [[0] * len(contrast) for contrast in contrasts]
    effects = [_effects(contrast, sizes, _members(of)) for contrast, of in zip(contrasts, strata, strict=True)]
    if not effects:
        return []
    moved = _resampled_items(np.stack([effect.items for effect in effects]), sizes, seed)
    for row, effect in zip(moved, effects, strict=True):
        if len(effect.pairs) > 1:
            row += _resampled_pairs(effect.pairs, effect.members, seed)
    return _judge(effects, np.sort(moved, axis=1))


class _Effects(NamedTuple):
    """A contrast's mean, what its pairs and its items add to it, and the degrees of freedom of its variance."""

    mean: float
    pairs: Floats  # (pairs,), sum 0 within each stratum
    items: Floats  # (items,), sum 0 within each task
    freedom: float
    members: list[Places]  # of every stratum


def _members(strata: Sequence[int]) -> list[Places]:
    return [np.flatnonzero(np.array(strata) == stratum) for stratum in sorted(set(strata))]


def _effects(contrast: Floats, sizes: Sequence[int], members: list[Places]) -> _Effects:
    """Split (pairs, items) into mean + pair + item effects, each scaled to show its own variance without bias.

    The same items are scored in every pair, so an item effect is a mean over pairs and still holds 1/pairs of the
    noise of an item in a single pair, which the pair effects hold as well. It is shrunk as the two-way analysis of
    variance says, or noise would count twice. Pairs vary by at least that noise: few that agree more agree by chance.
    """
    blocks = np.split(contrast, np.cumsum(sizes)[:-1], axis=1)
    per_pair = np.sum([block.mean(axis=1) for block in blocks], axis=0)
    noises = [_noise(block, members) for block in blocks]
    least = sum(noise / size for noise, size in zip(noises, sizes, strict=True))
    pairs, parts = _pair_effects(per_pair, members, least, spare=sum(sizes) - len(sizes))
    items = [_item_effects(block, noise) for block, noise in zip(blocks, noises, strict=True)]
    parts += [(float((effect**2).sum()) / len(effect) ** 2, len(effect) - 1) for effect in items]
    total = sum(variance for variance, _ in parts)
    # Satterthwaite: the degrees of freedom of a sum of estimated variances.
    spent = sum(variance**2 / freedom for variance, freedom in parts if variance > 0)
    freedom = total**2 / spent if spent > 0 else math.inf
    return _Effects(float(per_pair.mean()), pairs, np.concatenate(items), freedom, members)


def _pair_effects(
    per_pair: Floats, members: list[Places], least: float, *, spare: int
) -> tuple[Floats, list[tuple[float, int]]]:
    """(pairs,) to their effects, of variance `least` or more; what each stratum adds to the mean's variance, with its
    degrees of freedom. spare: the degrees of freedom of one pair's items.
    """
    count, freedom = len(per_pair), len(per_pair) - len(members)
    effects = np.zeros(count)
    if not freedom:
        return effects, []
    for places in members:
        effects[places] = per_pair[places] - per_pair[places].mean()
    found = float((effects**2).sum()) / freedom
    if floored := found < least:
        effects *= math.sqrt(least / found) if found > 0 else 0.0
    for places in members:
        n = len(places)
        effects[places] = math.sqrt(n / (n - 1)) * effects[places] if found > 0 else math.sqrt(least) * _signs(n)
    shares = [(float((effects[places] ** 2).sum()) / count**2, len(places) - 1) for places in members]
    # A floor is the noise's variance, known from as many answers.
    return effects, [(sum(variance for variance, _ in shares), freedom * spare)] if floored else shares


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


def _resampled_pairs(effects: Floats, members: list[Places], seed: int) -> Floats:
    """(pairs,) to (RESAMPLES,): the mean effect of the pairs drawn, of every stratum as many as it has.

    The same draw for all contrasts with strata of these sizes.
    """
    generator = np.random.default_rng([seed, 2, *map(len, members)])
    drawn = [_counts(generator, RESAMPLES, len(places)) @ effects[places] for places in members]
    moved: Floats = np.sum(drawn, axis=0) / len(effects)
    return moved


def _judge(effects: Sequence[_Effects], moved: Floats) -> list[Difference]:
    """The interval and p of every contrast from its sorted resamples, (contrasts, RESAMPLES)."""
    means = np.array([effect.mean for effect in effects])
    freedom = np.array([effect.freedom for effect in effects])

    def ends(alpha: Floats) -> tuple[Floats, Floats]:
        # Percentiles, wider by t / z: they know the variance only as well as so few pairs and items tell it.
        wider = stats.t.isf(alpha / 2, freedom) / stats.norm.isf(alpha / 2)
        return means + wider * _quantile(moved, alpha / 2), means + wider * _quantile(moved, 1 - alpha / 2)

    low, high = ends(np.full(len(means), 1 - LEVEL))
    under, over = np.full(len(means), math.log(_LEAST)), np.zeros(len(means))
    for _ in range(40):  # bisection on log alpha; the interval narrows as alpha grows
        middle = (under + over) / 2
        bottom, top = ends(np.exp(middle))
        outside = (bottom > 0) | (top < 0)
        under, over = np.where(outside, under, middle), np.where(outside, middle, over)
    # As good as equal in every pair and on every item: 0 is inside at any level.
    p = np.where(np.abs(means) < 1e-12, 1.0, np.exp(over))
    return [
        Difference(float(m), float(a), float(b), float(q), len(effect.pairs))
        for m, a, b, q, effect in zip(means, low, high, p, effects, strict=True)
    ]


def _quantile(ordered: Floats, share: Floats) -> Floats:
    """Of every row (sorted) its own quantile, linear between neighbours."""
    place = share * (ordered.shape[1] - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, ordered.shape[1] - 1)
    rows = np.arange(len(ordered))
    lower = ordered[rows, below]
    between: Floats = lower + (place - below) * (ordered[rows, above] - lower)
    return between


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
