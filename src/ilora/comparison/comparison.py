"""The comparison: every number that the tables, the pictures and the page show, computed here and only here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ilora.comparison.budget import budget, cost
from ilora.comparison.differences import against_baseline, rank, values_of
from ilora.comparison.gather import Gathered
from ilora.comparison.items import measures
from ilora.comparison.learning import Learnt, alone_of, is_untrained, learnt_beside, share_of
from ilora.comparison.lines import Line, find_baseline, lines_of
from ilora.comparison.run import Run
from ilora.comparison.statistics import LEAST_PAIRS, LEVEL, mean_interval
from ilora.present.numbers import plain
from ilora.results.matrix import LEAST_LEARNT, mean_of_all, overall_performance
from ilora.results.reader import SUMMARY, learning_row, matrix

SCHEMA = 1
Scores = list[list[float | None]]


def compare_runs(gathered: Gathered, baseline: str | None = None) -> dict[str, Any]:
    """The content of comparison.json. Scores are 0..1.

    baseline: a row's name or a label (then its answering variant); default `sequential`, else the first row.
    Raises InputError for an unknown baseline.
    """
    found = lines_of(gathered.runs)
    chosen = find_baseline(found, baseline)
    lines = [chosen, *(line for line in found if line is not chosen)]
    first = gathered.runs[0]
    orders = list(dict.fromkeys(run.order for run in gathered.runs))
    sizes = [len(first.items.ids[label]) for label in first.order]
    values = {line.name: values_of(line, first.order) for line in lines}
    others = {line.name: values[line.name] for line in lines[1:]}
    alone = alone_of(lines)
    learnt = {line.name: learnt_beside(line, alone) for line in lines}
    shares = {name: share_of(pairs) for name, pairs in learnt.items()}
    untrained = {name for name, share in shares.items() if is_untrained(share)}
    against = against_baseline(chosen.name, values[chosen.name], others, sizes, untrained)
    ranking = rank([line for line in lines if line.name not in untrained], values, sizes)
    return {
        "schema": SCHEMA,
        "model": plain(first.results.get("model", "?")),
        "split": first.settings.get("evaluation.split", "test"),
        "tasks": [_task(first, label, size) for label, size in zip(first.order, sizes, strict=True)],
        "orders": [list(order) for order in orders],
        "seeds": sorted({run.seed for run in gathered.runs}),
        "baseline": chosen.name,
        "level": LEVEL,
        "least_pairs": LEAST_PAIRS,
        "least_learnt": LEAST_LEARNT,
        "rows": [
            _row(line, chosen, orders, ranking.letters.get(line.name, ""), against.get(line.name))
            | {"intransigence": _intransigence(learnt[line.name])}
            | {"learnt_share": shares[line.name], "not_trained": line.name in untrained}
            for line in lines
        ],
        "pairs": ranking.pairs,
        "settings": _settings_that_differ(gathered.runs),
        "left_out": [{"folder": str(folder), "reason": reason} for folder, reason in gathered.left_out],
    }


def _task(run: Run, label: str, items: int) -> dict[str, Any]:
    found = run.results["tasks"][run.order.index(label)]
    return {"label": label, "name": plain(found["name"]), "metric": plain(found.get("metric", "")), "items": items}


def _row(
    line: Line,
    baseline: Line,
    orders: Sequence[tuple[str, ...]],
    letters: str,
    difference: dict[str, dict[str, Any]] | None,
) -> dict[str, Any]:
    runs = list(line.runs.values())
    own_cost = cost(runs)
    return {
        "name": line.name,
        "label": line.label,
        "variant": line.variant,
        "answers": line.answers,
        "method": str(line.first_run.results.get("method", "?")),
        "runs": [_run(run, orders) for run in runs],
        "measures": _measures(line),
        "letters": letters,
        "difference": difference,
        "tasks": {label: _scores_of_task(line, label) for label in line.first_run.items.ids},
        "R": _matrices(line, orders),
        "learning": _curve(line, _learning),
        "keeping": _curve(line, _keeping),
        "cost": own_cost,
        "budget": budget(own_cost, cost(list(baseline.runs.values()))),
    }


def _run(run: Run, orders: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    return {"folder": run.place, "order": 1 + orders.index(run.order), "seed": run.seed}


# -- means over runs -----------------------------------------------------------------------------------------------


def _interval(values: Sequence[float | None]) -> dict[str, Any] | None:
    """None where a run has none: a mean over fewer runs than another's would not be comparable."""
    known = [value for value in values if value is not None]
    return mean_interval(known)._asdict() if known and len(known) == len(values) else None


def _measures(line: Line) -> dict[str, Any]:
    found = [measures(run, line.variant) for run in line.runs.values()]
    return {key: _interval([run[key] for run in found]) for key in SUMMARY}


def _intransigence(learnt: Learnt) -> dict[str, Any] | None:
    """How much less a row learns of each task than an adapter of its own does (Chaudhry et al. 2018).

    It tells a method that forgot nothing because it learnt nothing.
    """
    return _interval([None if own is None or best is None else best - own for own, best in learnt])


def _scores_of_task(line: Line, label: str) -> dict[str, Any]:
    """Just after the task's training and at the end."""
    learnt, kept = [], []
    for run in line.runs.values():
        rows, place = matrix(run.results, line.variant), run.order.index(label)
        learnt.append(rows[learning_row(run.results, place)][place])
        kept.append(rows[-1][place])
    return {"learnt": _interval(learnt), "kept": _interval(kept)}


def _matrices(line: Line, orders: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
    """R with the zero-shot row above it, the mean over seeds, for each order."""
    made = []
    for number, order in enumerate(orders, 1):
        runs = [run for run in line.runs.values() if run.order == order]
        if runs:
            tables = [run.rows(line.variant) for run in runs]
            mean = [[mean_of_all(cells) for cells in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]
            phases = [plain(phase) for phase in runs[0].results["phases"]]
            made.append({"order": number, "seeds": len(runs), "phases": phases, "rows": mean})
    return made


def _curve(line: Line, points_of: Callable[[Scores], list[float | None]]) -> list[dict[str, Any] | None] | None:
    """For every place on the curve the mean over runs and its interval; None for joint training: it has no stages."""
    runs = list(line.runs.values())
    if len(line.first_run.order) != len(line.first_run.results["phases"]):
        return None
    curves = [points_of(matrix(run.results, line.variant)) for run in runs]
    return [_interval(values) for values in zip(*curves, strict=True)]


def _learning(rows: Scores) -> list[float | None]:
    """After 1, 2, ... tasks the mean score of the tasks trained so far."""
    return [overall_performance(rows[: stage + 1]) for stage in range(len(rows))]


def _keeping(rows: Scores) -> list[float | None]:
    """0, 1, ... tasks after its own training, how far a task is from its score then: the mean over tasks old enough."""
    curve = []
    for age in range(len(rows)):
        pairs = [(rows[i + age][i], rows[i][i]) for i in range(len(rows) - age)]
        curve.append(mean_of_all([None if now is None or then is None else now - then for now, then in pairs]))
    return curve


def _settings_that_differ(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """By setting outside `method`: what each label has, where they are not all the same."""
    found: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for run in runs for key in run.settings if not key.startswith("method")):
        by_label = {run.label: plain(run.settings[key], 60) for run in runs if key in run.settings}
        if len(set(by_label.values())) > 1:
            found[key] = by_label
    return found
