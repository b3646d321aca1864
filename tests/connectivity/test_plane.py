"""Planes: exact corners, and projections against vectors that are formed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilora.connectivity import space
from ilora.connectivity.plane import Projection, make_plane
from ilora.errors import InputError
from ilora.model.adapters import LowRank
from tests.connectivity.conftest import LAYERS, random_adapter, update

CORNERS = (random_adapter("a", 1), random_adapter("b", 2), random_adapter("c", 3))


@pytest.mark.parametrize("where", space.SPACES)
def test_the_corners_are_exact(where: str) -> None:
    plane = make_plane(CORNERS, space=where)
    assert plane.coordinates[0] == (0.0, 0.0)
    assert plane.coordinates[1] == (plane.base, 0.0)
    for number, (x, y) in enumerate(plane.coordinates):
        assert plane.weights(x, y) == tuple(float(number == k) for k in range(3))
        assert plane.at(x, y) is CORNERS[number]
    for found, (x, y) in zip(plane.project(CORNERS), plane.coordinates, strict=True):
        assert (found.x, found.y, found.away) == pytest.approx((x, y, 0.0), abs=1e-6)


@pytest.mark.parametrize("where", space.SPACES)
def test_projections_equal_those_of_formed_vectors(where: str) -> None:
    def vector(adapter: space.Adapter) -> torch.Tensor:
        if where == "delta":
            return torch.cat([update(adapter, layer).flatten() for layer in LAYERS])
        parts = adapter.updates.values()
        return torch.cat([side.flatten().double() for part in parts for side in (part.down, part.up)])

    plane, other = make_plane(CORNERS, space=where), random_adapter("d", 4)
    origin, one, two, point = (vector(adapter) for adapter in (*CORNERS, other))
    first = (one - origin) / (one - origin).norm()
    second = (two - origin) - ((two - origin) @ first) * first
    second /= second.norm()
    x, y = float((point - origin) @ first), float((point - origin) @ second)
    away = float((point - origin - x * first - y * second).norm())
    found = plane.project([other])[0]
    assert (found.x, found.y, found.away) == pytest.approx((x, y, away), rel=1e-8)
    inside = plane.at(0.3 * plane.base, 0.6 * plane.height)
    back = plane.project([inside])[0]
    assert (back.x, back.y) == pytest.approx((0.3 * plane.base, 0.6 * plane.height), rel=1e-5)
    assert back.away < 1e-3 * plane.base


def test_the_grid_goes_around_the_corners() -> None:
    plane = replace(make_plane(CORNERS, space="delta"), base=10.0, shift=4.0, height=8.0)
    xs, ys = plane.axes(5, margin=0.25)
    assert xs == pytest.approx([-2.5, 1.25, 5.0, 8.75, 12.5])
    assert ys == pytest.approx([-2.5, 0.75, 4.0, 7.25, 10.5])
    flat = replace(plane, height=1.0).axes(5, margin=0.25)[
        1
    ]  # widened to half of the other side, around the same middle
    assert (flat[0], flat[-1]) == pytest.approx((0.5 - 3.75, 0.5 + 3.75))
    with pytest.raises(InputError, match="at least 2"):
        plane.axes(1)


def test_the_grid_takes_in_what_is_near_the_plane() -> None:
    plane = replace(make_plane(CORNERS, space="delta"), base=10.0, shift=4.0, height=8.0)
    near, far = Projection(-6.0, 4.0, away=4.9), Projection(50.0, 4.0, away=5.1)
    assert [plane.near(place) for place in (near, far)] == [True, False]
    xs, _ = plane.axes(3, margin=0.0, others=[near, far])
    assert xs == pytest.approx([-6.0, 2.0, 10.0])


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4])
def test_a_line_of_close_adapters_is_refused_within_their_rounding(apart: float) -> None:
    """The point between two adapters that hardly differ is off their line by the rounding of its own float32 values."""
    source = torch.Generator().manual_seed(0)
    first, second = {}, {}
    for layer in LAYERS:
        down, up = torch.randn(8, 64, generator=source), torch.randn(64, 8, generator=source)
        first[layer] = LowRank(down, up, 2.0)
        moved = (side + apart * torch.randn(side.shape, generator=source) for side in (down, up))
        second[layer] = LowRank(*moved, 2.0)
    ends = space.Adapter("p", first), space.Adapter("q", second)
    middle = space.combine(ends, (0.6, 0.4), space="factors", label="m")
    with pytest.raises(InputError, match="lie on a line"):
        make_plane((*ends, middle), space="factors")
    third = space.combine((*ends, random_adapter_like(ends[0])), (0.5, 0.5, apart), space="factors", label="r")
    assert make_plane((*ends, third), space="factors").height > 0


def random_adapter_like(adapter: space.Adapter) -> space.Adapter:
    source = torch.Generator().manual_seed(9)
    updates = {
        layer: LowRank(*(torch.randn(side.shape, generator=source) for side in (one.down, one.up)), one.scale)
        for layer, one in adapter.updates.items()
    }
    return space.Adapter("x", updates)


def test_three_points_on_a_line_are_refused() -> None:
    middle = space.combine(CORNERS[:2], (0.5, 0.5), space="factors", label="middle")
    with pytest.raises(InputError, match="a, b, middle lie on a line"):
        make_plane((*CORNERS[:2], middle), space="factors")
    with pytest.raises(InputError, match="lie on a line"):
        make_plane((CORNERS[0], CORNERS[0], CORNERS[1]), space="delta")
    with pytest.raises(InputError, match="differ in layers, rank or scale"):
        make_plane((*CORNERS[:2], random_adapter("wide", 5, rank=6)), space="factors")
