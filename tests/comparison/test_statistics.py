"""The intervals: their coverage in simulations, and their parts against closed forms and scipy."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from ilora.comparison.statistics import difference, holm, letters, mean_interval

Noise = tuple[float, float, float]  # standard deviations: between pairs, between items, of an answer of a pair
PAIRS_VARY, ITEMS_VARY, ONLY_NOISE, ALL_VARY = (1, 0.5, 0.5), (0.005, 1, 0.3), (0, 0, 1), (0.07, 0.7, 0.7)
SIZES = [40, 60]


def drawn(source: np.random.Generator, strata: list[int], noise: Noise) -> np.ndarray:
    """(pairs, items) of true mean 0: every task's items are the same ones in each pair; strata are far apart."""
    pairs, items = len(strata), sum(SIZES)
    far = 2 * (np.array(strata) - np.mean(strata))[:, None]
    of_pairs = (far + noise[0] * source.standard_normal((pairs, 1))) / len(SIZES)
    return of_pairs + noise[1] * source.standard_normal(items) + noise[2] * source.standard_normal((pairs, items))


@pytest.mark.parametrize(
    ("strata", "noise"),
    [
        *product([[0] * 3, [0, 0, 1, 1]], [PAIRS_VARY, ITEMS_VARY, ONLY_NOISE, ALL_VARY]),
        *product([[0] * 6, [0] * 12, [0, 0, 0, 1, 1, 1]], [PAIRS_VARY, ALL_VARY]),
    ],
)
def test_equal_methods_are_seldom_told_apart(strata: list[int], noise: Noise) -> None:
    """The promise is 5 %; 800 repeats of it end above 7.4 % in one of a thousand tests."""
    source, repeats = np.random.default_rng([len(strata), strata[-1]]), 800
    found = [difference(drawn(source, strata, noise), SIZES, strata) for _ in range(repeats)]
    assert sum(one.distinguishable for one in found) / repeats <= 0.074
    assert sum(one.low <= 0 <= one.high for one in found) == sum(not one.distinguishable for one in found)


@pytest.mark.parametrize(("noise", "least"), [(PAIRS_VARY, 0.035), (ITEMS_VARY, 0.035), (ALL_VARY, 0.02)])
def test_the_interval_of_many_pairs_is_hardly_wider_than_it_must_be(noise: Noise, least: float) -> None:
    source = np.random.default_rng(20)
    found = [difference(drawn(source, [0] * 20, noise), SIZES) for _ in range(1200)]
    assert sum(one.distinguishable for one in found) / len(found) >= least


@pytest.mark.parametrize("pairs", [1, 2])
def test_fewer_than_three_pairs_get_no_verdict(pairs: int) -> None:
    contrast = np.linspace(0.9, 1.1, 40)[None] * np.array([[1.0], [1.1]])[:pairs]
    found = difference(contrast, [40])
    assert found.p is None
    assert not found.distinguishable
    assert found.low < found.mean < found.high


def test_pairs_that_agree_by_chance_vary_by_the_noise_of_their_answers() -> None:
    """Equal means, whatever the answers say: as wide as if the pairs varied by that noise, on as few pairs."""
    noise = np.random.default_rng(2).standard_normal((3, 40))
    noise -= noise.mean(axis=0)  # no item effects
    agreeing = noise - noise.mean(axis=1, keepdims=True)
    found = difference(agreeing, [40])
    single = float((agreeing**2).sum()) / (2 * 39)  # of three pairs and forty items, two-way
    expected = float(stats.t.isf(0.025, 2)) * np.sqrt(single / 40 / 3)
    assert found.high == pytest.approx(expected)


def test_strata_of_one_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="two pairs or more"):
        difference(np.zeros((3, 5)), [5], [0, 0, 1])


def test_a_difference_between_strata_does_not_widen_the_interval() -> None:
    values = np.array([1.0, 1.2, 1.4, 5.0, 5.2, 5.4])[:, None] * np.ones((6, 5))
    apart, together = difference(values, [5], [7, 7, 7, 2, 2, 2]), difference(values, [5])
    assert apart.mean == together.mean == pytest.approx(3.2)
    # Two means of three, each of variance 0.04 / 3 and known with two degrees of freedom: t(4) on √(0.04 / 6).
    half = float(stats.t.isf(0.025, 4)) * np.sqrt(0.04 / 6)
    assert (apart.low, apart.high) == (pytest.approx(3.2 - half), pytest.approx(3.2 + half))
    assert together.high - together.low > 10 * half
    shuffled = [3, 0, 4, 1, 5, 2]
    other = difference(values[shuffled], [5], [[7, 7, 7, 2, 2, 2][i] for i in shuffled])
    assert (other.low, other.high) == (pytest.approx(apart.low), pytest.approx(apart.high))


def test_several_tasks_count_alike_whatever_their_size() -> None:
    contrast = np.concatenate([np.full((4, 10), 0.5), np.full((4, 90), 0.1)], axis=1)
    found = difference(contrast, [10, 90])
    assert found.mean == pytest.approx(0.6)  # the values already hold 1 / tasks
    assert (found.low, found.high) == (pytest.approx(0.6), pytest.approx(0.6))


def test_mean_interval_is_students() -> None:
    values = [0.61, 0.55, 0.72, 0.66]
    found = mean_interval(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert mean_interval([0.4]) == (0.4, None, None, 1)


def test_one_pair_is_the_paired_t_interval_over_items() -> None:
    source = np.random.default_rng(5)
    ours, theirs = (source.random(400) < chance for chance in (0.7, 0.55))
    items = ours.astype(float) - theirs
    found = difference(items[None], [400])
    expected = stats.ttest_1samp(items, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.pairs == 1


def test_without_noise_of_items_it_is_students_interval_and_test() -> None:
    values = np.random.default_rng(3).standard_normal(25) + 0.5
    found = difference(np.repeat(values[:, None], 7, axis=1), [7])
    low, high = stats.t.interval(0.95, 24, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_the_width_is_that_of_the_variance_components() -> None:
    """Crossed random effects: the variance of the mean is pairs² / P + items² / n + noise² / (n P)."""
    source, pairs, n = np.random.default_rng(4), 30, 200
    widths = []
    for _ in range(60):
        of_pairs, of_items = 0.2 * source.standard_normal((pairs, 1)), 0.6 * source.standard_normal(n)
        found = difference(of_pairs + of_items + 0.9 * source.standard_normal((pairs, n)), [n])
        widths.append(found.high - found.low)
    error = np.sqrt(0.2**2 / pairs + 0.6**2 / n + 0.9**2 / (n * pairs))
    assert np.mean(widths) == pytest.approx(2 * 1.99 * error, rel=0.05)


def test_items_of_tasks_add_up_each_over_its_number() -> None:
    source, sizes, spreads = np.random.default_rng(9), [100, 900], [1.0, 2.0]
    tasks = [spread * source.standard_normal(size) for spread, size in zip(spreads, sizes, strict=True)]
    found = difference(np.concatenate(tasks)[None], sizes)
    error = np.sqrt(sum(task.var(ddof=1) / len(task) for task in tasks))
    assert found.high - found.low == pytest.approx(2 * 1.97 * error, rel=0.01)


def test_p_agrees_with_the_interval() -> None:
    source = np.random.default_rng(6)
    contrasts = [source.normal(shift, 1, (9, 1)) + source.standard_normal(5) for shift in np.linspace(-2, 2, 60)]
    found = [difference(contrast, [5]) for contrast in contrasts]
    assert all(one.distinguishable == (one.low > 0 or one.high < 0) for one in found)
    assert {one.distinguishable for one in found} == {True, False}


def test_what_is_far_out_has_a_small_p() -> None:
    contrast = 1 + 1e-3 * np.random.default_rng(1).standard_normal((12, 50))
    p = difference(contrast, [50]).p
    assert p is not None
    assert 0 < p < 1e-11
    assert difference(np.ones((3, 6)), [6]).p == pytest.approx(0, abs=1e-11)  # no variance at all


def test_equal_methods_are_not_distinguishable() -> None:
    found = difference(np.zeros((3, 10)), [10])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert not found.distinguishable


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([]) == []


def test_letters_by_hand() -> None:
    assert letters(3, set()) == ["a", "a", "a"]
    assert letters(3, {(0, 2)}) == ["a", "ab", "b"]
    assert letters(3, {(0, 1), (0, 2), (1, 2)}) == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(12))
def test_rows_share_a_letter_exactly_where_they_do_not_differ(seed: int) -> None:
    source = np.random.default_rng(seed)
    count = int(source.integers(2, 13))
    differ = {pair for pair in combinations(range(count), 2) if source.random() < 0.5}
    shown = [set(text) for text in letters(count, differ)]
    for one, other in combinations(range(count), 2):
        assert bool(shown[one] & shown[other]) == ((one, other) not in differ)
