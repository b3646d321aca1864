"""The pictures of a comparison: which there are, and what they draw."""

from __future__ import annotations

from typing import Any

import pytest

from ilora.commands.compare import compare
from ilora.comparison.pictures import pictures
from tests.comparison.fake_runs import Method, write_sweep

pytestmark = pytest.mark.xdist_group("compare")


@pytest.fixture(scope="module")
def found(undrawn: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Scores close to 100 that vary between two runs: Student's intervals go far beyond it."""
    methods = {"sequential": Method(loss=0.3), "er": Method(level=0.93, loss=0.0, seed_spread=0.05)}
    place = write_sweep(tmp_path_factory.mktemp("pictures") / "s", methods, seeds=(0,))
    return compare([place])[0]


def test_there_is_a_picture_for_everything(found: dict[str, Any]) -> None:
    assert list(pictures(found)) == ["measures", "differences", "learning", "keeping", "stability", "cost"]


@pytest.mark.parametrize("name", ["learning", "measures"])
def test_intervals_are_drawn_within_what_a_score_can_be(found: dict[str, Any], name: str) -> None:
    row = next(row for row in found["rows"] if row["name"] == "er")
    assert max(stage["high"] for stage in row["learning"]) > 1
    assert row["measures"]["OP"]["high"] > 1
    axes = pictures(found)[name].draw().axes[0]
    drawn = [path.vertices for collection in axes.collections for path in collection.get_paths()]
    across = 1 if name == "learning" else 0
    assert max(vertices[:, across].max() for vertices in drawn) == 100
