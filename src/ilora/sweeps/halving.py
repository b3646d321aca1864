"""Successive halving (Jamieson and Talwalkar 2016): many trials with one run each, the best ones with more runs.

A rung is a number of runs (orders and seeds), not of rows or steps: all runs are whole ones, since a learning rate that
is best for few steps is not the best for many, and a run of an early rung counts in the later ones, too. Trials of a
rung are compared over the same orders and seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ilora.sweeps.tuning import TuneConfig


@dataclass(frozen=True)
class Score:
    """What a run scored: OP, and the mean of R[i, i] (None: joint training)."""

    op: float
    learnt: float | None


Outcome = Score | Literal["diverged"] | None  # None: not there yet
OutcomeOf = Callable[[int, int], Outcome]
"""Of a trial's run, both by number."""


@dataclass(frozen=True)
class Standing:
    """How far a halving is. rungs: the trials that reached each. open: runs to make now, (trial, run)."""

    rungs: list[list[int]]
    open: list[tuple[int, int]]
    best: int | None = None

    @property
    def complete(self) -> bool:
        """Whether the best trial is known, or all trials have diverged."""
        return not self.open


def standing(trials: int, tune: TuneConfig, outcome: OutcomeOf) -> Standing:
    """Go up the rungs as far as the outcomes reach. Of trials with the same mean OP the first one goes on."""
    alive, rungs, ranked = list(range(trials)), list[list[int]](), list[int]()
    for runs in tune.runs:
        rungs.append(alive)
        for run in range(runs):
            waiting = [(trial, run) for trial in alive if outcome(trial, run) is None]
            if waiting:
                return Standing(rungs, waiting)
            alive = [trial for trial in alive if outcome(trial, run) != "diverged"]
        means = {trial: mean_op(scores(outcome, trial, runs)) for trial in alive}
        ranked = sorted(alive, key=lambda trial: (-means[trial], trial))
        alive = sorted(ranked[: going_on(len(rungs[-1]), tune)])
    return Standing(rungs, [], ranked[0] if ranked else None)


def going_on(trials: int, tune: TuneConfig) -> int:
    """How many of a rung's trials the next rung has, at most: those that diverge leave their places empty."""
    return -(-trials // tune.reduction)


def scores(outcome: OutcomeOf, trial: int, runs: int) -> list[Score]:
    """Of a trial's first runs, those that are there and did not diverge."""
    return [found for run in range(runs) if isinstance(found := outcome(trial, run), Score)]


def mean_op(found: list[Score]) -> float:
    """The mean over runs."""
    return statistics.fmean(score.op for score in found)


def most_runs(trials: int, tune: TuneConfig) -> int:
    """How many runs all rungs have together, if none diverges."""
    total, before, alive = 0, 0, trials
    for runs in tune.runs:
        total, before = total + alive * (runs - before), runs
        alive = going_on(alive, tune)
    return total
