"""A run's weights by name: what each name means, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ilora import promote
from ilora.answering.weights import RunWeights
from ilora.connectivity import space
from ilora.connectivity.space import Adapter
from ilora.diffs.sides import both_sides
from ilora.errors import InputError


def same(one: Adapter, other: Adapter) -> bool:
    return one.updates.keys() == other.updates.keys() and all(
        torch.equal(update.down, other.updates[layer].down) and torch.equal(update.up, other.updates[layer].up)
        for layer, update in one.updates.items()
    )


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        (None, "02-two/slow"),
        ("slow", "02-two/slow"),
        ("fast", "02-two/fast"),
        ("phase:1", "01-one/slow"),
        ("phase:01", "01-one/slow"),
        ("phase:01-one/fast", "01-one/fast"),
        ("t:0", "01-one/slow"),
        ("t:1", "02-two/slow"),
    ],
)
def test_names(name: str | None, folder: str, finished: Path) -> None:
    assert same(RunWeights(finished).named(name), space.read(finished / "adapters" / folder))


def test_a_point_lies_between_the_ends(finished: Path) -> None:
    weights = RunWeights(finished)
    point, ends = weights.named("t:0.4"), [weights.named("t:0"), weights.named("t:1")]
    assert same(point, space.combine(ends, (0.6, 0.4), space="factors"))


@pytest.mark.parametrize("name", ["phase:3", "phase:0", "phase:1/medium", "t:1.1", "t:a", "medium", "base:1", "", ":"])
def test_other_names_are_refused(name: str, finished: Path) -> None:
    with pytest.raises(InputError):
        RunWeights(finished).named(name)


def test_the_names_that_there_are(finished: Path) -> None:
    with pytest.raises(InputError, match=r"base, slow, fast, phase:1 to phase:2"):
        RunWeights(finished).named("medium")


def test_releases(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    with pytest.raises(InputError, match="no release 1"):
        RunWeights(run).named("release:1")
    promote(run)
    weights = RunWeights(run)
    assert same(weights.named(None), space.read(finished / "adapters" / "02-two" / "slow"))
    assert weights.named(None).label == weights.named("release:1").label == "release 1 (02-two)"
    for name in ("release:2", "release:", "release:a"):
        with pytest.raises(InputError, match="release"):
            weights.named(name)
    first, second = both_sides(run, ["1", "release:1"])
    assert (first.label, second.label) == ("01-one", "02-two")
    assert [side.label for side in both_sides(run, [])] == ["01-one", "02-two"]  # the release is the last phase


def test_a_method_with_several_adapters_is_refused_by_name(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "trajectory")))
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"method": "router", "adapter": None}))
    with pytest.raises(InputError, match="method router"):
        RunWeights(run)
    (run / "results.json").write_text(json.dumps(results))
    shutil.rmtree(run / "adapters")
    with pytest.raises(InputError, match="no adapter in adapters/"):
        RunWeights(run)
    with pytest.raises(InputError, match="not a run folder"):
        RunWeights(tmp_path)
