"""Choosing an adapter along a path: on replay memory and the current evaluation split, never on test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ilora.connectivity import files, paths, space
from ilora.connectivity.landscape import Landscape, PointScores, average, gain, limited, open_landscape
from ilora.connectivity.sources import Origins, Pair, Source
from ilora.data.digests import fingerprint
from ilora.data.encoding import Encoder
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.evaluation.scoring import EvaluationSet
from ilora.model.load import load_tokenizer
from ilora.progress import Display
from ilora.training.checkpoint import load_latest
from ilora.training.processes import by_first, joined, on_main, refuse_unshared

MEMORY = "memory"  # the name of the split with a task's rows in the replay memory


def remembered(run: Path, tasks: Sequence[Task]) -> list[Task]:
    """The tasks with one more split, `memory`: their training rows in the run's replay memory.

    Raises InputError where it holds none of a task's rows.
    """
    checkpoint, _ = load_latest(run / "checkpoints")
    kept = checkpoint.values["memory"]["rows"] if checkpoint else []
    found = []
    for task in tasks:
        numbers = sorted({int(key.rpartition("/")[2]) for name, key in kept if name == task.name})
        if not numbers:
            raise InputError(
                f"{run}: the replay memory holds no row of task '{task.name}', so the choice would not see this task; "
                "take a run of a method with a memory"
            )
        rows = [task.rows["train"][number] for number in numbers]
        found.append(replace(task, rows={**task.rows, MEMORY: rows}))
    return found


def select(
    source: Source, pair: Pair, out: Path, *, kind: str, where: str, points: int, rows: int | None, quiet: bool = False
) -> dict[str, Any]:
    """The point with the highest mean score on old tasks' memory and the new task's eval split (then lowest loss).

    Writes what it gains over both ends on the test split, which had no part in the choice, and the adapter as a PEFT
    folder `out/selected-<pair>-<path>`. One that is there already comes back. Raises InputError without replay memory,
    an eval split, or where the file was made from something else.
    """
    assert source.run is not None  # the caller has refused anything else
    if kind in paths.BENT:
        raise InputError(
            f"--select goes along factors, delta or spherical: of the old tasks it sees the replay memory alone, and "
            f"the bend of a {kind} would be trained on the same rows that then choose the point"
        )
    curve, ts = paths.make_path(kind, pair.ends, space=where), paths.grid(points)
    name = f"{pair.name}-{curve.name}"
    folder, file = out / f"selected-{name}", out / f"selection-{name}.json"
    chosen_on = [(task, MEMORY) for task in remembered(source.run, fitting(source, pair.old))]
    chosen_on += [(limited(task, "eval", rows), "eval") for task in pair.new]
    tests = [limited(task, "test", rows) for task in pair.tasks]
    used = [task for task, _ in chosen_on] + tests
    made_from = Origins(source.config).of(pair.ends, pair.tasks, {"points": points, "rows": rows})
    made_from["rows"] = [fingerprint(task) for task in used]  # of memory, eval and test, as limited
    accelerator = joined()
    refuse_unshared(accelerator, out)
    result = by_first(accelerator, lambda: _earlier(file, folder, made_from))
    if result is None:
        result = _selection(source, pair, curve, ts, chosen_on, tests, quiet=quiet) | {"made_from": made_from}
        result["adapter"] = folder.name
        on_main(accelerator, partial(files.save, file, result))
    chosen = curve.at(result["t"])
    chosen = replace(chosen, base=chosen.base or source.config.model.name)
    if not by_first(accelerator, folder.exists):
        on_main(accelerator, lambda: space.write(chosen, folder))
    return {**result, "folder": folder}


def _earlier(file: Path, folder: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier selection of the same origin; None: there is none. Raises InputError where its place is taken."""
    result = files.earlier(file, made_from)
    if result is None and folder.exists():
        raise InputError(f"{folder}: exists, without its selection-*.json; --out names another folder")
    return result


def fitting(source: Source, tasks: Sequence[Task]) -> list[Task]:
    """The tasks as the run trained on them: rows are numbered without those that `data.too_long: drop` left out."""
    if source.config.data.too_long == "error":
        return list(tasks)
    encoder = Encoder(load_tokenizer(source.config.model), source.config.data)
    return [encoder.fitting(task) for task in tasks]


def _selection(
    source: Source,
    pair: Pair,
    curve: paths.Curve,
    ts: Sequence[float],
    chosen_on: Sequence[tuple[Task, str]],
    tests: Sequence[Task],
    *,
    quiet: bool,
) -> dict[str, Any]:
    labels = [task.label for task in pair.tasks]
    with Display(quiet=quiet or not joined().is_main_process) as display:
        landscape = open_landscape(source.config, [], pair.ends, split="test")
        sets = [landscape.encoded(task, split) for task, split in chosen_on]
        found = _evaluated(landscape, sets, [curve.at(t) for t in ts], display, title=f"choosing on {pair.name}")
        means = [average(scores, labels) for scores in found]
        best = max(range(len(ts)), key=lambda n: (means[n]["score"], -means[n]["loss"]))
        three = [pair.ends[0], curve.at(ts[best]), pair.ends[1]]
        tested = [landscape.encoded(task, "test") for task in tests]
        scores_on_test = _evaluated(landscape, tested, three, display, title="testing it", exact=(0, 1, 2))
    return {
        "kind": "selection",
        "complete": True,
        "ends": [{"label": end.label} for end in pair.ends],
        "path": curve.kind,
        "space": curve.space,
        "t": ts[best],
        "chosen_on": {data.task.label: {"split": data.split, "n": len(data.examples)} for data in sets},
        "choice": [{"t": t, **values} for t, values in zip(ts, means, strict=True)],
        "test": {
            name: {**average(scores, labels), "tasks": {label: scores[label].summary() for label in labels}}
            for name, scores in zip(("t=0", "selected", "t=1"), scores_on_test, strict=True)
        },
        "gain": {f"over_{t}": gain(scores_on_test[1], scores_on_test[n], labels) for t, n in ((0, 0), (1, 2))},
    }


def _evaluated(
    landscape: Landscape,
    sets: Sequence[EvaluationSet],
    points: Sequence[space.Adapter],
    display: Display,
    *,
    title: str,
    exact: Sequence[int] = (),
) -> list[PointScores]:
    with display.bar(title, len(points) * sum(len(data.examples) for data in sets)) as bar:
        return landscape.evaluate(points, exact=exact, sets=sets, advance=bar.advance)
