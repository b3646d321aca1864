"""How sure a score is, and how a gain reads."""

from __future__ import annotations

import math

import pytest

from ilora.present.numbers import Z95, forgotten, standard_error_shown, uncertainty, wilson, with_uncertainty


@pytest.mark.parametrize("rows", [1, 10, 24, 1000])
def test_wilson_at_its_closed_forms(rows: int) -> None:
    squared = Z95**2
    assert wilson(1.0, rows) == (pytest.approx(rows / (rows + squared)), pytest.approx(1.0))
    assert wilson(0.0, rows) == (pytest.approx(0.0, abs=1e-12), pytest.approx(squared / (rows + squared)))
    low, high = wilson(0.5, rows)
    assert (low + high, high - low) == (pytest.approx(1.0), pytest.approx(Z95 / math.sqrt(rows + squared)))


def test_wilson_as_published() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, rows, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                   (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(right / rows, rows) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(
    ("score", "error", "rows", "shown"),
    [
        (1.0, 0.0, 10, "100.0 (72–100)"),
        (0.0, 0.0, 10, "0.0 (0–28)"),
        (1.0, 0.0, 500, "100.0 (99–100)"),
        (0.8, 0.1333, 10, "80.0 ± 13.3"),
        (1.0, 0.0, None, "100.0 ± 0.0"),  # of an older file, which does not say how many
        (1.0, None, 1, "100.0"),
        (None, None, None, "–"),
    ],
)
def test_no_score_is_certain_on_a_few_rows(
    score: float | None, error: float | None, rows: int | None, shown: str
) -> None:
    assert with_uncertainty(score, error, rows) == shown
    assert shown.endswith(uncertainty(score, error, rows))


def test_the_error_that_a_mean_takes_is_never_0() -> None:
    low, high = wilson(1.0, 10)
    assert standard_error_shown(1.0, 0.0, 10) == pytest.approx((high - low) / (2 * Z95))
    assert standard_error_shown(0.8, 0.13, 10) == 0.13
    assert standard_error_shown(None, None, None) is None


@pytest.mark.parametrize(
    ("drop", "shown"), [(0.4, "40.0"), (-0.045, "gained 4.5"), (0.0, "0.0"), (-0.0001, "0.0"), (None, "–")]
)
def test_a_gain_cannot_be_read_as_a_loss(drop: float | None, shown: str) -> None:
    assert forgotten(drop) == shown
