"""`ilora evaluate`: score an adapter of a run, or a point between two of them, on any tasks."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilora.config import Config
from ilora.connectivity import files, paths, space
from ilora.connectivity.landscape import limited, open_landscape
from ilora.connectivity.sources import Origins, Pair, data_of, digest, file_name, from_run, pair_of, read_run
from ilora.connectivity.space import Adapter
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.evaluation import scoring
from ilora.files import write_atomic
from ilora.progress import Display
from ilora.results.matrix import standard_error
from ilora.stream import load_tasks
from ilora.training.processes import by_first, joined, on_main, refuse_unshared

SCHEMA = 1


def evaluate_adapter(
    run: Path,
    *,
    at: float | None = None,
    between: str = "adjacent",
    path: tuple[str, str] = ("linear", "factors"),
    data: Path | None = None,
    split: str | None = None,
    rows: int | None = None,
    out: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Predict and score every row, by the run's own evaluation code, into a new folder (default RUN/evaluations/...).

    at: t between the run's last pair of adapters; None: the adapter that answers. data: as in `data_of`; None: the
    run's tasks. split: None: the run's. The folder appears when it is complete; one of the same adapter, rows and
    settings is read back. Raises InputError, with nothing written, where something does not fit.
    """
    config, tasks, results = read_run(run)
    adapter, name = _chosen(run, results, at=at, between=between, path=path)
    if data is not None:
        config, tasks = _elsewhere(config, data)
    split = split or config.evaluation.split
    replaced = {task.replaces for task in tasks}
    tasks = [limited(task, split, rows) for task in tasks if not task.forgotten and task.name not in replaced]
    if not tasks:
        raise InputError(f"{run}: the rows of all its tasks were deleted; --data names others")
    of = "-".join(["", file_name(data.resolve().name)] if data is not None else [""])
    folder = out or run / "evaluations" / f"{name}{of}-{split}"
    made_from = Origins(config).of([adapter], tasks, {"split": split})
    accelerator = joined()
    refuse_unshared(accelerator, folder)
    earlier = by_first(accelerator, lambda: _earlier(folder, made_from) if folder.exists() else None)
    if earlier is not None:
        return {**earlier, "folder": folder}
    records = _predict(config, tasks, adapter, split=split, quiet=quiet)
    summary = {
        "schema": SCHEMA,
        "adapter": adapter.label,
        "t": at,
        "split": split,
        "tasks": {task.label: _summary(task, records[task.label]) for task in tasks},
        "made_from": made_from,
    }
    on_main(accelerator, lambda: _write(folder, summary, records))
    return {**summary, "folder": folder}


def _earlier(folder: Path, made_from: dict[str, Any]) -> dict[str, Any]:
    """The scores of a folder of the same origin. Raises InputError for any other."""
    file = folder / "scores.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("made_from") != json.loads(json.dumps(made_from)):
        raise InputError(f"{folder}: exists already, made from something else; --out names another folder")
    return content


def _write(folder: Path, summary: dict[str, Any], records: dict[str, list[dict[str, Any]]]) -> None:
    """The folder, complete or not there."""
    scratch = folder.with_name(f".{folder.name}-writing")
    shutil.rmtree(scratch, ignore_errors=True)
    for label, found in records.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in found)
        write_atomic(scratch / f"{label}.jsonl", "".join(lines))
    write_atomic(scratch / "scores.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    scratch.rename(folder)


def _chosen(
    run: Path, results: dict[str, Any], *, at: float | None, between: str, path: tuple[str, str]
) -> tuple[Adapter, str]:
    """The adapter, and what its evaluation is called in file names."""
    if at is None:
        if not results["adapter"]:
            raise InputError(f"{run}: method {results['method']} leaves no adapter to evaluate")
        adapter = space.read(run / results["adapter"], label=str(results["adapter"]).removeprefix("adapters/"))
        return adapter, file_name(adapter.label)
    paths.check_t(at)
    kind, where = path
    pair = pair_of(from_run(run, pairs="last"), between)
    curve = paths.make_path(kind, pair.ends, space=where)
    if kind in paths.BENT:
        curve = curve.bent(_kept_bend(run, pair, curve))
    return curve.at(at), f"{pair.name}-{kind}-{where}-t{at:g}"


def _kept_bend(run: Path, pair: Pair, curve: paths.Curve) -> Adapter:
    """The bend that `ilora connect` has trained between these very ends. Raises InputError where there is none."""
    name = f"{pair.name}-{curve.name}"
    file = run / "connectivity" / f"path-{name}.json"
    result = files.load(file) if file.is_file() else None
    with files.reading(file):
        ends = {end.label: digest(end) for end in pair.ends}
        if result is None or not result["bend"] or result["made_from"]["adapters"] != ends:
            raise InputError(
                f"path {curve.kind}: no trained bend between {pair.ends[0].label} and {pair.ends[1].label}; "
                f"`ilora connect {run} --paths {curve.kind}:{curve.space}` trains one"
            )
        return space.read(run / "connectivity" / result["bend"]["adapter"], label="bend")


def _elsewhere(config: Config, data: Path) -> tuple[Config, list[Task]]:
    """The run's own settings with other rows."""
    other = data_of(data, config.model.name)
    return config, load_tasks(other.data)


def _predict(
    config: Config, tasks: Sequence[Task], adapter: Adapter, *, split: str, quiet: bool
) -> dict[str, list[dict[str, Any]]]:
    with Display(quiet=quiet or not joined().is_main_process) as display:
        display.say(f"evaluate: loading {config.model.name}")
        landscape = open_landscape(config, tasks, [adapter], split=split)
        landscape.use(adapter)
        found = {}
        with display.bar(f"evaluating {adapter.label}", sum(len(data.examples) for data in landscape.sets)) as bar:
            for data in landscape.sets:
                found[data.task.label] = scoring.evaluate(
                    data,
                    landscape.engine,
                    landscape.encoder,
                    batch_size=config.evaluation.batch_size,
                    advance=bar.advance,
                )
    return found


def _summary(task: Task, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scores = [record["score"] for record in records]
    mean = statistics.fmean(scores)
    return {"metric": task.metric, "n": len(scores), "score": mean, "score_se": standard_error(scores)}
