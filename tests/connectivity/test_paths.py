"""Paths: their ends, their shape, and what a profile says, against cases computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ilora.connectivity import paths, space
from ilora.connectivity.paths import KINDS, make_path, profile
from ilora.connectivity.space import SPACES, Adapter
from ilora.errors import InputError
from ilora.model.adapters import LowRank
from tests.connectivity.conftest import LAYERS, random_adapter, update

ENDS = (random_adapter("a", 1), random_adapter("b", 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", SPACES)
def test_the_ends_are_the_adapters_themselves(kind: str, where: str) -> None:
    path = make_path(kind, ENDS, space=where)
    assert path.at(0.0) is ENDS[0]
    assert path.at(1.0) is ENDS[1]


@pytest.mark.parametrize("kind", paths.BENT)
@pytest.mark.parametrize("where", SPACES)
def test_with_its_bend_on_the_line_a_bent_path_is_the_line(kind: str, where: str) -> None:
    bent, line = make_path(kind, ENDS, space=where), make_path("linear", ENDS, space=where)
    for t in (0.2, 0.5, 0.9):
        for layer in LAYERS:
            assert torch.allclose(update(bent.at(t), layer), update(line.at(t), layer), atol=1e-6)


@pytest.mark.parametrize("kind", paths.BENT)
def test_the_bend_pulls_the_path(kind: str) -> None:
    bend = random_adapter("bend", 3)
    path = make_path(kind, ENDS, space="factors").bent(bend)
    assert path.at(0.0) is ENDS[0]
    assert path.at(1.0) is ENDS[1]
    middle, layer = path.at(0.5).updates[LAYERS[0]].down, LAYERS[0]
    ends = ENDS[0].updates[layer].down + ENDS[1].updates[layer].down
    expected = bend.updates[layer].down if kind == "chain" else 0.25 * ends + 0.5 * bend.updates[layer].down
    assert torch.allclose(middle, expected)


def test_the_arc_keeps_the_length_of_ends_of_equal_length() -> None:
    def point(x: float, y: float) -> Adapter:
        return Adapter("p", {"layer": LowRank(torch.tensor([[x, y]]), torch.zeros(1, 1), 1.0)})

    path = make_path("spherical", (point(1, 0), point(0, 1)), space="factors")
    for t in (0.25, 0.5, 0.8):
        expected = torch.tensor([[math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)]])
        assert torch.allclose(path.at(t).updates["layer"].down, expected)
    with pytest.raises(InputError, match="opposite directions"):
        make_path("spherical", (point(1, 0), point(-1, 0)), space="factors")
    with pytest.raises(InputError, match="changes nothing"):
        make_path("spherical", (point(1, 0), point(0, 0)), space="factors")
    same = make_path("spherical", (point(1, 0), point(2, 0)), space="factors")
    assert torch.allclose(same.at(0.5).updates["layer"].down, torch.tensor([[1.5, 0.0]]))


def test_barrier_of_a_landscape_of_two_parameters() -> None:
    """f(x, y) = (x² − 1)² + y² has its minima at (−1, 0) and (1, 0).

    Straight: f = (u² − 1)² with u = 2t − 1, barrier 1 at the middle, mean 8/15. Over a bend at (0, 1) on a chain the
    height is y² more, and at the middle 1 + 1 = 2.
    """

    def value(adapter: Adapter) -> float:
        x, y = adapter.updates["layer"].down[0].tolist()
        return (x * x - 1) ** 2 + y * y

    def point(x: float, y: float) -> Adapter:
        return Adapter("p", {"layer": LowRank(torch.tensor([[x, y]]), torch.zeros(1, 1), 1.0)})

    ends, ts = (point(-1, 0), point(1, 0)), paths.grid(1001)
    straight = make_path("linear", ends, space="factors")
    found = profile(ts, [value(straight.at(t)) for t in ts], higher_is_better=False, epsilon=0.19)
    assert found.barrier == pytest.approx(1.0)
    assert found.barrier_t == 0.5
    assert (found.best, found.best_t) == (0.0, 0.0)
    assert found.area == pytest.approx(8 / 15, abs=1e-5)
    # (u² − 1)² = 0.19  <=>  u = −√(1 − √0.19)
    assert found.region == (0.0, pytest.approx((1 - math.sqrt(1 - math.sqrt(0.19))) / 2, abs=1e-5))
    bent = make_path("chain", ends, space="factors").bent(point(0, 1))
    assert profile(ts, [value(bent.at(t)) for t in ts], higher_is_better=False, epsilon=0).barrier == pytest.approx(2.0)


def test_profile_by_hand() -> None:
    ts = [0.0, 0.25, 0.5, 0.75, 1.0]
    found = profile(ts, [1.0, 3.0, 0.0, 1.0, 2.0], higher_is_better=False, epsilon=0.5)
    assert (found.barrier, found.barrier_t) == (3.0 - 1.25, 0.25)
    assert (found.best, found.best_t) == (0.0, 0.5)
    assert found.region == pytest.approx((0.5 - 0.25 * 0.5 / 3, 0.5 + 0.25 * 0.5))
    assert found.width == pytest.approx(0.25 / 6 + 0.125)
    assert found.area == pytest.approx(0.25 * (2 + 1.5 + 0.5 + 1.5))
    score = profile(ts, [0.5, 0.2, 0.9, 0.9, 0.7], higher_is_better=True, epsilon=0.1)
    assert (score.best, score.best_t) == (0.9, 0.5)
    assert (score.barrier, score.barrier_t) == (pytest.approx(0.55 - 0.2), 0.25)
    assert score.region == pytest.approx((0.5 - 0.25 * 0.1 / 0.7, 0.75 + 0.25 * 0.1 / 0.2))


def test_a_straight_profile_has_no_barrier() -> None:
    ts = paths.grid(11)
    found = profile(ts, [0.1 + 0.3 * t for t in ts], higher_is_better=True, epsilon=1.0)
    assert found.barrier == pytest.approx(0.0, abs=1e-12)
    assert found.barrier >= 0
    assert found.region == (0.0, 1.0)


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan")])
def test_no_point_outside_the_path(t: float) -> None:
    with pytest.raises(InputError, match=r"from 0 .* to 1"):
        make_path("linear", ENDS, space="factors").at(t)


def test_bad_paths_are_refused() -> None:
    with pytest.raises(InputError, match="unknown path 'straight'; there are linear, spherical"):
        make_path("straight", ENDS, space="factors")
    with pytest.raises(InputError, match="at least 2"):
        paths.grid(1)
    with pytest.raises(ValueError, match="with 0 and 1"):
        profile([0.1, 1.0], [1.0, 1.0], higher_is_better=False, epsilon=0.0)
    assert space.SPACES == ("factors", "delta")
