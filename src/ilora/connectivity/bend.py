"""Training the bend of a path, so that the loss is low all along it (Garipov et al. 2018, section 3.1).

The loss at a random point, E over t in U(0, 1) of L(φ(t)), is minimised over the bend alone; the ends stay. The
gradient at the point is that of an ordinary adapter, and autograd carries it from there to the bend.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ilora.connectivity.landscape import SLOT, Landscape
from ilora.connectivity.paths import Curve
from ilora.data.examples import IGNORED, Batch, Example, collate
from ilora.errors import IloraError
from ilora.kernels.losses import token_losses
from ilora.model import adapters
from ilora.model.adapters import LowRank
from ilora.model.fitting import in_batches


def train_bend(
    path: Curve,
    landscape: Landscape,
    examples: Sequence[Example],
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Curve:
    """The path, with its bend trained on these rows by Adam. A step's rows and t depend on (seed, step) only.

    Raises IloraError where the loss is not finite.
    """
    start = path.controls[1]
    leaves = {layer: trainable_copy(update) for layer, update in start.updates.items()}
    path = path.bent(replace(start, updates=leaves))
    tensors = [side for update in leaves.values() for side in (update.down, update.up)]
    optimizer = torch.optim.Adam(tensors, lr=learning_rate)
    slot = adapters.parameters(landscape.engine.model, SLOT).values()
    for parameter in slot:
        parameter.requires_grad_(True)
    try:
        for step in range(steps):
            source = random.Random(f"{seed}/bend/{step}")
            rows = source.sample(list(examples), min(batch_size, len(examples)))
            optimizer.zero_grad()
            backward(path, source.random(), landscape, rows)
            optimizer.step()
            advance()
    finally:
        for parameter in slot:
            parameter.requires_grad_(False)
    trained = {name: LowRank(one.down.detach(), one.up.detach(), one.scale) for name, one in leaves.items()}
    return path.bent(replace(start, updates=trained))


@torch.no_grad()
def mean_loss(path: Curve, landscape: Landscape, examples: Sequence[Example], *, points: int, batch_size: int) -> float:
    """The mean loss over the path and the rows, E_t L(φ(t)), from the midpoints of `points` equal parts; in nats."""
    engine, found = landscape.engine, list[float]()

    def read(rows: Sequence[Example]) -> list[float]:
        batch = collate(rows, pad=engine.pad, device=engine.device)
        losses: list[float] = row_losses(engine.forward(batch).logits, batch).tolist()
        return losses

    for number in range(points):
        landscape.use(path.at((number + 0.5) / points))
        for _, losses in in_batches(engine, engine.share(examples), read, size=batch_size, what="a path"):
            found += losses
    return statistics.fmean(engine.gather(found))


def trainable_copy(update: LowRank) -> LowRank:
    """The same update, with factors of its own that gradients can be taken of."""
    down, up = (side.detach().clone().requires_grad_(True) for side in (update.down, update.up))
    return LowRank(down, up, update.scale)


def backward(path: Curve, t: float, landscape: Landscape, rows: Sequence[Example]) -> None:
    """Add dL(φ(t))/d(bend), of the mean loss over the rows, to the gradients of the bend's factors."""
    point = path.at(t)
    landscape.use(point)
    engine, slot = landscape.engine, list(adapters.parameters(landscape.engine.model, SLOT).values())
    total = torch.zeros((), device=engine.device)

    def read(part: Sequence[Example]) -> tuple[Tensor, ...]:
        batch = collate(part, pad=engine.pad, device=engine.device)
        loss = row_losses(engine.forward(batch).logits, batch).sum() / len(rows)
        return loss.detach(), *torch.autograd.grad(loss, slot)

    sums = [torch.zeros_like(parameter) for parameter in slot]
    for _, (loss, *found) in in_batches(engine, engine.share(rows), read, size=len(rows), what="the bend of a path"):
        total += loss
        for one, gradient in zip(sums, found, strict=True):
            one += gradient
    engine.all_reduce([total, *sums])
    if not torch.isfinite(total):  # only now, in every process
        raise IloraError(f"the loss is not finite ({float(total)}) at t = {t:.3f} while the bend is trained")
    for parameter, one in zip(slot, sums, strict=True):
        parameter.grad = one
    gradients = adapters.placed_gradients(engine.model, SLOT)
    pairs = [
        (side, gradient.to(side.device))
        for layer, update in point.updates.items()
        for side, gradient in zip((update.down, update.up), gradients[layer], strict=True)
        if side.requires_grad
    ]
    if pairs:
        torch.autograd.backward([side for side, _ in pairs], [gradient for _, gradient in pairs])


def row_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Each row's mean cross-entropy over its answer, (rows,), from the logits of the batch's trailing columns."""
    return token_losses(logits[:, :-1], batch.targets).sum(1) / (batch.targets != IGNORED).sum(1)
