"""Measures of the score matrix: averages, transfer and forgetting, as pure functions.

`scores[k][i]` is the score in [0, 1] on task i after training stage k, None where it was not evaluated; a row
may be shorter than the number of tasks. The functions take stage k to have trained task k; `summarise` also
takes other orders and joint training. A run that has not finished has fewer rows than tasks: every measure is
then over the T tasks trained so far, T = the number of rows, which is what the full run would have shown
at that point.

A measure is None where it is not defined (a single task) or where a score it needs was not evaluated: a mean
over fewer tasks than another run's would not be comparable. Only forgetting, which takes a maximum, skips gaps.

Source: METHOD, after Lopez-Paz and Ranzato (2017) and Chaudhry et al. (2018).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence

from ilora.errors import InputError

Scores = Sequence[Sequence[float | None]]
LEAST_LEARNT = 0.9  # of what `individual` learns; a method that learns less was not trained
ALL = -1  # in `trained`: a stage that trained all tasks at once


def overall_performance(scores: Scores) -> float | None:
    """OP: the mean of the last row over the tasks trained so far, in [0, 1]."""
    last = len(scores) - 1
    return mean_of_all([_cell(scores, last, i) for i in range(len(scores))])


def backward_transfer(scores: Scores) -> float | None:
    """BWT: mean over i < T of R[T][i] - R[i][i], in [-1, 1]; below 0 = earlier tasks got worse."""
    last = len(scores) - 1
    return mean_of_all([_minus(_cell(scores, last, i), _cell(scores, i, i)) for i in range(last)])


def forgetting(scores: Scores) -> float | None:
    """Mean over i < T of max over i <= k < T of R[k][i], minus R[T][i], in [-1, 1]; above 0 = forgotten.

    k takes the stages from the task's own training on at which it was evaluated. None for one task.
    """
    last = len(scores) - 1
    drops: list[float | None] = []
    for i in range(last):
        earlier = [score for k in range(i, last) if (score := _cell(scores, k, i)) is not None]
        drops.append(_minus(max(earlier), _cell(scores, last, i)) if earlier else None)
    return mean_of_all(drops)


def forward_transfer(scores: Scores, zero_shot: Sequence[float | None] | None) -> float | None:
    """FWT: mean over i > 1 of R[i-1][i] - zero_shot[i], in [-1, 1]: what earlier tasks gave a task before its
    own training.

    None for one task, without zero-shot scores, or where the next task was not evaluated.
    """
    if zero_shot is None:
        return None
    pairs = [(_cell(scores, i - 1, i), _cell([zero_shot], 0, i)) for i in range(1, len(scores))]
    return mean_of_all([_minus(after, before) for after, before in pairs])


def plasticity(scores: Scores) -> float | None:
    """The mean of R[i][i], each task's score right after its own training, in [0, 1]."""
    return mean_of_all([_cell(scores, i, i) for i in range(len(scores))])


def learnt_share(own: Sequence[float | None], alone: Sequence[float | None]) -> float | None:
    """What a method learnt of its tasks, as a share of what an adapter of its own learns of each (`individual`).

    own, alone: the plasticity of their runs, over the same orders and seeds. None where one is not defined (joint
    training), or where nothing was learnt alone.
    """
    learnt, best = mean_of_all(own), mean_of_all(alone)
    return None if learnt is None or not best else learnt / best


def summarise(
    scores: Scores,
    zero_shot: Sequence[float | None] | None = None,
    *,
    trained: Sequence[int] | None = None,
) -> dict[str, float | None]:
    """All measures under the names OP, BWT, forgetting, FWT and plasticity.

    trained: for every row the task that its stage trained, ALL for joint training; default: row k trained
    task k. Tasks may come in any order. With a joint stage, or a task trained twice, only OP is defined, over
    all tasks trained. Errors: InputError for more rows than tasks, a score outside [0, 1] or a `trained` that
    does not fit.
    """
    tasks = max([len(row) for row in scores] + [len(zero_shot or ())], default=0)
    stages = list(range(len(scores)) if trained is None else trained)
    _check(scores, zero_shot, stages, tasks)
    seen = list(dict.fromkeys(range(tasks) if ALL in stages else stages))
    ordered = [[_cell(scores, k, i) for i in seen] for k in range(len(scores))]
    values: tuple[float | None, ...]
    if ALL in stages or len(seen) < len(stages):
        values = (mean_of_all(ordered[-1]), None, None, None, None)
    else:
        before = None if zero_shot is None else [_cell([zero_shot], 0, i) for i in seen]
        values = (
            overall_performance(ordered),
            backward_transfer(ordered),
            forgetting(ordered),
            forward_transfer(ordered, before),
            plasticity(ordered),
        )
    return dict(zip(("OP", "BWT", "forgetting", "FWT", "plasticity"), values, strict=True))


def still_scored(scores: Scores, retired: Collection[int]) -> list[int]:
    """The stages that the measures of a sequence are over: all, but for those of tasks that are scored no longer.

    retired: the tasks that were replaced or whose rows were deleted; one that the last row has a score of still counts.
    Stage k trained task k. Without such a stage the measures are those of a sequence that the task was never in.
    """
    last = len(scores) - 1
    return [k for k in range(len(scores)) if k not in retired or _cell(scores, last, k) is not None]


def _check(scores: Scores, zero_shot: Sequence[float | None] | None, stages: Sequence[int], tasks: int) -> None:
    if len(stages) != len(scores):
        raise InputError(f"the score matrix has {len(scores)} rows, but {len(stages)} stages are given")
    unknown = sorted({i for i in stages if i != ALL and not 0 <= i < tasks})
    if unknown:
        raise InputError(
            f"the score matrix has {tasks} tasks, counted from 0, but a row trained task {unknown[0]}; "
            "there may be no more rows than tasks"
        )
    for place, row in [*enumerate(scores), ("zero-shot", zero_shot or ())]:
        for i, score in enumerate(row):
            if score is not None and not 0 <= score <= 1:
                raise InputError(f"score matrix, row {place}, task {i}: {score} is not between 0 and 1")


def _cell(scores: Scores, row: int, task: int) -> float | None:
    return scores[row][task] if task < len(scores[row]) else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing, or all are: a mean over fewer would not be comparable."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean of independent values, s / √n with s over n - 1; None for a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
