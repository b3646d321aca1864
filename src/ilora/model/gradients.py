"""Gradients and figures of what the engine's passes compute, alone or together with other runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ilora.model.engine import Engine


class TooManyTogether(torch.OutOfMemoryError):
    """Memory ended in a pass of several runs, of which fewer will go together from now on."""


def backward(engine: Engine, compute: Callable[[], Tensor]) -> Tensor:
    """Compute a loss, and add its gradients to the parameters'; returns the loss, without its graph."""
    if engine.seat is not None:
        return engine.seat.backward(compute).detach()
    loss = compute()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def gradients(engine: Engine, compute: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
    """The gradients of a loss; leaves `.grad` as it is. Raises RuntimeError where it has none."""
    if engine.seat is not None:
        return engine.seat.gradients(compute, parameters)
    return torch.autograd.grad(compute(), parameters)


def read(engine: Engine, figures: Tensor) -> list[float]:
    """The numbers of a tensor: here Python waits for the device."""
    if engine.seat is not None:
        return engine.seat.read(figures)
    numbers: list[float] = figures.tolist()
    return numbers
