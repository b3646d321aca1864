"""What the lines of `minima.py` say: gains, barriers, and what predicts them. docs/connectivity.md has the columns."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import permutation_test, rankdata

from ilora.comparison.statistics import Floats, mean_interval
from ilora.connectivity import paths
from ilora.connectivity.landscape import PointScores, RowScores, contrast, of_mean
from ilora.errors import InputError
from ilora.present.numbers import markdown, plain

SCHEMA = 1
LEAST_ROWS = 4  # of a task: two in each half
ERRORS = 2  # standard errors above which a gain or a barrier is shown
PERMUTATIONS = 4999
PREDICTORS = {"cka": "CKA", "distance": "weight distance", "gap": "gap"}
TITLES = {"losses": "By loss (nats per answer token)", "scores": "By score (points)"}
ALL = "all"  # the row over all methods
Json = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """A pair in one space. gain: of the chosen points over the better end, positive where they are better.

    inner: whether both halves chose a point inside. shown: whether the gain over each end is above ERRORS errors.
    """

    run: str
    method: str
    pair: tuple[str, ...]
    space: str
    inner: bool
    shown: bool
    gain: float
    gain_se: float
    barrier: float
    barrier_se: float
    predictors: Mapping[str, float | None]

    @property
    def has_barrier(self) -> bool:
        """Whether these rows show one."""
        return self.barrier > ERRORS * self.barrier_se


# -- lines -----------------------------------------------------------------------------------------------------------


def read_lines(files: Sequence[Path]) -> tuple[list[Json], bool]:
    """The lines of all files, and whether none had a last line that was cut off. Such a one is dropped, and said.

    Raises InputError for a damaged line, one pair twice, or lines of different settings.
    """
    lines: dict[tuple[str, ...], Json] = {}
    whole = True
    for file in files:
        try:
            rows = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
        for number, row in enumerate(rows, 1):
            if number == len(rows) and not row.endswith("\n"):
                print(f"{file}, line {number}: was cut off and is dropped", file=sys.stderr)
                whole = False
                continue
            place = f"{file}, line {number}"
            line = parsed(row, place)
            first = next(iter(lines.values()), line)
            if line["settings"] != first["settings"]:
                raise InputError(f"{place}: measured with {line['settings']}, the first line with {first['settings']}")
            if lines.setdefault((line["run"], *line["pair"]), line) is not line:
                raise InputError(f"{place}: {line['run']} {' to '.join(line['pair'])} is there twice")
    return list(lines.values()), whole


def parsed(text: str, place: str) -> Json:
    """A line. Raises InputError naming the place where it is not whole."""
    try:
        line = json.loads(text)
        if line["schema"] != SCHEMA:
            raise ValueError(f"schema {line['schema']}, expected {SCHEMA}")
        str(line["made_from"]), str(line["method"]), str(line["run"]), [line[key] for key in ("cka", "distance")]
        for where in line["losses"]:
            points = points_of(line, where)
            sizes = [[len(task.losses) for task in point.values()] for point in points]
            if len(points) != line["settings"]["points"] or sizes.count(sizes[0]) != len(points):
                raise ValueError(f"{where}: not the same rows at {line['settings']['points']} points")
            if not sizes[0] or min(sizes[0]) < LEAST_ROWS:
                raise ValueError(f"{where}: fewer than {LEAST_ROWS} rows of a task")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"{place}: damaged ({error!r}); move the line away") from None
    return dict(line)


def points_of(line: Json, where: str) -> list[PointScores]:
    """The points of a path, each with every row's loss, and its score where there are scores."""
    losses = line["losses"][where]
    scores = (
        line["scores"][where] if line["settings"]["scores"] else {task: [[]] * len(losses[task]) for task in losses}
    )
    count = line["settings"]["points"]
    return [{task: RowScores(losses[task][n], scores[task][n]) for task in losses} for n in range(count)]


# -- a pair ----------------------------------------------------------------------------------------------------------


def halves(task: str, rows: int) -> tuple[list[int], list[int]]:
    """The numbers of the rows in two halves, drawn at random; they depend on the task and the number only."""
    one = set(random.Random(f"minima/{task}").sample(range(rows), rows // 2))
    return sorted(one), [row for row in range(rows) if row not in one]


def half_of(point: PointScores, number: int) -> PointScores:
    """A point on one half of each task's rows."""
    made = {}
    for task, found in point.items():
        rows = halves(task, len(found.losses))[number]
        made[task] = RowScores([found.losses[n] for n in rows], [found.scores[n] for n in rows] if found.scores else [])
    return made


def mean(point: PointScores, key: str) -> float:
    """Over tasks, each counting alike."""
    return contrast([point], [1.0], list(point), key=key)[0]


def best(points: Sequence[PointScores], key: str) -> int:
    """The point with the lowest mean loss; by scores, with the highest mean score, then the lowest loss."""
    losses = [mean(point, "losses") for point in points]
    scores = [mean(point, "scores") if key == "scores" else 0.0 for point in points]
    return min(range(len(points)), key=lambda n: (-scores[n], losses[n]))


def gains(points: Sequence[PointScores], key: str) -> tuple[list[int], list[tuple[float, float]]]:
    """The points that either half chooses; and over each end their gain on the other half, the mean of both ways
    round, with its standard error.
    """
    parts = [[half_of(point, number) for point in points] for number in (0, 1)]
    chosen = [best(part, key) for part in parts]
    sign, tasks = 1.0 if key == "scores" else -1.0, list(points[0])
    over = []
    for end in (0, -1):
        ways = [
            contrast([judge[place], judge[end]], [sign, -sign], tasks, key=key)
            for place, judge in zip(chosen, reversed(parts), strict=True)
        ]
        error = of_mean([error for _, error in ways])
        assert error is not None  # a half has two rows or more
        over.append((statistics.fmean(value for value, _ in ways), error))
    return chosen, over


def barrier(points: Sequence[PointScores], key: str) -> tuple[float, float]:
    """The highest rise above the line between the ends (of scores: the deepest fall), with its standard error."""
    ts, tasks = paths.grid(len(points)), list(points[0])
    values = [mean(point, key) for point in points]
    found = paths.profile(ts, values, higher_is_better=key == "scores", epsilon=0.0)
    t = found.barrier_t
    _, error = contrast([points[ts.index(t)], points[0], points[-1]], [1.0, t - 1.0, -t], tasks, key=key)
    assert error is not None
    return found.barrier, error


def judged(line: Json, where: str, key: str) -> Judged:
    """A pair by its losses or scores in one space."""
    points = points_of(line, where)
    chosen, over = gains(points, key)
    gain, gain_se = min(over)
    ends = [mean(points[n], "losses") for n in (0, -1)]
    return Judged(
        run=line["run"],
        method=plain(line["method"], 60),
        pair=tuple(line["pair"]),
        space=where,
        inner=all(0 < place < len(points) - 1 for place in chosen),
        shown=all(value > ERRORS * error for value, error in over),
        gain=gain,
        gain_se=gain_se,
        **dict(zip(("barrier", "barrier_se"), barrier(points, key), strict=True)),
        predictors={"cka": line["cka"], "distance": line["distance"], "gap": abs(ends[0] - ends[1])},
    )


# -- over pairs --------------------------------------------------------------------------------------------------------


def tables(lines: Sequence[Json]) -> str:
    """All of them, as Markdown."""
    if not lines:
        raise InputError("no pair in these files")
    settings = lines[0]["settings"]
    of = "all tasks learnt so far" if settings["old"] == "all" else "the previous and the new task"
    parts = [f"{len(lines)} pairs; {settings['points']} points, at most {settings['rows']} rows of each of {of}."]
    for key in ("losses", "scores") if settings["scores"] else ("losses",):
        pairs = [judged(line, where, key) for line in lines for where in line["losses"]]
        unit = number if key == "losses" else in_points
        parts += [f"## {TITLES[key]}", markdown(counts(pairs, unit))]
        parts += ["What predicts the gain and the barrier (Spearman):", markdown(correlations(pairs))]
        both = factors_and_delta(pairs, unit)
        parts += ["`factors` minus `delta`, pair by pair:", markdown(both)] if len(both) > 1 else []
    parts.append(
        "p: whole runs are permuted, against runs with as many pairs: which run's gains or barriers stand beside which "
        "run's predictors, pairs in their order.\n"
    )
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def by_method(pairs: Sequence[Judged]) -> dict[str, list[Judged]]:
    """In the order of the lines; where there are several, also all of them."""
    found: dict[str, list[Judged]] = {}
    for pair in pairs:
        found.setdefault(pair.method, []).append(pair)
    return found | {ALL: list(pairs)} if len(found) > 1 else found


def by_run(pairs: Iterable[Judged]) -> dict[str, list[Judged]]:
    """Pairs of one run are not independent."""
    found: dict[str, list[Judged]] = {}
    for pair in pairs:
        found.setdefault(pair.run, []).append(pair)
    return found


Unit = Callable[[float], str]


def number(value: float) -> str:
    """A loss."""
    return f"{round(value, 4) + 0.0:.4f}".replace("-", "−")


def in_points(value: float) -> str:
    """A score."""
    return two_digits(100 * value)


def two_digits(value: float) -> str:
    """Without a sign where it is 0 when rounded."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def over_runs(values: Mapping[str, Sequence[float]], unit: Unit) -> str:
    """The mean of the runs' means, with its interval where there are several runs."""
    found = mean_interval([statistics.fmean(own) for own in values.values()])
    if found.low is None or found.high is None:
        return unit(found.mean)
    return f"{unit(found.mean)} ({unit(found.low)} to {unit(found.high)})"


def counts(pairs: Sequence[Judged], unit: Unit) -> list[list[str]]:
    """By method and space how often an inner point is better, and how often there is a barrier."""
    lines = [["method", "space", "runs", "pairs", "inner chosen", f"better by {ERRORS} s.e.", "better", "worse",
              "mean gain (95 %)", f"barrier above {ERRORS} s.e.", "mean barrier (95 %)"]]  # fmt: skip
    for method, own in by_method(pairs).items():
        for where in dict.fromkeys(pair.space for pair in own):
            found = [pair for pair in own if pair.space == where]
            inner, runs = [pair for pair in found if pair.inner], by_run(found)
            figures = [len(runs), len(found), len(inner), sum(pair.shown for pair in inner),
                       sum(pair.gain > 0 for pair in inner), sum(pair.gain < 0 for pair in inner)]  # fmt: skip
            gain = over_runs({run: [pair.gain for pair in some] for run, some in runs.items()}, unit)
            rise = over_runs({run: [pair.barrier for pair in some] for run, some in runs.items()}, unit)
            barriers = sum(pair.has_barrier for pair in found)
            lines.append([method, where, *map(str, figures), gain, str(barriers), rise])
    return lines


def correlations(pairs: Sequence[Judged]) -> list[list[str]]:
    """Of each predictor with the gain and the barrier, over the pairs of all methods."""
    lines = [["predictor", "space", "pairs", "runs", "with the gain", "p", "with the barrier", "p"]]
    for name, title in PREDICTORS.items():
        for where in dict.fromkeys(pair.space for pair in pairs):
            known = [pair for pair in pairs if pair.space == where and pair.predictors[name] is not None]
            runs, cells = list(by_run(known).values()), list[str]()
            for outcome in ("gain", "barrier"):
                values = [(np.array([pair.predictors[name] for pair in own], dtype=np.float64),
                           np.array([getattr(pair, outcome) for pair in own])) for own in runs]  # fmt: skip
                rho, p = spearman(values)
                cells += ["–" if math.isnan(rho) else two_digits(rho), "–" if p is None else f"{p:.3f}"]
            lines.append([title, where, str(len(known)), str(len(runs)), *cells])
    return lines


def spearman(runs: Sequence[tuple[Floats, Floats]]) -> tuple[float, float | None]:
    """Spearman's correlation of the runs' pairs (predictors, outcomes), and its two-sided p.

    p: from other orders of the runs' outcomes, each run's as a whole, among runs of as many pairs. nan and None where
    one of the two is constant; None for one run.
    """
    runs = sorted(runs, key=lambda run: len(run[0]))
    if not runs or any(np.ptp(np.concatenate(side)) == 0 for side in zip(*runs, strict=True)):
        return math.nan, None
    predictor, outcome = (rankdata(np.concatenate(side)) for side in zip(*runs, strict=True))
    lengths = np.array([len(run[0]) for run in runs])
    blocks = np.split(outcome, np.cumsum(lengths)[:-1])

    def statistic(order: Any) -> float:
        moved = order[np.argsort(lengths[order], kind="stable")]
        return float(np.corrcoef(predictor, np.concatenate([blocks[run] for run in moved]))[0, 1])

    here = np.arange(len(runs))
    if len(runs) < 2:
        return statistic(here), None
    found = permutation_test((here,), statistic, permutation_type="pairings", vectorized=False,
                             n_resamples=PERMUTATIONS, random_state=0)  # fmt: skip
    return float(found.statistic), float(found.pvalue)


def factors_and_delta(pairs: Sequence[Judged], unit: Unit) -> list[list[str]]:
    """By method the paired differences between the two spaces; the head alone where no pair has both."""
    lines = [["method", "pairs", "gain (95 %)", "higher", "lower", "barrier (95 %)", "higher", "lower"]]
    places = {(pair.run, pair.pair): pair for pair in pairs if pair.space == "delta"}
    own = [pair for pair in pairs if pair.space == "factors" and (pair.run, pair.pair) in places]
    for method, found in by_method(own).items():
        cells = []
        for outcome in ("gain", "barrier"):
            differences = {
                run: [getattr(pair, outcome) - getattr(places[pair.run, pair.pair], outcome) for pair in some]
                for run, some in by_run(found).items()
            }
            every = [value for some in differences.values() for value in some]
            signs = [str(sum(value > 0 for value in every)), str(sum(value < 0 for value in every))]
            cells += [over_runs(differences, unit), *signs]
        lines.append([method, str(len(found)), *cells])
    return lines
