"""A trained bend: the gradient by finite differences, and a curve that lies lower than the straight line."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from ilora.connectivity import bend
from ilora.connectivity.bend import row_losses, train_bend
from ilora.connectivity.ground import SLOT, Ground
from ilora.connectivity.paths import Path, grid, make_path
from ilora.data.examples import collate
from ilora.model import adapters
from ilora.model.adapters import LowRank
from tests.connectivity.conftest import LAYERS, random_adapter

ENDS = (random_adapter("a", 1, size=0.4), random_adapter("b", 2, size=0.4))


def mean_loss(path: Path, ground: Ground) -> float:
    points = [path.at(t) for t in grid(9)]
    return statistics.fmean(statistics.fmean(scores["one"].losses) for scores in ground.judge(points))


@pytest.mark.parametrize("where", ["factors", "delta"])
@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_the_curve_falls_below_the_line(kind: str, where: str, ground: Ground) -> None:
    rows = ground.encoder.encode(ground.sets[0].task, "train")
    line = make_path(kind, ENDS, space=where)
    curve = train_bend(line, ground, rows, steps=40, learning_rate=0.02, batch_size=8, seed=0)
    assert mean_loss(curve, ground) < mean_loss(line, ground) - 0.1
    sizes = {"points": 6, "batch_size": 5}
    straight = make_path("linear", ENDS, space=where)
    before = bend.mean_loss(line, ground, rows, **sizes)
    assert before == pytest.approx(bend.mean_loss(straight, ground, rows, **sizes), abs=1e-5)
    assert bend.mean_loss(curve, ground, rows, **sizes) < before - 0.1
    assert curve.at(0.0) is ENDS[0]
    assert curve.at(1.0) is ENDS[1]
    assert not any(parameter.requires_grad for parameter in ground.engine.model.parameters())
    again = train_bend(line, ground, rows, steps=3, learning_rate=0.02, batch_size=8, seed=0)
    more = train_bend(line, ground, rows, steps=3, learning_rate=0.02, batch_size=8, seed=0)
    assert torch.equal(again.controls[1].updates[LAYERS[0]].up, more.controls[1].updates[LAYERS[0]].up)


@pytest.mark.parametrize("where", ["factors", "delta"])
def test_the_gradient_equals_finite_differences(where: str, ground: Ground) -> None:
    path = make_path("bezier", ENDS, space=where)
    rows, layer = ground.sets[0].examples[:4], LAYERS[1]
    leaves = {name: bend._leaf(one) for name, one in path.controls[1].updates.items()}
    bend_point = replace(path.controls[1], updates=leaves)
    for parameter in adapters.parameters(ground.engine.model, SLOT).values():
        parameter.requires_grad_(True)
    bend._backward(path.bent(bend_point), 0.3, ground, rows)
    ground.engine.model.requires_grad_(False)
    gradient = leaves[layer].up.grad
    assert gradient is not None
    row, column = divmod(int(gradient.abs().argmax()), gradient.shape[1])

    def value(step: float) -> float:
        moved = leaves[layer].up.detach().clone()
        moved[row, column] += step
        updates = leaves | {layer: LowRank(leaves[layer].down.detach(), moved, leaves[layer].scale)}
        ground.place(path.bent(replace(bend_point, updates=updates)).at(0.3))
        batch = collate(rows, pad=ground.engine.pad)
        with torch.no_grad():
            return float(row_losses(ground.engine.forward(batch).logits, batch).mean())

    assert (value(0.01) - value(-0.01)) / 0.02 == pytest.approx(float(gradient[row, column]), rel=0.02)
