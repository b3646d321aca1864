"""AdamW, and the learning rate as a pure function of the step (so that a resume needs no scheduler state)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ilora.config import Config
from ilora.settings import TrainingConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), decoupled weight decay; on a GPU in a few launches."""
    moved = list(parameters)
    fused = all(parameter.device.type == "cuda" for parameter in moved)
    return torch.optim.AdamW(moved, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def leave_if_not_finite(optimizer: torch.optim.Optimizer, figures: Tensor) -> bool:
    """Have the next step leave the weights alone where a figure is not finite, and not wait for the figures itself.

    Returns False where it cannot: only torch's fused optimizers look at `found_inf`, as they do for a GradScaler.
    """
    if not optimizer.defaults.get("fused"):
        return False
    optimizer.found_inf = (~figures.isfinite().all()).float()  # type: ignore[attr-defined]
    return True


def made_anew(config: Config, phase: int, *, fresh_start: bool) -> bool:
    """Whether phase `phase` begins with a new optimizer; one after the last has the last one's settings.

    fresh_start: of the method.
    """
    return fresh_start or config.at(phase).training.reset_optimizer


def schedule(step: int, steps: int, config: TrainingConfig) -> float:
    """The learning rate at a task's `step` (1 to `steps`), as a share of the highest one: warm-up, then the schedule.

    The warm-up is linear and does not begin at 0: with few steps in a task, a step at rate 0 would be wasted.
    """
    warmup = round(config.warmup_ratio * steps)
    if step <= warmup:
        return step / warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - 1 - warmup) / (steps - warmup)
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
