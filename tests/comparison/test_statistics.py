from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from ilora.comparison.statistics import differences, holm, letters, mean_interval

Noise = tuple[float, float, float]  # standard deviations: between pairs, between items, of an item in a pair
PAIRS_VARY, ITEMS_VARY, ONLY_NOISE, ALL_VARY = (1, 0.5, 0.5), (0.005, 1, 0.3), (0, 0, 1), (0.07, 0.7, 0.7)


def drawn(source: np.random.Generator, pairs: int, sizes: list[int], noise: Noise) -> np.ndarray:
    """(pairs, items) of true mean 0: every task's items are the same ones in each pair."""
    items = sum(sizes)
    of_pairs = noise[0] * source.standard_normal((pairs, 1)) / len(sizes)
    return of_pairs + noise[1] * source.standard_normal(items) + noise[2] * source.standard_normal((pairs, items))


def coverage(pairs: int, noise: Noise, sizes: list[int], *, repeats: int = 1500) -> float:
    source = np.random.default_rng([pairs, *sizes])
    found = differences([drawn(source, pairs, sizes, noise) for _ in range(repeats)], sizes)
    return sum(not difference.distinguishable for difference in found) / repeats


@pytest.mark.parametrize(
    ("noise", "most"), [(PAIRS_VARY, 0.97), (ITEMS_VARY, 0.97), (ONLY_NOISE, 0.985), (ALL_VARY, 0.97)]
)
@pytest.mark.parametrize("pairs", [8, 20])
def test_the_interval_covers_the_true_difference(noise: Noise, most: float, pairs: int) -> None:
    # Pairs count as varying by an item's noise at least: where that is all there is, it covers a little more.
    assert 0.93 <= coverage(pairs, noise, [40, 60]) <= most


@pytest.mark.parametrize(
    ("noise", "least"), [(PAIRS_VARY, 0.90), (ITEMS_VARY, 0.93), (ONLY_NOISE, 0.93), (ALL_VARY, 0.93)]
)
def test_with_three_pairs_it_covers_a_little_less_at_worst(noise: Noise, least: float) -> None:
    assert least <= coverage(3, noise, [40, 60]) <= 0.98


@pytest.mark.parametrize(
    ("noise", "least"), [(PAIRS_VARY, 0.86), (ITEMS_VARY, 0.93), (ONLY_NOISE, 0.93), (ALL_VARY, 0.93)]
)
def test_with_two_pairs_it_covers_less_where_pairs_vary_most(noise: Noise, least: float) -> None:
    assert least <= coverage(2, noise, [40, 60]) <= 0.98


def test_pairs_that_agree_by_chance_are_no_surer_than_their_items() -> None:
    """Equal means, whatever the items say: not less than the noise of two times forty single answers."""
    noise = np.random.default_rng(2).standard_normal((2, 40))
    (found,) = differences([noise - noise.mean(axis=1, keepdims=True)], [40])
    (left,) = differences([noise], [40])
    error = float((noise[0] - noise[1]).std(ddof=1)) / 2 / np.sqrt(40)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert left.high - left.low >= found.high - found.low


def drawn_in_strata(source: np.random.Generator, each: int, sizes: list[int], noise: Noise) -> np.ndarray:
    """Two strata of `each` pairs, far apart, in which items differ in ways of their own; true mean 0."""
    items = noise[1] * source.standard_normal(sum(sizes))
    own = [0.7 * noise[1] * source.standard_normal(sum(sizes)) for _ in range(2)]
    blocks = []
    for far, of_stratum in zip((-2.0, 2.0), own, strict=True):
        of_pairs = (far + noise[0] * source.standard_normal((each, 1))) / len(sizes)
        blocks.append(of_pairs + items + of_stratum + noise[2] * source.standard_normal((each, sum(sizes))))
    return np.concatenate(blocks)


@pytest.mark.parametrize("noise", [PAIRS_VARY, ITEMS_VARY, ONLY_NOISE, ALL_VARY])
@pytest.mark.parametrize("each", [2, 3, 6])
def test_within_strata_it_covers_their_mean(noise: Noise, each: int) -> None:
    source, sizes, repeats = np.random.default_rng(each), [40, 60], 800
    contrasts = [drawn_in_strata(source, each, sizes, noise) for _ in range(repeats)]
    found = differences(contrasts, sizes, [[0] * each + [1] * each] * repeats)
    assert 0.925 <= sum(not difference.distinguishable for difference in found) / repeats <= 0.985
    assert sum(difference.p < 0.001 for difference in found) / repeats <= 0.02  # far out too


@pytest.mark.parametrize("pairs", [2, 4, 6])
def test_eighteen_differences_of_nothing_seldom_hold_after_holm(pairs: int) -> None:
    """Of noise and items; the promise is 5 % of the tables."""
    source, sizes, tables = np.random.default_rng([1, pairs]), [150, 150, 150], 60
    strata = [0] * pairs if pairs == 2 else [0] * (pairs // 2) + [1] * (pairs // 2)
    wrong = 0
    for _ in range(tables):
        contrasts = [drawn(source, pairs, sizes, (0, 0.3, 0.7)) for _ in range(18)]
        found = differences(contrasts, sizes, [strata] * 18)
        wrong += min(holm([difference.p for difference in found])) < 0.05
    assert wrong / tables <= 0.15


def test_strata_of_one_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="two pairs or more"):
        differences([np.zeros((3, 5))], [5], [[0, 0, 1]])


def test_a_difference_between_strata_does_not_widen_the_interval() -> None:
    values = np.array([1.0, 1.2, 1.4, 5.0, 5.2, 5.4])[:, None] * np.ones((6, 5))
    (apart,), (together,) = differences([values], [5], [[7, 7, 7, 2, 2, 2]]), differences([values], [5])
    assert apart.mean == together.mean == pytest.approx(3.2)
    # Two means of three, each of variance 0.04 / 3 and known with two degrees of freedom: t(4) on √(0.04 / 6).
    half = float(stats.t.isf(0.025, 4)) * np.sqrt(0.04 / 6)
    assert (apart.low, apart.high) == (pytest.approx(3.2 - half, abs=0.02), pytest.approx(3.2 + half, abs=0.02))
    assert together.high - together.low > 10 * half
    shuffled = [3, 0, 4, 1, 5, 2]
    (other,) = differences([values[shuffled]], [5], [[[7, 7, 7, 2, 2, 2][i] for i in shuffled]])
    assert (other.low, other.high) == (pytest.approx(apart.low, abs=0.01), pytest.approx(apart.high, abs=0.01))


def test_one_pair_covers_over_items() -> None:
    assert 0.93 <= coverage(1, (0, 1, 0), [80]) <= 0.97


def test_several_tasks_count_alike_whatever_their_size() -> None:
    contrast = np.concatenate([np.full((4, 10), 0.5), np.full((4, 90), 0.1)], axis=1)
    (found,) = differences([contrast], [10, 90])
    assert found.mean == pytest.approx(0.6)  # the values already hold 1 / tasks
    assert (found.low, found.high) == (pytest.approx(0.6), pytest.approx(0.6))


def test_mean_interval_is_students() -> None:
    values = [0.61, 0.55, 0.72, 0.66]
    found = mean_interval(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert mean_interval([0.4]) == (0.4, None, None, 1)


def test_one_pair_is_the_bootstrap_of_scipy() -> None:
    source = np.random.default_rng(5)
    ours, theirs = (source.random(400) < chance for chance in (0.7, 0.55))
    items = (ours.astype(float) - theirs)[None]
    (found,) = differences([items], [400])
    expected = stats.bootstrap(
        (ours, theirs), lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, vectorized=True,
        n_resamples=20_000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.mean == pytest.approx(items.mean())
    assert found.low == pytest.approx(expected.low, abs=0.003)
    assert found.high == pytest.approx(expected.high, abs=0.003)
    assert found.pairs == 1


def test_without_noise_of_items_it_is_near_students_interval() -> None:
    source = np.random.default_rng(3)
    values = source.standard_normal(25)
    (found,) = differences([np.repeat(values[:, None], 7, axis=1)], [7])
    low, high = stats.t.interval(0.95, 24, loc=values.mean(), scale=stats.sem(values))
    assert found.low == pytest.approx(low, abs=0.04)
    assert found.high == pytest.approx(high, abs=0.04)


def test_the_width_is_that_of_the_variance_components() -> None:
    """Crossed random effects: the variance of the mean is pairs² / P + items² / n + noise² / (n P)."""
    source, pairs, n = np.random.default_rng(4), 30, 200
    widths = [f.high - f.low for f in differences([drawn(source, pairs, [n], (0.2, 0.6, 0.9)) for _ in range(60)], [n])]
    error = np.sqrt(0.2**2 / pairs + 0.6**2 / n + 0.9**2 / (n * pairs))
    assert np.mean(widths) == pytest.approx(2 * 1.97 * error, rel=0.05)


def test_p_agrees_with_the_interval_and_with_the_t_test() -> None:
    source = np.random.default_rng(6)
    contrasts = [source.normal(shift, 1, (9, 1)) * np.ones((9, 5)) for shift in np.linspace(-1.5, 1.5, 40)]
    found = differences(contrasts, [5])
    assert all(difference.distinguishable == (difference.p < 0.05) for difference in found)
    assert {difference.distinguishable for difference in found} == {True, False}
    theirs = [stats.ttest_1samp(contrast[:, 0], 0).pvalue for contrast in contrasts]
    assert stats.spearmanr([difference.p for difference in found], theirs).statistic > 0.98


def test_few_pairs_do_not_become_certain_by_the_end_of_their_resamples() -> None:
    """Three pairs, five standard errors: t(2) says 0.04, and so must this (a plain percentile says 0)."""
    contrast = np.array([[1.0], [1.6], [2.2]]) * np.ones((3, 6))
    (found,) = differences([contrast], [6])
    assert 0.01 < found.p < 0.1


def test_equal_methods_are_not_distinguishable() -> None:
    (found,) = differences([np.zeros((3, 10))], [10])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert not found.distinguishable


def test_the_same_numbers_every_time_and_beside_whatever_others() -> None:
    source = np.random.default_rng(8)
    contrasts = [source.standard_normal((4, 30)) for _ in range(3)]
    assert differences(contrasts, [10, 20])[1].low == pytest.approx(differences([contrasts[1]], [10, 20])[0].low)
    assert differences([], [10, 20]) == []


def test_resamples_draw_as_many_items_of_a_task_as_it_has() -> None:
    """Then the variance of the mean is the sum over tasks of theirs, each over its number of items."""
    source, sizes, spreads = np.random.default_rng(9), [100, 900], [1.0, 2.0]
    tasks = [spread * source.standard_normal(size) for spread, size in zip(spreads, sizes, strict=True)]
    (found,) = differences([np.concatenate(tasks)[None]], sizes)
    error = np.sqrt(sum(task.var(ddof=1) / len(task) for task in tasks))
    assert found.high - found.low == pytest.approx(2 * 1.97 * error, rel=0.03)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
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
