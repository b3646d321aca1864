"""How often is a point between two adjacent minima better than both? Every pair of many runs, one line a pair.

python bench/minima.py PLACE... --out minima.jsonl [--only PATTERN ...] [--rows 50] [--old previous] [--scores]
python bench/minima.py --table minima.jsonl...

PLACE is a finished run or a folder of runs, such as a sweep; runs in it that are not finished are left out with a
message. Of each run the answering adapter after every task is joined with that after the next one, in `factors` and in
`delta`. At 11 points the loss (with --scores also the score) of at most --rows rows of each task is measured. --old all
takes every task learnt so far, since the question is what a point does to all of them. --old previous takes the last
two alone: 2T - 2 instead of T(T + 1)/2 - 1 readings of a task in a stream of T tasks. What the point does to the tasks
before is not seen then.

Pairs that are in --out are skipped, so that a call that was killed goes on. One process writes a file at a time;
--table takes several files. docs/connectivity.md says what its columns mean.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from minima_tables import LEAST_ROWS, SCHEMA, Json, read_lines, tables

from ilora.comparison.folders import read_folder, run_folders
from ilora.comparison.run import Run
from ilora.connectivity import paths, similarity, space
from ilora.connectivity.jobs import sets_of
from ilora.connectivity.landscape import Landscape, PointScores, limited, open_landscape
from ilora.connectivity.sources import ADJACENT, Origins, Pair, Source, from_run
from ilora.connectivity.space import Adapter
from ilora.data.task import Phase, Task
from ilora.errors import IloraError, InputError
from ilora.evaluation.scoring import EvaluationSet
from ilora.files import append_line, write_atomic
from ilora.results.reader import read_results

DIGITS = 4  # of a row's loss or score
CKA_ROWS = 64  # of a task, at most


def runs_of(places: Sequence[Path], only: Sequence[str]) -> list[Run]:
    """The finished runs in or below the places. Raises InputError where one cannot be measured, or two share a name."""
    found: dict[str, Run] = {}
    for place in places:
        for folder in run_folders(place):
            run = read_folder(folder, place)
            if isinstance(run, str):
                print(f"{folder}: left out ({run})", file=sys.stderr)
                continue
            if only and not any(PurePosixPath(run.name).match(pattern) for pattern in only):
                continue
            if (other := found.setdefault(run.name, run)) is not run:
                raise InputError(f"{other.place} and {run.place} are both called {run.name}: name the folders above")
    if not found:
        raise InputError(f"{', '.join(map(str, places))}: no finished run{' that fits --only' if only else ''}")
    for run in found.values():
        refuse_missing(run)
    return list(found.values())


def refuse_missing(run: Run) -> None:
    """Raises InputError for a run without the answering adapter after every task, or of one task."""
    folder, answering = Path(run.place), run.results["answers_with"]
    names = read_results(folder)["phases"]
    labels = [Phase(number, str(name), ()).label for number, name in enumerate(names, 1)]
    missing = [label for label in labels if not (folder / "adapters" / label / answering).is_dir()]
    if missing:
        raise InputError(
            f"{folder}: no adapter '{answering}' after {', '.join(missing)}; the answering adapter after every task is "
            "needed (`keep.adapters` answering or all). --only leaves the run out"
        )
    if len(labels) < 2:
        raise InputError(f"{folder}: one phase, so there are no adjacent minima. --only leaves the run out")


def pairs_of(source: Source, run: Run) -> list[Pair]:
    """The adjacent minima of the answering adapter. Raises InputError where rows of them were deleted."""
    variant = f"/{run.results['answers_with']}"
    found = [pair for pair in source.pairs if pair.between == ADJACENT and pair.ends[1].label.endswith(variant)]
    for pair in found:
        if not (pair.old and pair.new):
            raise InputError(f"{run.place}: no rows of the old or the new task of {pair.name}. --only leaves it out")
    return found


def tasks_of(pair: Pair, old: str) -> tuple[Task, ...]:
    """Those to measure: every old task or the one before, then the new one."""
    return (*(pair.old if old == "all" else pair.old[-1:]), *pair.new)


class Measuring:
    """The pairs of one run; the model is loaded when the first one is asked for."""

    def __init__(self, run: Run, settings: Json) -> None:
        self.run, self.settings = run, settings
        self.source = from_run(Path(run.place), pairs="all")
        self.split, self.pairs = self.source.config.evaluation.split, pairs_of(self.source, run)
        every = {task.label: task for pair in self.pairs for task in tasks_of(pair, settings["old"])}
        self.tasks = {label: limited(task, self.split, settings["rows"]) for label, task in every.items()}
        self._origins = Origins(self.source.config)
        self._landscape: Landscape | None = None

    def head(self, pair: Pair) -> Json:
        """Which pair it is, and the digest of what its line is made from."""
        tasks = [self.tasks[task.label] for task in tasks_of(pair, self.settings["old"])]
        named = {"method": self.run.label, "order": list(self.run.order), "seed": self.run.seed}
        origin = self._origins.of(pair.ends, tasks, {**self.settings, "split": self.split}) | named
        text = json.dumps(origin, sort_keys=True)
        return {
            "schema": SCHEMA,
            "run": self.run.name,
            **named,
            "pair": [end.label for end in pair.ends],
            "new": [task.label for task in pair.new],
            "settings": self.settings,
            "made_from": hashlib.sha256(text.encode()).hexdigest(),
        }

    def line(self, pair: Pair) -> Json:
        """The pair's losses (and scores), by space, task, point and row, and what may predict them."""
        began = time.perf_counter()
        landscape = self.landscape()
        sets = sets_of(landscape, tasks_of(pair, self.settings["old"]))
        profiles = profiles_of(landscape, pair, sets, self.settings)
        keys = ("losses", "scores") if self.settings["scores"] else ("losses",)
        texts = {one.task.label: similarity.sampled(one.examples, CKA_ROWS, task=one.task.label) for one in sets}
        layers = similarity.cka_by_layer(landscape, *pair.ends, texts)
        return {
            **self.head(pair),
            "cka": mean_of(layer["cka"] for layer in layers),
            "cka_debiased": mean_of(layer["cka_debiased"] for layer in layers),
            "distance": relative_distance(*pair.ends),
            **{key: {where: by_task(points, key) for where, points in profiles.items()} for key in keys},
            "seconds": round(time.perf_counter() - began, 1),
        }

    def landscape(self) -> Landscape:
        """The run's model with all tasks. Raises InputError where a task has too few rows to be halved."""
        if self._landscape is None:
            ends = [end for pair in self.pairs for end in pair.ends]
            self._landscape = open_landscape(self.source.config, list(self.tasks.values()), ends, split=self.split)
            for data in self._landscape.sets:
                if len(data.examples) < LEAST_ROWS:
                    raise InputError(
                        f"{self.run.place}: task '{data.task.name}' has {len(data.examples)} rows of {self.split}; at "
                        f"least {LEAST_ROWS} are needed, since each half needs a standard error"
                    )
        return self._landscape


def profiles_of(
    landscape: Landscape, pair: Pair, sets: Sequence[EvaluationSet], settings: Json
) -> dict[str, list[PointScores]]:
    """By space the points of the straight path. The ends, which the spaces share, are measured once.

    Every point is read in the same way, the ends as well: rounding then differs between no two of them.
    """
    inner = paths.grid(settings["points"])[1:-1]
    spaces = space.common_spaces(pair.ends)
    curves = [paths.make_path("linear", pair.ends, space=where) for where in spaces]
    points = [pair.ends[0], *(curve.at(t) for curve in curves for t in inner), pair.ends[1]]
    first, *between, last = landscape.evaluate(points, sets=sets, scored=settings["scores"])
    size = len(inner)
    return {where: [first, *between[n * size : (n + 1) * size], last] for n, where in enumerate(spaces)}


def by_task(points: Sequence[PointScores], key: str) -> dict[str, list[list[float]]]:
    """For each task (points, rows)."""
    return {
        task: [[round(value, DIGITS) for value in getattr(point[task], key)] for point in points] for task in points[0]
    }


def mean_of(values: Any) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def relative_distance(first: Adapter, second: Adapter) -> float | None:
    """‖ΔW₁ − ΔW₀‖ by the mean of both norms; None where neither changes anything."""
    norms = sum(math.sqrt(space.inner(one, one, space="delta")) for one in (first, second))
    return 2 * similarity.distance(first, second, space="delta") / norms if norms else None


def earlier(out: Path, settings: Json) -> list[Json]:
    """What the file holds, without a last line that was cut off. Raises InputError where it has other settings."""
    if not out.exists():
        return []
    lines, whole = read_lines([out])
    if lines and lines[0]["settings"] != settings:
        was = " ".join(f"{key}={value}" for key, value in lines[0]["settings"].items())
        raise InputError(f"{out}: was measured with {was}; name another file, or give the same options")
    if not whole:
        write_atomic(out, "".join(out.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[:-1]))
    return lines


def measure(runs: Sequence[Run], settings: Json, out: Path) -> None:
    """Append a line for each pair that has none."""
    there = {(line["run"], *line["pair"]): line["made_from"] for line in earlier(out, settings)}
    known = set(there.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs, 1):
        measuring = Measuring(run, settings)
        for pair in measuring.pairs:
            head = measuring.head(pair)
            if head["made_from"] in known:
                continue
            if (run.name, *head["pair"]) in there:
                raise InputError(f"{out}: holds {run.name} {pair.name}, made from something else; name another file")
            line = measuring.line(pair)
            append_line(out, json.dumps(line, ensure_ascii=False, allow_nan=False))
            known.add(line["made_from"])
            print(f"run {number} of {len(runs)}, {run.name} {pair.name}: {line['seconds']:.0f} s", flush=True)


def main() -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", type=Path, metavar="PLACE")
    parser.add_argument("--out", type=Path, default=Path("minima.jsonl"))
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--points", type=int, default=11)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--old", choices=("all", "previous"), default="all")
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE")
    args = parser.parse_args()
    if bool(args.places) == bool(args.table):
        parser.error("give places to measure, or --table with files")
    try:
        if args.table:
            print(tables(read_lines(args.table)[0]), end="")
            return
        if args.points < 3 or args.rows < LEAST_ROWS:
            raise InputError(f"--points must be at least 3 and --rows at least {LEAST_ROWS}")
        settings = {key: getattr(args, key) for key in ("points", "rows", "old", "scores")}
        measure(runs_of(args.places, args.only), settings, args.out)
    except InputError as error:
        parser.error(str(error))
    except IloraError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
