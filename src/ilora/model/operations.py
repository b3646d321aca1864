"""How much arithmetic a step is, and how fast a device does it: the formula of a run and of `--dry-run`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ilora.model.sizes import Sizes

_MEASURED, _FEW = 0.05, 16  # seconds of products, and how many there are at most


def operations(sizes: Sizes, *, trained: int, tokens: float, answer: float, checkpointing: bool) -> float:
    """Floating-point operations of a token: products with frozen weights forward and back to their inputs, attention
    within the row (half of it, as it is causal), the adapter with its gradients, the head where there is an answer.

    trained: parameters of the adapter. tokens: of a row. answer: those of them that are an answer's.
    checkpointing: activations are computed again in the backward pass.
    """
    matrices = [layer.matrices for layer in sizes.layers]
    above = sum(matrices[sizes.first :])
    again = 1 if checkpointing else 0
    attention = 2 * tokens * sizes.queries
    layers, upper = len(matrices), len(matrices) - sizes.first
    head = 4 * sizes.hidden * sizes.vocabulary * answer / max(tokens, 1)
    return (
        2 * sum(matrices) + 2 * above * (1 + again)
        + attention * (layers + upper * (2 + again)) + 2 * trained * (3 + again) + head
    )  # fmt: skip


def product_rate(
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows: int,
    inner: int,
    outer: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Floating-point operations in a second of products (rows, inner) x (inner, outer).

    On average over a few: the fastest would promise what a busy machine does not keep.
    """
    x, weight = (torch.linspace(-1, 1, inner, dtype=dtype, device=device).repeat(count, 1) for count in (rows, outer))
    moments: list[float] = []  # at which a product was done; the first one is not counted, it also prepares
    while len(moments) < 2 or (len(moments) <= _FEW and moments[-1] - moments[0] < _MEASURED):
        x @ weight.T
        _wait(device)
        moments.append(clock())
    return 2.0 * rows * inner * outer * (len(moments) - 1) / max(moments[-1] - moments[0], 1e-9)


def _wait(device: torch.device) -> None:
    """A GPU returns before it has computed."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
