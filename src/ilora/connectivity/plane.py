"""The plane through three adapters, and where other adapters lie beside it.

With corners θ₀, θ₁, θ₂ the axes are e₁ = (θ₁ − θ₀)/‖θ₁ − θ₀‖ and e₂, the part of θ₂ − θ₀ at right angles to e₁, made of
length one (Garipov et al. 2018, section 5). All that is needed are scalar products, so vectors are never formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ilora.connectivity import space as spaces
from ilora.connectivity.space import Adapter
from ilora.errors import InputError

_THINNEST = 1e-6  # of the base, and of the corners' own length: what float32 rounding of a corner makes of a line
_FLATTEST = 0.5  # the picture's short side over its long one, at least
_NEAR = 0.5  # of the plane's longest side: what lies farther off is not taken into the picture


@dataclass(frozen=True)
class Projection:
    """x, y: coordinates on the plane; away: the distance from it."""

    x: float
    y: float
    away: float


@dataclass(frozen=True)
class Plane:
    """Corners at (0, 0), (base, 0) and (shift, height), in the distance of the space."""

    corners: tuple[Adapter, Adapter, Adapter]
    space: str
    base: float
    shift: float
    height: float

    @property
    def coordinates(self) -> tuple[tuple[float, float], ...]:
        """(x, y) of the three corners."""
        return (0.0, 0.0), (self.base, 0.0), (self.shift, self.height)

    def weights(self, x: float, y: float) -> tuple[float, float, float]:
        """The corners' weights at a point; they add up to 1. Exactly (1, 0, 0) and so on at the corners."""
        third = y / self.height
        second = (x - third * self.shift) / self.base
        return 1.0 - second - third, second, third

    def at(self, x: float, y: float) -> Adapter:
        """The adapter at (x, y); at a corner the corner itself."""
        return spaces.combine(self.corners, self.weights(x, y), space=self.space, label=f"({x:.3g}, {y:.3g})")

    def project(self, adapters: Iterable[Adapter]) -> list[Projection]:
        """The nearest points of the plane. Raises InputError where an adapter is no point of the space."""
        corners = spaces.gram(self.corners, space=self.space)[0].tolist()
        return [self._nearest(adapter, corners) for adapter in adapters]

    def _nearest(self, adapter: Adapter, corners: Sequence[float]) -> Projection:
        """corners: ⟨θ₀, θᵢ⟩."""
        spaces.check_space((self.corners[0], adapter), self.space)
        own = [spaces.inner(adapter, corner, space=self.space) for corner in self.corners]
        from_origin = [own[k] - own[0] - corners[k] + corners[0] for k in (1, 2)]
        x = from_origin[0] / self.base
        y = (from_origin[1] - x * self.shift) / self.height
        length = spaces.inner(adapter, adapter, space=self.space) - 2.0 * own[0] + corners[0]
        return Projection(x, y, math.sqrt(max(0.0, length - x * x - y * y)))

    def near(self, place: Projection) -> bool:
        """Whether a projection is close enough to the plane for the picture to say something of it."""
        return place.away <= _NEAR * max(self.base, math.hypot(self.shift, self.height))

    def axes(
        self, points: int, *, margin: float = 0.2, others: Sequence[Projection] = ()
    ) -> tuple[list[float], list[float]]:
        """`points` equally spaced values for x and for y.

        They go over the box of the corners and of those `others` that are `near`, and `margin` of its longer side
        around it; a flat box is widened.
        """
        if points < 2:
            raise InputError(f"grid: {points}; a plane needs at least 2 points a side")
        shown = [*self.coordinates, *((place.x, place.y) for place in others if self.near(place))]
        boxes = [(min(values), max(values)) for values in zip(*shown, strict=True)]
        longest = max(high - low for low, high in boxes)
        sides = []
        for low, high in boxes:
            edge = max(margin * longest, (_FLATTEST * (1.0 + 2.0 * margin) * longest - (high - low)) / 2.0)
            step = (high - low + 2.0 * edge) / (points - 1)
            sides.append([low - edge + step * number for number in range(points)])
        return sides[0], sides[1]


def make_plane(corners: tuple[Adapter, Adapter, Adapter], *, space: str) -> Plane:
    """Raises InputError where the three are not points of the space, or lie on a line."""
    spaces.check_space(corners, space)
    products = spaces.gram(corners, space=space).tolist()

    def product(i: int, j: int) -> float:
        """⟨θᵢ − θ₀, θⱼ − θ₀⟩."""
        return float(products[i][j] - products[i][0] - products[0][j] + products[0][0])

    first, second = product(1, 1), product(2, 2)
    base = math.sqrt(max(0.0, first))
    shift = product(1, 2) / base if base else 0.0
    height = math.sqrt(max(0.0, second - shift * shift))
    length = math.sqrt(max(products[k][k] for k in range(3)))
    if base <= _THINNEST * length or height <= _THINNEST * max(base, length):
        names = ", ".join(corner.label for corner in corners)
        raise InputError(f"{names} lie on a line: there is no one plane through them; give three different adapters")
    return Plane(corners, space, base, shift, height)
