"""The comparison: every number that the tables, the pictures and the page show, computed here and only here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from ilora.comparison.budget import budget, cost
from ilora.comparison.gather import Gathered
from ilora.comparison.items import item_values, measures
from ilora.comparison.run import Run
from ilora.comparison.statistics import (
    LEVEL,
    RESAMPLES,
    SEED,
    Difference,
    Floats,
    differences,
    holm,
    letters,
    mean_interval,
)
from ilora.errors import InputError
from ilora.present.numbers import plain
from ilora.registry import did_you_mean
from ilora.results.matrix import overall_performance
from ilora.results.reader import SUMMARY, learning_row, matrix

SCHEMA = 1
Pairing = tuple[tuple[str, ...], int]  # the order and the seed of a run


@dataclass(frozen=True)
class Line:
    """A label's runs under one answering variant: a row of every table."""

    name: str
    label: str
    variant: str
    runs: Mapping[Pairing, Run]


def compare_runs(gathered: Gathered, baseline: str | None = None) -> dict[str, Any]:
    """The content of comparison.json. Scores are 0..1.

    baseline: a row's name or a label (then its answering variant); default `sequential`, else the first row.
    """
    lines = lines_of(gathered.runs)
    chosen = _baseline(lines, baseline)
    lines = [chosen, *(line for line in lines if line is not chosen)]
    first = gathered.runs[0]
    orders = list(dict.fromkeys(run.order for run in gathered.runs))
    sizes = [len(first.items.ids[label]) for label in first.order]
    values = {line.name: values_of(line, first.order) for line in lines}
    against = _against(lines, values, sizes)
    pairs, shown = _ranking(lines, values, sizes)
    return {
        "schema": SCHEMA,
        "model": plain(first.results.get("model", "?")),
        "split": first.settings.get("evaluation.split", "test"),
        "tasks": [_task(first, label, size) for label, size in zip(first.order, sizes, strict=True)],
        "orders": [list(order) for order in orders],
        "seeds": sorted({run.seed for run in gathered.runs}),
        "baseline": chosen.name,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "resampling_seed": SEED,
        "rows": [
            {
                "name": line.name,
                "label": line.label,
                "variant": line.variant,
                "answers": line.variant == _any(line).results["answers_with"],
                "method": str(_any(line).results.get("method", "?")),
                "runs": [_run(run, orders) for run in line.runs.values()],
                "measures": _measures(line),
                "letters": shown[line.name],
                "difference": against.get(line.name),
                "tasks": {label: _scores_of_task(line, label) for label in first.order},
                "R": _matrices(line, orders),
                "learning": _curve(line, _learning),
                "keeping": _curve(line, _keeping),
                "cost": cost(list(line.runs.values())),
                "budget": budget(cost(list(line.runs.values())), cost(list(chosen.runs.values()))),
            }
            for line in lines
        ],
        "pairs": pairs,
        "settings": _settings_that_differ(gathered.runs),
        "left_out": [{"folder": str(folder), "reason": reason} for folder, reason in gathered.left_out],
    }


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """One for every label and variant, in the order of the labels' first runs."""
    made: dict[tuple[str, str], dict[Pairing, Run]] = {}
    several = {run.label for run in runs if len(run.variants) > 1}
    for run in runs:
        for variant in run.variants:
            made.setdefault((run.label, variant), {})[run.order, run.seed] = run
    lines = [
        Line(f"{label} ({plain(variant, 20)})" if label in several else label, label, variant, found)
        for (label, variant), found in sorted(made.items(), key=lambda item: _place(runs, item[0][0]))
    ]
    names = [line.name for line in lines]
    for twice in (name for name in names if names.count(name) > 1):
        raise InputError(f"two rows would be called {twice!r}: give the sweep's methods other labels")
    return lines


def _place(runs: Sequence[Run], label: str) -> int:
    return next(place for place, run in enumerate(runs) if run.label == label)


def _baseline(lines: Sequence[Line], wanted: str | None) -> Line:
    if wanted is None:
        return next((line for line in lines if line.label == "sequential"), lines[0])
    for line in lines:
        if wanted == line.name or (wanted == line.label and line.variant == _any(line).results["answers_with"]):
            return line
    names = [line.name for line in lines]
    raise InputError(f"--baseline {wanted}: no such row{did_you_mean(wanted, names)}; there are {', '.join(names)}")


def _any(line: Line) -> Run:
    return next(iter(line.runs.values()))


def _task(run: Run, label: str, items: int) -> dict[str, Any]:
    found = run.results["tasks"][run.order.index(label)]
    return {"label": label, "name": plain(found["name"]), "metric": plain(found.get("metric", "")), "items": items}


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
            mean = [[_mean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]
            phases = [plain(phase) for phase in runs[0].results["phases"]]
            made.append({"order": number, "seeds": len(runs), "phases": phases, "rows": mean})
    return made


def _mean(cells: Sequence[float | None]) -> float | None:
    known = [cell for cell in cells if cell is not None]
    return sum(known) / len(known) if known and len(known) == len(cells) else None


def _curve(line: Line, points_of: Any) -> list[dict[str, Any] | None] | None:
    """For every place on the curve the mean over runs and its interval; None for joint training: it has no stages."""
    runs = list(line.runs.values())
    if len(_any(line).order) != len(_any(line).results["phases"]):
        return None
    curves = [points_of(matrix(run.results, line.variant)) for run in runs]
    return [_interval(values) for values in zip(*curves, strict=True)]


def _learning(rows: list[list[float | None]]) -> list[float | None]:
    """After 1, 2, ... tasks the mean score of the tasks trained so far."""
    return [overall_performance(rows[: stage + 1]) for stage in range(len(rows))]


def _keeping(rows: list[list[float | None]]) -> list[float | None]:
    """0, 1, ... tasks after its own training, how far a task is from its score then: the mean over tasks old enough."""
    curve = []
    for age in range(len(rows)):
        pairs = [(rows[i + age][i], rows[i][i]) for i in range(len(rows) - age)]
        curve.append(_mean([None if now is None or then is None else now - then for now, then in pairs]))
    return curve


# -- differences over runs and items -------------------------------------------------------------------------------

Values = dict[Pairing, dict[str, Floats]]


def values_of(line: Line, tasks: Sequence[str]) -> Values:
    """What every item adds to every measure, run by run."""
    return {pairing: item_values(run, line.variant, tasks) for pairing, run in line.runs.items()}


class Contrast(NamedTuple):
    """(pairs, items), the stratum of every pair, and whether these are the orders."""

    values: Floats
    strata: list[int]
    within_orders: bool


def contrast_of(one: Values, other: Values, key: str) -> Contrast | None:
    """Over the orders and seeds that both have; None where there is none or it is not defined.

    The orders are strata where each has several seeds: then the interval is over seeds, in these orders.
    """
    common = [pairing for pairing in one if pairing in other]
    if not common or any(key not in values[pairing] for pairing in common for values in (one, other)):
        return None
    values = np.stack([one[pairing][key] - other[pairing][key] for pairing in common])
    seeds = Counter(order for order, _ in common)
    orders, within = list(seeds), min(seeds.values()) > 1
    return Contrast(values, [orders.index(order) if within else 0 for order, _ in common], within)


def judge(contrasts: Sequence[Contrast], sizes: Sequence[int]) -> list[Difference]:
    """The mean of each, with its interval. sizes: items of each task."""
    return differences([one.values for one in contrasts], sizes, [one.strata for one in contrasts])


def _against(lines: Sequence[Line], values: Mapping[str, Values], sizes: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Every row against the first one: by row and measure, each measure's p-values adjusted together."""
    found: dict[str, dict[str, Any]] = {line.name: {} for line in lines[1:]}
    for key in SUMMARY:
        made = {line.name: contrast_of(values[line.name], values[lines[0].name], key) for line in lines[1:]}
        defined = {name: contrast for name, contrast in made.items() if contrast is not None}
        judged = judge(list(defined.values()), sizes)
        adjusted = holm([difference.p for difference in judged])
        for (name, contrast), difference, p in zip(defined.items(), judged, adjusted, strict=True):
            made_of = _difference(difference, p, lower_is_better=key == "forgetting")
            found[name][key] = made_of | {"within_orders": contrast.within_orders}
    return found


def _difference(found: Difference, adjusted: float, *, lower_is_better: bool) -> dict[str, Any]:
    better = (found.mean < 0) == lower_is_better
    verdict = ("better" if better else "worse") if found.distinguishable else "not distinguishable"
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "pairs": found.pairs,
        "p": found.p,
        "p_holm": adjusted,
        "verdict": verdict,
        "holds_after_holm": found.distinguishable and adjusted < 1 - LEVEL,
    }


def _ranking(
    lines: Sequence[Line], values: Mapping[str, Values], sizes: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """OP of every two rows, and the letters: rows without a common one differ after Holm's adjustment over all."""
    means = [_interval([measures(run, line.variant)["OP"] for run in line.runs.values()]) for line in lines]
    best = sorted(range(len(lines)), key=lambda i: -(means[i] or {"mean": 0.0})["mean"])
    contrasts = {}
    for one, other in combinations(range(len(lines)), 2):
        names = lines[best[one]].name, lines[best[other]].name
        contrast = contrast_of(values[names[0]], values[names[1]], "OP")
        if contrast is not None:
            contrasts[one, other] = contrast
    judged = judge(list(contrasts.values()), sizes)
    adjusted = holm([difference.p for difference in judged])
    pairs, differ = [], set()
    for (one, other), found, p in zip(contrasts, judged, adjusted, strict=True):
        apart = found.distinguishable and p < 1 - LEVEL
        differ |= {(one, other)} if apart else set()
        pairs.append(
            {
                "rows": [lines[best[one]].name, lines[best[other]].name],
                **{key: getattr(found, key) for key in ("mean", "low", "high", "pairs", "p")},
                "p_holm": p,
                "apart": apart,
            }
        )
    shown = letters(len(lines), differ)
    return pairs, {lines[best[place]].name: shown[place] for place in range(len(lines))}


def _settings_that_differ(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """By setting outside `method`: what each label has, where they are not all the same."""
    found: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for run in runs for key in run.settings if not key.startswith("method")):
        by_label = {run.label: plain(run.settings[key], 60) for run in runs if key in run.settings}
        if len(set(by_label.values())) > 1:
            found[key] = by_label
    return found
