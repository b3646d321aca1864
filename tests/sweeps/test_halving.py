"""Successive halving, against outcomes made up by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ilora.sweeps.halving import Outcome, OutcomeOf, Score, Standing, most_runs, standing
from ilora.sweeps.tuning import TuneConfig

TUNE = TuneConfig(trials=5, runs=[1, 3], reduction=2)
GOOD = [0.1, 0.5, 0.5, 0.3, 0.4]  # of each trial's first run
AGAIN = [0.9, 0.2, 0.4, 0.9, 0.5]  # of every further one


def played(outcome: OutcomeOf, tune: TuneConfig = TUNE, trials: int = 5) -> tuple[Standing, list[tuple[int, int]]]:
    """Make the runs that are asked for, and no other; the end, and the runs in their order."""
    made: dict[tuple[int, int], Outcome] = {}

    def known(trial: int, run: int) -> Outcome:
        return made.get((trial, run))

    while not (found := standing(trials, tune, known)).complete:
        assert not set(found.open) & made.keys()
        made |= {(trial, run): outcome(trial, run) for trial, run in found.open}
    return found, list(made)


def by_hand(trial: int, run: int) -> Outcome:
    return Score(AGAIN[trial] if run else GOOD[trial], 0.5)


def test_the_best_go_on_and_the_best_of_all_their_runs_wins() -> None:
    found, made = played(by_hand)
    assert found.rungs == [[0, 1, 2, 3, 4], [1, 2, 4]]  # three of five; trials 0 and 3 would have done better later
    assert found.best == 4  # (0.4 + 0.5 + 0.5) / 3 is above those of 1 and 2
    assert made == [*((trial, 0) for trial in range(5)), (1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2)]
    assert len(made) == most_runs(5, TUNE)


def test_of_equal_trials_the_first_one_goes_on() -> None:
    found, _ = played(lambda _trial, _run: Score(0.5, None))
    assert (found.rungs[1], found.best) == ([0, 1, 2], 0)


def test_one_that_diverges_goes_nowhere_and_asks_for_no_more_runs() -> None:
    found, made = played(lambda trial, run: "diverged" if (trial, run) in ((1, 0), (4, 1)) else by_hand(trial, run))
    assert found.rungs == [[0, 1, 2, 3, 4], [2, 3, 4]]
    assert not {(1, 1), (4, 2)} & set(made)
    assert found.best == 3
    assert played(lambda *_: "diverged")[0] == Standing([[0, 1, 2, 3, 4], []], [], None)


def test_a_single_trial_has_the_runs_of_the_last_rung() -> None:
    found, made = played(by_hand, trials=1)
    assert (found.best, made) == (0, [(0, 0), (0, 1), (0, 2)])


@pytest.mark.parametrize("runs", [[], [2, 2], [3, 1]])
def test_rungs_must_rise(runs: list[int]) -> None:
    with pytest.raises(ValidationError, match="runs"):
        TuneConfig(runs=runs)
