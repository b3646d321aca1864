"""When a task ends early, by validation losses made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ilora.stopping import StopWhen

FALLING = [3.0, 2.0, 1.5, 1.4]


def end(losses: Sequence[float], **settings: float) -> int | None:
    """After which measurement the task ends; None: after none."""
    rule = StopWhen(**settings)
    return next((count for count in range(1, len(losses) + 1) if rule.reached(losses[:count])), None)


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "expected"),
    [
        (FALLING, 1, 0.0, None),
        (FALLING, 1, 0.2, 4),
        (FALLING, 1, 0.5, 3),  # as much as min_delta is not more than it
        (FALLING, 2, 0.5, None),  # 1.4 is a new lowest beside 2.0
        ([3.0, 3.0, 3.0], 2, 0.0, 3),
        ([3.0, 3.1, 2.9, 3.0, 3.0, 2.8], 2, 0.0, 5),
        ([3.0, 2.9, 2.8, 2.7, 2.6], 3, 0.25, None),  # slowly, but down: 2.7 is a new lowest beside 3.0
        ([3.0, 2.9, 2.8, 2.7, 2.6], 2, 0.25, 3),
        ([], 1, 0.0, None),
    ],
)
def test_by_hand(losses: list[float], patience: int, min_delta: float, expected: int | None) -> None:
    assert end(losses, patience=patience, min_delta=min_delta) == expected


@pytest.mark.parametrize("patience", [1, 3])
def test_the_earliest_end(patience: int) -> None:
    rule = StopWhen(patience=patience, every=5)
    assert rule.earliest == 5 * (end([1.0] * 9, patience=patience) or 0)


def test_the_best_is_the_last_new_lowest() -> None:
    assert StopWhen(min_delta=0.2).best(FALLING) == 2
    assert StopWhen().best(FALLING) == 3
    assert StopWhen().best([]) is None
