"""A run that has left all measure stops, although every number in it is finite."""

from __future__ import annotations

import math

import pytest
import torch

from ilora.methods.view import Position
from ilora.training.divergence import LARGEST, PATIENCE, DivergenceError, DivergenceWatch

HIGH = 2 * math.log(300) + 0.1
SMALL = [torch.ones(3), -torch.ones(2, 2)]


def at(step: int, *, of: int = 100) -> Position:
    return Position(task="one", task_step=step, task_steps=of, step=step)


def test_a_loss_that_stays_above_that_of_guessing_twice_over() -> None:
    watch = DivergenceWatch(300)
    for step in range(1, PATIENCE):
        watch.check(HIGH, SMALL, at(step), 0.5)
        assert watch.doubtful
    with pytest.raises(
        DivergenceError, match=f"for {PATIENCE} steps at task 'one', step {PATIENCE} of 100 .* rate 0.5"
    ):
        watch.check(HIGH, SMALL, at(PATIENCE), 0.5)


def test_a_loss_that_comes_back_is_forgiven() -> None:
    watch = DivergenceWatch(300)
    for step in range(1, 5 * PATIENCE):
        watch.check(HIGH if step % PATIENCE else 1.0, SMALL, at(step), 0.5)
    watch.check(1.0, SMALL, at(99), 0.5)
    assert not watch.doubtful


def test_a_short_task_is_lost_when_all_of_it_is() -> None:
    watch = DivergenceWatch(300)
    watch.check(HIGH, SMALL, at(1, of=2), 0.5)
    with pytest.raises(DivergenceError, match="for 2 steps"):
        watch.check(HIGH, SMALL, at(2, of=2), 0.5)


@pytest.mark.parametrize("value", [LARGEST * 1.01, -LARGEST * 1.01, math.inf, math.nan])
def test_a_weight_beyond_all_measure(value: float) -> None:
    watch = DivergenceWatch(300)
    watch.check(1.0, [torch.tensor([0.0, LARGEST / 2])], at(1), 0.5)
    with pytest.raises(DivergenceError, match="a weight has grown to"):
        watch.check(1.0, [torch.zeros(2), torch.tensor([0.0, value])], at(1), 0.5)
