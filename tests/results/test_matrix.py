"""The score matrix: measures worked out by hand, gaps, unfinished runs, other orders and joint training."""

import pytest

from ilora.errors import InputError
from ilora.results import matrix
from ilora.results.matrix import ALL, Scores, summarise

# Three tasks, everything evaluated; zero-shot .1 .2 .3.
FULL: Scores = [[0.8, 0.3, 0.2], [0.6, 0.7, 0.5], [0.5, 0.9, 0.6]]
ZERO = [0.1, 0.2, 0.3]


def test_by_hand() -> None:
    assert matrix.overall_performance(FULL) == pytest.approx(2.0 / 3)
    assert matrix.backward_transfer(FULL) == pytest.approx((-0.3 + 0.2) / 2)
    assert matrix.forgetting(FULL) == pytest.approx(((0.8 - 0.5) + (0.7 - 0.9)) / 2)
    assert matrix.forward_transfer(FULL, ZERO) == pytest.approx(((0.3 - 0.2) + (0.5 - 0.3)) / 2)
    assert matrix.plasticity(FULL) == pytest.approx((0.8 + 0.7 + 0.6) / 3)


def test_forgetting_takes_the_best_earlier_score_not_the_diagonal() -> None:
    scores: Scores = [[0.5, None, None], [0.9, 0.6, None], [0.4, 0.6, 0.7]]
    assert matrix.forgetting(scores) == pytest.approx((0.5 + 0.0) / 2)
    assert matrix.backward_transfer(scores) == pytest.approx((-0.1 + 0.0) / 2)
    assert matrix.forward_transfer(scores, ZERO) is None  # the next task was not evaluated


def test_the_last_row_is_not_among_the_earlier_ones() -> None:
    assert matrix.forgetting([[0.2], [0.9, 0.5]]) == pytest.approx(-0.7)


def test_summary_has_all_measures() -> None:
    assert summarise(FULL, ZERO) == {
        "OP": matrix.overall_performance(FULL),
        "BWT": matrix.backward_transfer(FULL),
        "forgetting": matrix.forgetting(FULL),
        "FWT": matrix.forward_transfer(FULL, ZERO),
        "plasticity": matrix.plasticity(FULL),
    }
    assert summarise(FULL)["FWT"] is None


def test_unfinished_run_covers_the_tasks_trained_so_far() -> None:
    unfinished = [[0.8, 0.3, 0.2], [0.6, 0.7, 0.5]]  # two of three tasks; the untrained third is not averaged in
    values = summarise(unfinished, ZERO)
    assert values["OP"] == pytest.approx(0.65)
    assert values["BWT"] == pytest.approx(-0.2)
    assert values["FWT"] == pytest.approx(0.1)
    assert values["plasticity"] == pytest.approx(0.75)
    assert values == summarise([[0.8, 0.3], [0.6, 0.7]], ZERO[:2])


def test_a_single_task() -> None:
    nothing = {"BWT": None, "forgetting": None, "FWT": None}
    assert summarise([[0.75]], [0.25]) == {"OP": 0.75, "plasticity": 0.75, **nothing}


def test_joint_training_has_an_overall_performance_only() -> None:
    nothing = dict.fromkeys(("BWT", "forgetting", "FWT", "plasticity"))
    assert summarise([[0.4, 0.6, 0.8]], ZERO, trained=[ALL]) == {"OP": pytest.approx(0.6), **nothing}
    assert summarise([[0.4, None, 0.8]], trained=[ALL])["OP"] is None


def test_no_rows() -> None:
    assert set(summarise([], ZERO).values()) == {None}
    assert set(summarise([]).values()) == {None}


def test_other_order_of_tasks() -> None:
    order = [2, 0, 1]
    shuffled: Scores = [[row[order.index(i)] for i in range(3)] for row in FULL]
    zero_shot = [ZERO[order.index(i)] for i in range(3)]
    assert summarise(shuffled, zero_shot, trained=order) == summarise(FULL, ZERO)
    assert summarise(shuffled, zero_shot) != summarise(FULL, ZERO)


def test_a_task_trained_twice_leaves_the_overall_performance() -> None:
    values = summarise([[0.5, 0.1], [0.4, 0.8], [0.9, 0.7]], trained=[0, 1, 0])
    assert values["OP"] == pytest.approx(0.8)
    assert values["BWT"] is None


@pytest.mark.parametrize(
    ("scores", "undefined"),
    [
        ([[0.8], [None, 0.7]], {"OP", "BWT", "forgetting", "FWT"}),
        ([[None, 0.1], [0.6, 0.7]], {"BWT", "forgetting", "plasticity"}),
        ([[0.8, None], [0.6, 0.7]], {"FWT"}),
        ([[0.8, 0.1], [0.6, None]], {"OP", "plasticity"}),
        ([[0.8, 0.0], [0.0, 0.0]], set()),  # a score of 0 is a score
    ],
)
def test_a_gap_is_never_averaged_away(scores: Scores, undefined: set[str]) -> None:
    values = summarise(scores, [0.5, 0.5])
    assert {name for name, value in values.items() if value is None} == undefined


def test_zero_shot_gap() -> None:
    assert summarise(FULL, [None, 0.2, 0.3])["FWT"] is not None  # the first task's is not needed
    assert summarise(FULL, [0.1, 0.2, None])["FWT"] is None


@pytest.mark.parametrize(
    ("scores", "trained", "message"),
    [
        ([[0.5], [0.6]], None, "no more rows than tasks"),
        ([[0.5, 0.5]], [0, 1], "1 rows, but 2 stages"),
        ([[0.5, 0.5]], [2], "task 2"),
        ([[0.5, 50.0]], None, "row 0, task 1: 50.0 is not between 0 and 1"),
        ([[0.5, float("nan")]], None, "nan is not between"),
    ],
)
def test_refusals(scores: Scores, trained: list[int] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        summarise(scores, trained=trained)


def test_forgetting_begins_with_the_task_s_own_training() -> None:
    """A score before it, seen with `evaluation.unseen`, is no knowledge that could be forgotten."""
    lucky: Scores = [[0.5, 0.9, None], [0.5, 0.6, None], [0.5, 0.6, 0.7]]
    assert matrix.forgetting(lucky) == matrix.forgetting([[0.5], [0.5, 0.6], [0.5, 0.6, 0.7]]) == 0.0
