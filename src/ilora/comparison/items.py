"""What each test item adds to a measure of a run: the measure is the sum over tasks of the mean over items.

All measures of results/matrix.py are sums of coefficient × score over the cells of R and the zero-shot row.
(Forgetting is one too, once the best stage since the task was learnt is known.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ilora.comparison.run import Run
from ilora.comparison.statistics import Floats
from ilora.errors import InputError
from ilora.results.matrix import ALL, summarise
from ilora.results.reader import SUMMARY, matrix, zero_shot_scores


def trained(run: Run) -> list[int]:
    """Which task each stage of a run trained, as `summarise` takes it."""
    rows = len(run.results["phases"])
    return [ALL] * rows if run.results.get("stream") == "joint" else list(range(rows))


def measures(run: Run, variant: str) -> dict[str, float | None]:
    """OP, BWT, forgetting, FWT and plasticity of a run's variant."""
    return summarise(matrix(run.results, variant), zero_shot_scores(run.results, variant), trained=trained(run))


def coefficients(scores: Sequence[Sequence[float | None]], values: Mapping[str, float | None]) -> dict[str, Floats]:
    """For each measure that `values` has, (1 + stages, tasks): the coefficient of every cell. Row 0: zero-shot.

    scores: R of a finished run, in which stage k trained task k, or a single joint stage.
    """
    stages, tasks = len(scores), len(scores[-1])
    made = {key: np.zeros((1 + stages, tasks)) for key in SUMMARY if values[key] is not None}
    made["OP"][stages] = 1 / tasks
    for task in range(tasks if "plasticity" in made else 0):
        made["plasticity"][1 + task, task] = 1 / tasks
    for task in range(tasks - 1 if "BWT" in made else 0):
        made["BWT"][stages, task] += 1 / (tasks - 1)
        made["BWT"][1 + task, task] -= 1 / (tasks - 1)
    for task in range(tasks - 1 if "forgetting" in made else 0):
        earlier = {k: score for k in range(task, stages - 1) if (score := scores[k][task]) is not None}
        made["forgetting"][1 + max(earlier, key=lambda k: earlier[k]), task] += 1 / (tasks - 1)
        made["forgetting"][stages, task] -= 1 / (tasks - 1)
    for task in range(1, tasks if "FWT" in made else 0):
        made["FWT"][task, task] += 1 / (tasks - 1)
        made["FWT"][0, task] -= 1 / (tasks - 1)
    return made


def item_values(run: Run, variant: str, tasks: Sequence[str]) -> dict[str, Floats]:
    """For each measure that the run has, (items,): the items of one task after another, in the order of `tasks`.

    The measure is the sum over tasks of the mean over a task's items. Raises InputError for a prediction file that is
    missing, has other rows than the other runs' or does not give the score in results.json.
    """
    weights = coefficients(matrix(run.results, variant), measures(run, variant))
    blocks: dict[str, list[Floats]] = {key: [] for key in weights}
    for label in tasks:
        place = run.order.index(label)
        used = sorted({int(stage) for table in weights.values() for stage in np.flatnonzero(table[:, place])})
        cells = {stage: cell_scores(run, variant, stage, label) for stage in used}
        for key, table in weights.items():
            zeros = np.zeros(len(run.items.ids[label]))
            blocks[key].append(sum((table[stage, place] * cells[stage] for stage in used), zeros))
    return {key: np.concatenate(parts) for key, parts in blocks.items()}


def cell_scores(run: Run, variant: str, stage: int, label: str) -> Floats:
    """(items,): the scores after a stage (0: the base model). Raises InputError where they do not give that of R."""
    scores, source = run.scores(stage, variant, label)
    expected = run.rows(variant)[stage][run.order.index(label)]
    if expected is None or abs(float(scores.mean()) - expected) > 1e-6:
        raise InputError(
            f"{source}: its mean score is {scores.mean():.6f}, but the results of {run.place} say {expected}; "
            "one of them is not this run's"
        )
    return scores
