"""What a task has lost: paired differences over its rows, with an interval, and how many rows it takes to see a loss.

Rows are paired: the same row before and now. Scores of 0 and 1 get the exact test of McNemar (1947), turned into an
interval: of the rows that changed, the share that got worse has the exact interval of Clopper and Pearson (1934). It
takes the number of changed rows as given, and leaves 0 out exactly where the test rejects. It decides. Since it is 0 to
0 where no row changed, another one is shown, which holds whatever number of rows changes: Newcombe's score interval of
a paired difference. Other scores get Student's t over the rows' differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

POWER = 0.8  # with the rows that are needed, the share of tests that see a loss of the limit


@dataclass(frozen=True)
class Loss:
    """Score before minus score now over paired rows, in [-1, 1]; above 0 = got worse.

    low, high: ends of the interval that decides, each missed with the error that was asked for; None of too few rows.
    score: the interval that is shown, where it is another one.
    worse, better: rows whose score fell and rose.
    square: the mean square of the rows' differences. exact: all scores are 0 or 1.
    """

    mean: float
    low: float | None
    high: float | None
    rows: int
    worse: int
    better: int
    square: float
    exact: bool
    score: tuple[float, float] | None = None

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The interval that is shown."""
        return self.score or (self.low, self.high)

    def moved(self, by: float, *, times: float = 1.0) -> Loss:
        """In another unit, and then against scores that are higher by so much."""
        low, high = (None if end is None else times * end + by for end in (self.low, self.high))
        score = self.score and (times * self.score[0] + by, times * self.score[1] + by)
        return replace(self, mean=times * self.mean + by, low=low, high=high, score=score)


def paired_loss(before: Sequence[float], now: Sequence[float], *, error: float) -> Loss:
    """The loss over rows, scores in [0, 1] in the same order. error: that the truth lies below `low`; and above `high`.

    Raises ValueError for no rows, or another number of rows.
    """
    if len(before) != len(now) or not len(now):
        raise ValueError(f"{len(before)} rows before, {len(now)} now; expected the same rows, at least one")
    one, other = np.asarray(before, dtype=np.float64), np.asarray(now, dtype=np.float64)
    differences = one - other
    worse, better = int((differences > 0).sum()), int((differences < 0).sum())
    exact = bool(np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all())
    low, high = _exact(worse, better, len(differences), error) if exact else _student(differences, error)
    both = int(((one == 1) & (other == 1)).sum())
    score = _newcombe(both, worse, better, len(differences) - both - worse - better, error) if exact else None
    square = float((differences**2).mean())
    return Loss(float(differences.mean()), low, high, len(differences), worse, better, square, exact, score)


def shortfall(scores: Sequence[float], least: float, *, error: float) -> Loss:
    """The loss against a fixed score `least`: exact for scores of 0 and 1 (Clopper and Pearson), else Student's t."""
    found = np.asarray(scores, dtype=np.float64)
    differences = least - found
    worse, better = int((differences > 0).sum()), int((differences < 0).sum())
    exact = bool(np.isin(found, (0, 1)).all())
    low, high = _student(differences, error)
    if exact:
        right = int(found.sum())
        share = _share(right, len(found) - right, error)
        low, high = least - share[1], least - share[0]
    square = float((differences**2).mean())
    return Loss(float(differences.mean()), low, high, len(found), worse, better, square, exact)


def rows_needed(loss: Loss, limit: float, *, error: float) -> int:
    """How many rows see a true loss of `limit` with probability POWER: the interval's lower end is above 0.

    From the noise of these rows. Of scores of 0 and 1 (Connor 1987, Biometrics 43) a loss of the limit changes some
    rows itself, at least `limit` of them; two rows that change are added for the steps of the exact test.
    """
    seen, power = float(special.ndtri(1 - error)), float(special.ndtri(POWER))
    if loss.exact:
        square = max(loss.square, limit)
        root = seen * math.sqrt(square) + power * math.sqrt(square - limit**2)
        return math.ceil((root / limit) ** 2 + 2 / limit)
    variance = max(0.0, loss.square - loss.mean**2)
    return math.ceil(max(fewest_rows(error), ((seen + power) / limit) ** 2 * variance + seen**2 / 2))


def fewest_rows(error: float) -> int:
    """With fewer rows no test of signs can reject, even if all of them got worse."""
    return math.ceil(-math.log2(error))


def _exact(worse: int, better: int, rows: int, error: float) -> tuple[float, float]:
    changed = worse + better
    low, high = _share(worse, better, error) if changed else (0.5, 0.5)
    return (2 * low - 1) * changed / rows, (2 * high - 1) * changed / rows


def _share(hits: int, misses: int, error: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share."""
    low = float(special.betaincinv(hits, misses + 1, error)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, misses, 1 - error)) if misses else 1.0
    return low, high


def _newcombe(both: int, worse: int, better: int, neither: int, error: float) -> tuple[float, float]:
    """Score interval of a difference of paired shares: method 10 of Newcombe 1998 (Statistics in Medicine 17, 2635).

    Wilson's intervals of the two shares, put together with the correlation of the pairs (whose determinant is taken
    smaller by half the rows, at most to 0). both, worse, better, neither: rows right before and now, before alone, now
    alone, and never.
    """
    rows, z = both + worse + better + neither, float(special.ndtri(1 - error))
    before, now = (both + worse) / rows, (both + better) / rows
    (low_before, high_before), (low_now, high_now) = (_wilson(share, rows, z) for share in (before, now))
    margins = (both + worse) * (better + neither) * (both + better) * (worse + neither)
    determinant = float(both * neither - worse * better)
    if determinant > 0:
        determinant = max(determinant - rows / 2, 0.0)
    phi = determinant / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    lost = before - now
    return lost - reach(before - low_before, high_now - now), lost + reach(now - low_now, high_before - before)


def _wilson(share: float, rows: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    middle = share + z**2 / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return (middle - half) / (1 + z**2 / rows), (middle + half) / (1 + z**2 / rows)


def _student(
    differences: np.ndarray[tuple[int], np.dtype[np.float64]], error: float
) -> tuple[float | None, float | None]:
    count = len(differences)
    if count < max(2, fewest_rows(error)):
        return None, None
    half = float(special.stdtrit(count - 1, 1 - error)) * float(differences.std(ddof=1)) / math.sqrt(count)
    mean = float(differences.mean())
    return mean - half, mean + half
