"""The stream: which tasks a configuration names, where their rows come from, and in which phases they are trained."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ilora.benchmarks import BENCHMARKS, Stream
from ilora.config import Config
from ilora.data import formats
from ilora.data.duplicates import deduplicated
from ilora.data.rows import Selection
from ilora.data.task import SPLITS, Row, Task, task_label
from ilora.errors import InputError
from ilora.metrics.metrics import METRICS, check_references, infer_task
from ilora.registry import did_you_mean
from ilora.settings import DataConfig, LimitConfig, TaskConfig


def load_tasks(config: DataConfig) -> list[Task]:
    """All tasks in stream order, checked. Raises InputError naming the file, row or task."""
    tasks = []
    for task in read_tasks(config):
        for split in task.rows:
            check_references(task, split)
        tasks.append(task)
    return tasks


def read_tasks(config: DataConfig) -> Iterator[Task]:
    """The tasks one by one, whatever their answers. Raises InputError naming the file, row or task."""
    return (prepared(read(), config) for _, read in readers(config))


def readers(config: DataConfig, *, whole: bool = False) -> list[tuple[str, Callable[[], Task]]]:
    """The name of every task, and what reads its rows, before repeated ones are dropped (`prepared` does).

    whole: all rows, as if there were no limit. Raises InputError for a source that names no tasks.
    """
    source = _source(config)
    wanted = config.tasks or [TaskConfig(name=name) for name in source.names]
    refuse_duplicates([task.name for task in wanted])

    def reader(chosen: TaskConfig) -> Callable[[], Task]:
        return lambda: _with_settings(_load(chosen, config, source, whole=whole), chosen)

    return [(chosen.name, reader(chosen)) for chosen in wanted]


def prepared(task: Task, config: DataConfig) -> Task:
    """The task with the rows that a run works on: without repeated ones where so configured, and within the limit."""
    return _limited(deduplicated(task) if config.deduplicate else task, config.limit)


def resolve(config: Config, tasks: list[Task]) -> Config:
    """The configuration with its stream spelled out and its paths absolute: what a resume months later needs."""
    from ilora.model.load import absolute  # here, so that reading a stream does not import transformers

    chosen = config.data.tasks or [TaskConfig(name=task.name) for task in tasks]
    placed = [_absolute(task) for task in chosen]
    data = {"tasks": placed, "path": config.data.path.absolute() if config.data.path else None}
    text = config.evaluation.perplexity_file
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"name": absolute(config.model.name)}),
            "data": config.data.model_copy(update=data),
            "evaluation": config.evaluation.model_copy(update={"perplexity_file": text.absolute() if text else None}),
        }
    )


def _absolute(task: TaskConfig) -> TaskConfig:
    update: dict[str, Path | str] = {
        key: path.absolute() for key in ("path", *SPLITS) if (path := getattr(task, key)) is not None
    }
    if task.dataset is not None and Path(task.dataset).is_dir():
        update["dataset"] = str(Path(task.dataset).absolute())
    return task.model_copy(update=update)


def fingerprint(task: Task) -> str:
    """SHA-256 of everything about a task that a result depends on."""
    rows = {split: _plain(task.rows[split]) for split in task.rows}
    return _digest([task.name, rows, task.metric, task.choices, task.scoring, task.max_new_tokens, task.frame])


def training_digest(task: Task) -> str:
    """SHA-256 of a task's training rows: two runs are compared only if they learnt from the same ones."""
    return _digest(_plain(task.rows["train"]))


def _plain(rows: Sequence[Row]) -> list[Any]:
    return [[row.prompt, row.answer, [dict(turn) for turn in row.messages]] for row in rows]


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Source:
    """Where a task is looked up by its name: a benchmark, a folder, or nowhere. `names`: all of its tasks in order.

    own: whether `read` also takes a known task from a place of its own.
    """

    names: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    read: Callable[[TaskConfig], Task] | None = None
    own: bool = False


def _source(config: DataConfig) -> _Source:
    if config.benchmark is None:
        if config.path is None or config.tasks is not None:
            return _Source()
        return _Source(tuple(formats.list_task_folders(config.path)))
    benchmark = BENCHMARKS[config.benchmark]
    if isinstance(benchmark, Stream):
        if config.path is not None and not config.path.is_dir():
            raise InputError(f"{config.path}: no such folder; expected one with a folder for each task")
        read = benchmark.read
        return _Source(benchmark.tasks, benchmark.known, lambda task: read(task, config.path, config.resplit), own=True)
    if config.path is not None or config.resplit:
        given = "path" if config.path is not None else "resplit"
        raise InputError(f"data.{given}: the benchmark {config.benchmark} makes its own rows; leave it out")
    sizes = {split: size for split in SPLITS if (size := getattr(config.limit, split)) is not None}
    made = {task.name: task for task in benchmark(**sizes)}
    return _Source(tuple(made), tuple(made), lambda task: made[task.name])


def _load(chosen: TaskConfig, config: DataConfig, source: _Source, *, whole: bool) -> Task:
    """The task with its rows, wherever they are. Metric and choices are inferred, unless its source knows them."""
    task_label(chosen.name)  # refuses a name that could leave the run folder, before any path is made of it
    if source.read is not None and chosen.name in source.known and (source.own or not chosen.placed):
        return source.read(chosen)
    if config.resplit:
        raise InputError(
            f"data.resplit: only a benchmark's rows can be split again; task '{chosen.name}' is not of one"
        )
    # Only the rows of the limit are kept while reading, unless repeated ones are to be dropped before.
    sizes = {split: None if config.deduplicate or whole else getattr(config.limit, split) for split in SPLITS}
    selections = {split: Selection(f"limit/{chosen.name}/{split}", sizes[split]) for split in SPLITS}
    rows, place = _read(chosen, config, source, selections)
    metric, choices = infer_task(selections["train"].answers)
    return Task(chosen.name, rows, metric=metric, choices=choices, source=place)


def _read(
    chosen: TaskConfig, config: DataConfig, source: _Source, selections: Mapping[str, Selection]
) -> tuple[dict[str, list[Row]], str]:
    """The rows of a task that is of no benchmark, and their place."""
    if chosen.path is not None:
        rows = formats.read_folder(chosen.path, columns=chosen.columns, selections=selections)
        return rows, str(chosen.path)
    if chosen.train is not None:
        files = {split: path for split in SPLITS if (path := getattr(chosen, split)) is not None}
        found = {
            split: formats.read_rows(path, columns=chosen.columns, selection=selections[split])
            for split, path in files.items()
        }
        return found, str(chosen.train)
    if chosen.dataset is not None:
        return _from_hub(chosen, selections), chosen.dataset
    if source.read is None and config.path is not None:
        return _from_folder(chosen, config.path, selections), str(config.path / chosen.name)
    known = ", ".join(source.known) or "none: give the task a path, files or a dataset"
    raise InputError(f"unknown task '{chosen.name}'{did_you_mean(chosen.name, list(source.known))}; known: {known}")


def _from_folder(chosen: TaskConfig, path: Path, selections: Mapping[str, Selection]) -> dict[str, list[Row]]:
    known = formats.list_task_folders(path)
    if chosen.name not in known:
        near = did_you_mean(chosen.name, known)
        raise InputError(f"{path}: no task '{chosen.name}'{near}; there are {', '.join(known)}")
    return formats.read_folder(path / chosen.name, columns=chosen.columns, selections=selections)


def _from_hub(chosen: TaskConfig, selections: Mapping[str, Selection]) -> dict[str, list[Row]]:
    assert chosen.dataset is not None
    return {
        split: formats.read_hub(
            chosen.dataset,
            subset=chosen.subset,
            split=theirs,
            columns=chosen.columns,
            revision=chosen.revision,
            selection=selections[split],
        )
        for split, theirs in chosen.splits.items()
    }


def _with_settings(task: Task, chosen: TaskConfig) -> Task:
    """The task with the configured metric, choices and scoring. Choices without a metric mean accuracy."""
    choices = tuple(chosen.choices) if chosen.choices is not None else task.choices
    task = replace(
        task,
        metric=chosen.metric or ("accuracy" if chosen.choices is not None else task.metric),
        choices=choices,
        scoring=chosen.scoring if chosen.scoring != "generate" else task.scoring,
        max_new_tokens=chosen.max_new_tokens or task.max_new_tokens,
        frame=chosen.frame if any(chosen.frame) else task.frame,
    )
    if task.scoring == "rank" and not task.choices:
        raise InputError(f"task '{task.name}': scoring: rank needs `choices`")
    METRICS[task.metric]
    return task


def _limited(task: Task, limit: LimitConfig) -> Task:
    """At most `limit` rows a split, in their order: a random subset that depends on the task and split only."""
    rows = dict(task.rows)
    for split in rows:
        size = getattr(limit, split)
        if size is not None and size < len(rows[split]):
            kept = sorted(random.Random(f"limit/{task.name}/{split}").sample(range(len(rows[split])), size))
            rows[split] = [rows[split][index] for index in kept]
    return replace(task, rows=rows)


def refuse_duplicates(names: list[str]) -> None:
    """Raises InputError where two tasks have the same name, upper and lower case aside."""
    seen: dict[str, str] = {}
    for name in names:
        label = task_label(name)
        if label in seen:
            raise InputError(
                f"duplicate task names '{seen[label]}' and '{name}': each task needs a name of its own (case aside)"
            )
        seen[label] = name
