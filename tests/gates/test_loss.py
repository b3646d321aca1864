"""The statistics of a loss, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ilora.gates.loss import Loss, fewest_rows, paired_loss, rows_needed, shortfall
from tests.gates.conftest import right


def test_equal_rows_have_lost_nothing() -> None:
    loss = paired_loss(right(60, 100), right(60, 100), error=0.025)
    assert (loss.mean, loss.low, loss.high, loss.worse, loss.better) == (0.0, 0.0, 0.0, 0, 0)


@pytest.mark.parametrize(("worse", "better"), [(6, 0), (5, 0), (12, 3), (9, 3), (30, 16), (3, 12)])
def test_the_interval_leaves_0_out_where_mcnemars_exact_test_rejects(worse: int, better: int) -> None:
    before = [1.0] * worse + [0.0] * better + [1.0] * 50
    now = [0.0] * worse + [1.0] * better + [1.0] * 50
    loss = paired_loss(before, now, error=0.025)
    rejects = stats.binomtest(worse, worse + better, alternative="greater").pvalue <= 0.025
    assert loss.low is not None
    assert (loss.low > 0) == rejects
    assert loss.mean == pytest.approx((worse - better) / len(before))


def test_of_the_rows_that_changed_the_share_that_got_worse_has_the_exact_interval() -> None:
    loss = paired_loss(right(12, 100), [0.0] * 12 + [1.0] * 3 + [0.0] * 85, error=0.025)
    share = stats.binomtest(12, 15).proportion_ci(0.95, method="exact")
    assert (loss.low, loss.high) == pytest.approx(((2 * share.low - 1) * 0.15, (2 * share.high - 1) * 0.15))


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998, method 10
        ((100, 0, 0, 0), (-0.0370, 0.0370)),  # z² / (n + z²): nothing changed, and yet it is not 0 to 0
        ((0, 0, 0, 100), (-0.0370, 0.0370)),
        ((50, 0, 0, 50), (-0.0192, 0.0192)),  # Wilson's half widths 0.0962, 0.0962 and φ = (2500 - 50) / 2500
    ],
)
def test_newcombes_interval_is_shown(counts: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    both, worse, better, neither = counts
    before = [1.0] * (both + worse) + [0.0] * (better + neither)
    now = [1.0] * both + [0.0] * worse + [1.0] * better + [0.0] * neither
    loss = paired_loss(before, now, error=0.025)
    assert loss.interval == pytest.approx(interval, abs=5e-5)
    moved = loss.moved(5, times=100)
    assert moved.interval == pytest.approx([100 * end + 5 for end in interval], abs=5e-3)
    assert moved.mean == pytest.approx(worse - better + 5 if sum(counts) == 100 else 25)


def test_other_scores_get_students_interval() -> None:
    rng = np.random.default_rng(0)
    before, now = rng.uniform(0.4, 1, 40), rng.uniform(0.2, 0.9, 40)
    found = stats.ttest_rel(before, now).confidence_interval(0.95)
    loss = paired_loss(before.tolist(), now.tolist(), error=0.025)
    assert (loss.low, loss.high) == pytest.approx((found.low, found.high))


def test_too_few_rows_have_no_interval() -> None:
    assert fewest_rows(0.025) == 6
    assert paired_loss([0.9] * 5, [0.1] * 5, error=0.025).low is None
    assert paired_loss([0.9] * 6, [0.1] * 6, error=0.025).low == pytest.approx(0.8)
    exact = paired_loss([1.0] * 5, [0.0] * 5, error=0.025)
    assert exact.low is not None
    assert exact.low < 0


def test_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows before, 2 now"):
        paired_loss([1.0] * 3, [1.0] * 2, error=0.025)


def test_a_shortfall_is_exact_for_right_and_wrong() -> None:
    interval = stats.binomtest(55, 100).proportion_ci(0.95, method="exact")
    loss = shortfall(right(55, 100), 0.7, error=0.025)
    assert (loss.mean, loss.low, loss.high) == pytest.approx((0.15, 0.7 - interval.high, 0.7 - interval.low))


# -- by simulation -----------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, rows: int, changed: float, loss: float, times: int) -> NDArray[np.int64]:
    """(times, 2) rows that got worse and better, of so many, with this true loss."""
    shares = [(changed + loss) / 2, (changed - loss) / 2, 1 - changed]
    return rng.multinomial(rows, shares, size=times)[:, :2]


def of(worse: int, better: int, rows: int) -> tuple[list[float], list[float]]:
    """Scores before and now with so many rows that changed."""
    before = right(worse, worse) + [0.0] * better + right(rows - worse - better, rows - worse - better)
    return before, [0.0] * worse + right(rows - worse, rows - worse)


@pytest.mark.parametrize("error", [0.025, 0.05, 0.05 / 66])
@pytest.mark.parametrize(("limit", "changed"), [(0.03, 0.03), (0.03, 0.1), (0.1, 0.2), (0.05, 0.4), (0.01, 0.1)])
def test_the_rows_that_are_needed_see_the_limit_in_80_per_cent(limit: float, changed: float, error: float) -> None:
    noise = Loss(0.0, 0.0, 0.0, 100, 5, 5, changed, exact=True)
    rows = rows_needed(noise, limit, error=error)
    counts = draw(np.random.default_rng(1), rows, changed, limit, 20_000)
    seen = stats.binom.sf(counts[:, 0] - 1, counts.sum(axis=1), 0.5) <= error
    assert seen.mean() >= 0.79  # 0.8 less three standard errors of the simulation


@pytest.mark.parametrize("error", [0.025, 0.05 / 66])
def test_the_rows_that_are_needed_hold_for_other_scores(error: float) -> None:
    rng = np.random.default_rng(2)
    pilot = rng.normal(0, 0.15, 400).clip(-0.5, 0.5)
    rows = rows_needed(paired_loss((0.5 + pilot).tolist(), [0.5] * 400, error=error), 0.03, error=error)
    differences = rng.normal(0.03, 0.15, (4000, rows)).clip(-0.47, 0.53)
    means, errors = differences.mean(axis=1), differences.std(axis=1, ddof=1) / np.sqrt(rows)
    assert (means - stats.t.isf(error, rows - 1) * errors > 0).mean() >= 0.77  # the pilot's noise is an estimate, too


def test_more_noise_needs_more_rows_and_the_issue_example_holds() -> None:
    quiet, loud = (Loss(0.0, 0.0, 0.0, 100, 1, 1, square, exact=True) for square in (0.04, 0.4))
    assert 250 < rows_needed(quiet, 0.03, error=0.025) < 450 < rows_needed(loud, 0.03, error=0.025)


@pytest.mark.parametrize(("rows", "changed"), [(30, 0.3), (100, 0.1), (400, 0.2)])
def test_with_nothing_to_find_an_interval_leaves_0_out_no_more_often_than_it_says(rows: int, changed: float) -> None:
    counts = draw(np.random.default_rng(3), rows, changed, 0.0, 2000)
    found = {(worse, better) for worse, better in counts.tolist()}
    wrong = {pair for pair in found if (paired_loss(*of(*pair, rows), error=0.05).low or 0.0) > 0}
    assert np.mean([(worse, better) in wrong for worse, better in counts.tolist()]) <= 0.06
