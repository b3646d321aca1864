"""A trained bend: the gradient by finite differences, and a curve that lies lower than the straight line."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from ilora.connectivity import bend
from ilora.connectivity.bend import row_losses, train_bend
from ilora.connectivity.landscape import SLOT, Landscape
from ilora.connectivity.paths import Curve, grid, make_path
from ilora.data.examples import Batch, collate
from ilora.model import adapters
from ilora.model.adapters import LowRank
from ilora.model.passes import Output
from tests.connectivity.conftest import LAYERS, random_adapter

ENDS = (random_adapter("a", 1, size=0.4), random_adapter("b", 2, size=0.4))


def mean_loss(path: Curve, landscape: Landscape) -> float:
    points = [path.at(t) for t in grid(5)]
    return statistics.fmean(statistics.fmean(scores["one"].losses) for scores in landscape.evaluate(points))


@pytest.mark.parametrize("where", ["factors", "delta"])
@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_the_curve_falls_below_the_line(kind: str, where: str, landscape: Landscape) -> None:
    rows = landscape.encoder.encode(landscape.sets[0].task, "train")[:12]
    line = make_path(kind, ENDS, space=where)
    curve = train_bend(line, landscape, rows, steps=25, learning_rate=0.02, batch_size=8, seed=0)
    assert mean_loss(curve, landscape) < mean_loss(line, landscape) - 0.1
    sizes = {"points": 4, "batch_size": 5}
    straight = make_path("linear", ENDS, space=where)
    before = bend.mean_loss(line, landscape, rows, **sizes)
    assert before == pytest.approx(bend.mean_loss(straight, landscape, rows, **sizes), abs=1e-5)
    assert bend.mean_loss(curve, landscape, rows, **sizes) < before - 0.1
    assert curve.at(0.0) is ENDS[0]
    assert curve.at(1.0) is ENDS[1]
    assert not any(parameter.requires_grad for parameter in landscape.engine.model.parameters())
    again = train_bend(line, landscape, rows, steps=2, learning_rate=0.02, batch_size=8, seed=0)
    more = train_bend(line, landscape, rows, steps=2, learning_rate=0.02, batch_size=8, seed=0)
    assert torch.equal(again.controls[1].updates[LAYERS[0]].up, more.controls[1].updates[LAYERS[0]].up)


def test_out_of_memory_the_bend_is_trained_in_parts(landscape: Landscape, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = landscape.encoder.encode(landscape.sets[0].task, "train")[:8]
    path, forward = make_path("bezier", ENDS, space="factors"), landscape.engine.forward
    settings = {"steps": 1, "learning_rate": 0.02, "batch_size": 8, "seed": 0}
    sizes = {"points": 2, "batch_size": 8}
    whole = train_bend(path, landscape, rows, **settings)
    expected = bend.mean_loss(path, landscape, rows, **sizes)

    def failing(batch: Batch) -> Output:
        if len(batch.examples) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    monkeypatch.setattr(landscape.engine, "forward", failing)
    parts = train_bend(path, landscape, rows, **settings)
    assert bend.mean_loss(path, landscape, rows, **sizes) == pytest.approx(expected, rel=1e-5)
    for layer, update in whole.controls[1].updates.items():
        torch.testing.assert_close(parts.controls[1].updates[layer].up, update.up, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("where", ["factors", "delta"])
def test_the_gradient_equals_finite_differences(where: str, landscape: Landscape) -> None:
    path = make_path("bezier", ENDS, space=where)
    rows, layer = landscape.sets[0].examples[:4], LAYERS[1]
    leaves = {name: bend.trainable_copy(one) for name, one in path.controls[1].updates.items()}
    bend_point = replace(path.controls[1], updates=leaves)
    for parameter in adapters.parameters(landscape.engine.model, SLOT).values():
        parameter.requires_grad_(True)
    bend.backward(path.bent(bend_point), 0.3, landscape, rows)
    landscape.engine.model.requires_grad_(False)
    gradient = leaves[layer].up.grad
    assert gradient is not None
    row, column = divmod(int(gradient.abs().argmax()), gradient.shape[1])

    def value(step: float) -> float:
        moved = leaves[layer].up.detach().clone()
        moved[row, column] += step
        updates = leaves | {layer: LowRank(leaves[layer].down.detach(), moved, leaves[layer].scale)}
        landscape.use(path.bent(replace(bend_point, updates=updates)).at(0.3))
        batch = collate(rows, pad=landscape.engine.pad, device=landscape.engine.device)
        with torch.no_grad():
            return float(row_losses(landscape.engine.forward(batch).logits, batch).mean())

    assert (value(0.01) - value(-0.01)) / 0.02 == pytest.approx(float(gradient[row, column]), rel=0.02)
