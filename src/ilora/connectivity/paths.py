"""Paths between two adapters, and what a profile of values along one says.

Every path is a weighted sum of control points, φ(t) = Σ wᵢ(t)·cᵢ with t in [0, 1], φ(0) and φ(1) being the ends:

    linear      (1 − t)·θ₀ + t·θ₁
    spherical   sin((1 − t)Ω)/sin Ω · θ₀ + sin(tΩ)/sin Ω · θ₁,   Ω the angle between them (Shoemake 1985)
    bezier      (1 − t)²·θ₀ + 2t(1 − t)·c + t²·θ₁,   c the trained bend (Garipov et al. 2018, eq. 3)
    chain       straight from θ₀ to c to θ₁ (Garipov et al. 2018, eq. 2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ilora.connectivity import space as spaces
from ilora.connectivity.space import Adapter
from ilora.errors import InputError

Weights = Callable[[float], tuple[float, ...]]
KINDS = ("linear", "spherical", "bezier", "chain")
BENT = ("bezier", "chain")
_SMALLEST_ANGLE = 1e-4  # radians; below, sin Ω loses digits and the arc is the straight line


def linear(t: float) -> tuple[float, float]:
    """Weights of the two ends."""
    return 1.0 - t, t


def bezier(t: float) -> tuple[float, float, float]:
    """Weights of first end, bend and second end."""
    return (1.0 - t) ** 2, 2.0 * t * (1.0 - t), t**2


def chain(t: float) -> tuple[float, float, float]:
    """Weights of first end, bend and second end; the bend is reached at t = ½."""
    return (1.0 - 2.0 * t, 2.0 * t, 0.0) if t <= 0.5 else (0.0, 2.0 - 2.0 * t, 2.0 * t - 1.0)


def spherical(angle: float) -> Weights:
    """Weights of the two ends along the arc between them. angle: radians."""
    if angle < _SMALLEST_ANGLE:
        return linear
    if math.pi - angle < _SMALLEST_ANGLE:
        raise InputError("the two adapters point in opposite directions: no arc between them is the shortest")
    return lambda t: (math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))


@dataclass(frozen=True)
class Curve:
    """A curve of adapters. controls: the two ends, with the bend between them where there is one."""

    kind: str
    space: str
    controls: tuple[Adapter, ...]
    weights: Weights

    @property
    def name(self) -> str:
        """As it stands in file names: `linear-delta`."""
        return f"{self.kind}-{self.space}"

    def at(self, t: float) -> Adapter:
        """The adapter at t; at 0 and 1 the ends themselves. Raises InputError outside [0, 1]."""
        check_t(t)
        return spaces.combine(self.controls, self.weights(t), space=self.space, label=f"t = {t:g}")

    def bent(self, bend: Adapter) -> Curve:
        """The same path with another bend."""
        return replace(self, controls=(self.controls[0], bend, self.controls[-1]))


def make_path(kind: str, ends: tuple[Adapter, Adapter], *, space: str) -> Curve:
    """A path of that kind. A bent one begins as the straight line: its bend is the ends' middle.

    Raises InputError where the two are not points of the space.
    """
    if kind not in KINDS:
        raise InputError(f"unknown path {kind!r}; there are {', '.join(KINDS)}")
    spaces.check_space(ends, space)
    if kind == "linear":
        return Curve(kind, space, ends, linear)
    if kind == "spherical":
        return Curve(kind, space, ends, spherical(_angle(ends, space)))
    middle = spaces.combine(ends, (0.5, 0.5), space=space, label="bend")
    return Curve(kind, space, (ends[0], middle, ends[1]), bezier if kind == "bezier" else chain)


def _angle(ends: tuple[Adapter, Adapter], space: str) -> float:
    table = spaces.gram(ends, space=space)
    norms = math.sqrt(float(table[0, 0]) * float(table[1, 1]))
    if not norms:
        raise InputError("an adapter that changes nothing has no direction: no spherical path leads from or to it")
    return math.acos(max(-1.0, min(1.0, float(table[0, 1]) / norms)))


def check_t(t: float) -> None:
    """Raise InputError outside [0, 1]."""
    if not 0.0 <= t <= 1.0:
        raise InputError(f"t = {t:g}: a path goes from 0 (the first adapter) to 1 (the second)")


def grid(points: int) -> list[float]:
    """`points` equally spaced values of t, 0 and 1 among them."""
    if points < 2:
        raise InputError(f"points: {points}; a path needs at least 2 (its ends)")
    return [step / (points - 1) for step in range(points)]


@dataclass(frozen=True)
class Profile:
    """What a curve of values says; between its points it is taken as straight.

    barrier: the highest rise above the straight line between the two end values, at least 0 (Frankle et al. 2020;
    for a score: the deepest fall below it). best: the best value, at `best_t` (the first one on a tie). region: the
    stretch of t around it where the value stays within `epsilon` of the best. area: the mean over t.
    """

    barrier: float
    barrier_t: float
    best: float
    best_t: float
    epsilon: float
    region: tuple[float, float]
    area: float

    @property
    def width(self) -> float:
        """Length of the region, in t."""
        return self.region[1] - self.region[0]


def profile(ts: Sequence[float], values: Sequence[float], *, higher_is_better: bool, epsilon: float) -> Profile:
    """Barrier, best point, ε-region and area of values at rising ts from 0 to 1. epsilon: in the values' unit."""
    if len(ts) != len(values) or len(ts) < 2 or ts[0] != 0.0 or ts[-1] != 1.0:
        raise ValueError("a profile needs a value at each t, with 0 and 1 among them")
    costs = [-value if higher_is_better else value for value in values]
    rises = [cost - ((1.0 - t) * costs[0] + t * costs[-1]) for t, cost in zip(ts, costs, strict=True)]
    rises[0] = rises[-1] = 0.0  # by definition; rounding must not make a barrier of it
    top = max(range(len(ts)), key=rises.__getitem__)
    low = min(range(len(ts)), key=costs.__getitem__)
    limit = costs[low] + epsilon
    region = (_leave(ts, costs, low, -1, limit), _leave(ts, costs, low, 1, limit))
    pieces = zip(ts, ts[1:], values, values[1:], strict=False)
    area = sum((right - left) * (one + two) / 2.0 for left, right, one, two in pieces)
    return Profile(rises[top], ts[top], values[low], ts[low], epsilon, region, area)


def _leave(ts: Sequence[float], costs: Sequence[float], start: int, step: int, limit: float) -> float:
    """Where the curve, followed from `start`, first rises above the limit; the end of the path if it never does."""
    here = start
    while 0 <= here + step < len(ts):
        there = here + step
        if costs[there] > limit:
            share = (limit - costs[here]) / (costs[there] - costs[here])
            return ts[here] + share * (ts[there] - ts[here])
        here = there
    return ts[here]
