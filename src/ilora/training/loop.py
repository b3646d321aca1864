"""One optimizer step, and a task's worth of them.

Gradients are summed over processes once per optimizer step, by one all-reduce of the flattened adapter gradients: every
loss is already divided by the whole step's totals, so the sum is the step's gradient. A wrapper that reduces inside
`backward` would do the same work per micro-batch and would not know parameters that a method adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ilora.data.examples import Example, Totals
from ilora.data.stored import shuffled
from ilora.methods.base import Method
from ilora.methods.view import Position, RunView
from ilora.model.engine import Engine
from ilora.model.fitting import fitted
from ilora.model.gradients import backward, read
from ilora.training.divergence import diverged
from ilora.training.optim import leave_if_not_finite, schedule


@dataclass(frozen=True)
class Plan:
    """The order of a task's rows: made from (seed, task, epoch) alone, so that a resume is a slice of it.

    most: steps, at most; None: those of all epochs.
    """

    seed: int
    task: str
    rows: int
    batch: int
    epochs: int
    most: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the rows; the last one may be smaller."""
        return math.ceil(self.rows / self.batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the task."""
        whole = self.steps_per_epoch * self.epochs
        return whole if self.most is None else min(whole, self.most)

    def epoch(self, step: int) -> int:
        """The pass over the rows that the step belongs to; steps count from 1, epochs from 0."""
        return (step - 1) // self.steps_per_epoch

    def batches(self, first: int = 1) -> Iterator[tuple[int, int, list[int]]]:
        """(step, epoch, row numbers) from step `first` on; steps count from 1, epochs from 0."""
        for epoch in range(self.epoch(first), self.epochs):
            order = shuffled(self.rows, key=f"{self.seed}/order/{self.task}/{epoch}")
            for number in range(self.steps_per_epoch):
                step = epoch * self.steps_per_epoch + number + 1
                if step > self.steps:
                    return
                if step >= first:
                    yield step, epoch, order[number * self.batch : (number + 1) * self.batch].tolist()


@dataclass(frozen=True)
class StepReport:
    """The figures of one step: loss and terms over all rows, the gradient's norm before clipping, tokens trained."""

    loss: float
    terms: dict[str, float]
    grad_norm: float
    learning_rate: float
    tokens: int

    def line(self, position: Position, seconds: float, *, time: float, peak: int) -> dict[str, Any]:
        """The step's line in metrics.jsonl. seconds: of this step. time: of all training so far. peak: bytes."""
        return {
            "time": round(time, 3),
            "task": position.task,
            "task_index": position.task_index,
            "step": position.step,
            "epoch": position.epoch,
            "loss": self.loss,
            "terms": self.terms,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "tokens_per_second": round(self.tokens / seconds, 1),
            "peak_memory_bytes": peak,
        }


def optimizer_step(method: Method[Any], optimizer: torch.optim.Optimizer, examples: list[Example]) -> StepReport:
    """Move the weights once.

    Raises DivergenceError, the weights untouched, where the loss or a gradient is not finite.
    """
    run, parameters = method.run, method.trainable
    position = run.position
    highest = method.config.learning_rate or run.training.learning_rate
    rate = highest * schedule(position.task_step, position.task_steps, run.training)
    rows = method.extend_batch(examples)
    loss = _gradients(method, optimizer, rows)
    terms = _sum_over_processes(parameters, loss, run)
    penalty = method.penalty()
    if penalty is not None:
        penalty.backward()  # type: ignore[no-untyped-call]
        terms["penalty"] = penalty.detach().float()
        loss += terms["penalty"]
    method.before_step()
    norm = nn.utils.clip_grad_norm_(parameters, run.training.max_grad_norm or math.inf)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = rate, run.training.weight_decay
    figures = torch.stack([loss, norm.float(), *terms.values()])
    value, length, *numbers = _move(run.engine, optimizer, figures, position, rate)
    method.after_step()
    return StepReport(value, dict(zip(terms, numbers, strict=True)), length, rate, sum(map(len, rows)))


def _gradients(method: Method[Any], optimizer: torch.optim.Optimizer, rows: list[Example]) -> Tensor:
    """Add up the gradients of this process's rows; returns its share of the loss.

    Out of memory, it begins again in smaller parts, which changes nothing else. Raises IloraError where not even one
    row fits.
    """

    def anew() -> Tensor:
        optimizer.zero_grad()
        method.run.terms.clear()
        return _passes(method, rows)

    return fitted(method.engine, method.engine.mine(rows), anew)


def _passes(method: Method[Any], rows: list[Example]) -> Tensor:
    """Forward and backward over each micro-batch."""
    engine, position, totals = method.engine, method.position, Totals.of(rows)
    loss = torch.zeros((), device=engine.device)
    for number, batch in enumerate(engine.micro_batches(rows)):
        _seed(engine.device, position.key("dropout", position.step, number, engine.accelerator.process_index))
        loss += backward(engine, partial(method.loss, batch, totals))
        engine.passes["backward"] += len(batch.examples)
    return loss


def _seed(device: torch.device, key: int) -> None:
    """`torch.manual_seed` for the CPU and this device alone: for others it notes the stack, 0.7 ms each time."""
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed_all(key)


@torch.no_grad()
def _sum_over_processes(parameters: Sequence[nn.Parameter], loss: Tensor, run: RunView) -> dict[str, Tensor]:
    """Add up gradients and loss (in place) and the logged terms over all processes; returns the terms."""
    for parameter in parameters:
        if parameter.grad is None:
            # Zero rather than none: whether the optimizer sees a parameter must not depend on the number of processes.
            parameter.grad = torch.zeros_like(parameter)
    names = set().union(*run.engine.gather([sorted(run.terms)]))  # one process may have had no replayed rows
    terms = {name: run.terms.get(name, torch.zeros_like(loss)).clone() for name in sorted(names)}
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    run.engine.all_reduce([*gradients, loss, *terms.values()])
    return terms


def _move(
    engine: Engine, optimizer: torch.optim.Optimizer, figures: Tensor, position: Position, rate: float
) -> list[float]:
    """Take the step where loss and norm, the first two figures, are finite; returns all figures.

    They are read in one piece, so a GPU is waited for once, and there after the step was launched: it looks itself.
    """
    launched = leave_if_not_finite(optimizer, figures[:2])
    if launched:
        optimizer.step()
    numbers = read(engine, figures)
    _require_finite("loss", numbers[0], position, rate)
    _require_finite("gradient", numbers[1], position, rate)
    if not launched:
        optimizer.step()
    return numbers


def _require_finite(what: str, value: float, position: Position, rate: float) -> None:
    if not math.isfinite(value):
        raise diverged(f"the {what} is not finite ({value})", position, rate)
