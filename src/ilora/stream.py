"""The stream: which tasks a configuration names, where their rows come from, and in which phases they are trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ilora.benchmarks import BENCHMARKS, Stream
from ilora.config import Config
from ilora.data import duplicates, formats
from ilora.data.chat import every_turn
from ilora.data.duplicates import deduplicated
from ilora.data.notes import reading_words
from ilora.data.rows import Selection
from ilora.data.split import split_off, stays_in_train
from ilora.data.stored import gathered, like
from ilora.data.task import SPLITS, Row, Task, name_after, task_label
from ilora.errors import InputError
from ilora.metrics.metrics import METRICS, check_references, infer_task
from ilora.model.names import absolute
from ilora.present.numbers import plain
from ilora.registry import did_you_mean
from ilora.settings import DataConfig, LimitConfig, TaskConfig

REPLACE = ". New rows in place of its old ones: `ilora add RUN --replace TASK ROWS`"
BEFORE = "before"  # the rows of `data.start_rows`, among those of the tasks


def load_tasks(config: DataConfig) -> list[Task]:
    """All tasks in stream order, checked. Raises InputError naming the file, row or task."""
    return [checked(task, config) for task in read_tasks(config)]


def checked(task: Task, config: DataConfig) -> Task:
    """The task with a training row for every turn that is to be trained.

    Raises InputError naming a row whose last answer the metric cannot judge.
    """
    for split in task.rows:
        check_references(task, split)
    if config.train_on == "last":
        return task
    held_out = {duplicates.key(row) for split in task.rows if split != "train" for row in task.rows[split]}
    found = (
        turn
        for row in task.rows["train"]
        for turn in every_turn(row)
        if turn is row or (duplicates.key(turn) not in held_out and stays_in_train(turn, task, config.split))
    )
    turns = gathered(found, config.rows_in_memory)
    return replace(task, rows={**task.rows, "train": turns})


def rows_before(config: DataConfig) -> Task | None:
    """The rows of `data.start_rows` as a task of their own; None without any. Raises InputError naming file and row."""
    if config.start_rows is None:
        return None
    if any(task_label(task.name) == BEFORE for task in config.tasks or []):
        raise InputError(f"data.start_rows: its rows are the task '{BEFORE}'; give the task of that name another one")
    rows = [
        row
        for path in formats.task_files(config.start_rows).get("train", [])
        for row in formats.read_rows(path, columns=config.columns, marker=config.marker, unanswered=config.unanswered)
    ]
    if config.train_on == "assistant":
        rows = [turn for row in rows for turn in every_turn(row)]
    return Task(BEFORE, {"train": rows}, source=str(config.start_rows))


def read_tasks(config: DataConfig) -> Iterator[Task]:
    """The tasks one by one, whatever their answers. Raises InputError naming the file, row or task."""
    return (prepared(read(), config) for _, read in readers(config))


def refuse_missing(config: Any) -> None:
    """Raises InputError where a task's name or a place that the sections name cannot be, before any row is read."""
    tasks, path = config.data.tasks or [], config.data.path
    refuse_duplicates([task.name for task in tasks])
    for task in tasks:
        for key in ("path", *SPLITS):
            place = getattr(task, key)
            if place is not None and not place.exists():
                raise InputError(f"task '{task.name}', {key}: {place}: no such file or folder")
    if path is not None and not path.exists() and not (tasks and all(task.placed for task in tasks)):
        raise InputError(f"data.path: {path}: no such file or folder")
    start = config.adapter.start_from
    if start is not None and not (start / "adapter_config.json").is_file():
        raise InputError(f"adapter.start_from: {start}: not a PEFT adapter folder (no adapter_config.json in it)")
    if config.data.start_rows is not None and not config.data.start_rows.exists():
        raise InputError(f"data.start_rows: {config.data.start_rows}: no such file or folder")
    text = config.evaluation.perplexity_file
    if text is not None and not text.is_file():
        raise InputError(f"evaluation.perplexity_file: {text}: no such file")


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
    """The task with a test split, without repeated rows where so configured, and with the rows of the limit."""
    task = split_off(task, config.split)
    return _limited(deduplicated(task) if config.deduplicate else task, config.limit)


def reading_notes(task: Task) -> list[tuple[str, str]]:
    """What was decided while reading a task, each with its level: its name, and `reading_words`."""
    place, notes = Path(task.source), reading_words(task.read_as, task.split_off)
    if task.source and place.exists() and task.name not in (place.name, place.stem) and task.name == name_after(place):
        made = f"this name was made of {plain(place.name)}, which has characters that a task's may not"
        return [("note", made), *notes]
    return notes


def reading_lines(tasks: Sequence[Task]) -> list[str]:
    """`reading_notes` of every task, for the start of a run."""
    return [
        f"{'warning: ' if level == 'warning' else ''}{task.name}: {text}"
        for task in tasks
        for level, text in reading_notes(task)
    ]


def resolve(config: Config, tasks: list[Task]) -> Config:
    """The configuration with its stream spelled out and its paths absolute: what a resume months later needs."""
    chosen = config.data.tasks or [TaskConfig(name=task.name) for task in tasks]
    return placed(config.model_copy(update={"data": config.data.model_copy(update={"tasks": chosen})}))


def placed(config: Config) -> Config:
    """The configuration with absolute places."""
    tasks = [_absolute(task) for task in config.data.tasks] if config.data.tasks else None
    data: dict[str, Any] = {"tasks": tasks, "path": config.data.path.absolute() if config.data.path else None}
    text, rows, start = config.evaluation.perplexity_file, config.data.start_rows, config.adapter.start_from
    data["start_rows"] = rows.absolute() if rows else None
    adapter = config.adapter.model_copy(update={"start_from": start.absolute() if start else None})
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"name": absolute(config.model.name)}),
            "adapter": adapter,
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
        return _Source(tuple(formats.task_places(config.path)))
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
    if chosen.forgotten:
        return Task(chosen.name, {split: [] for split in SPLITS}, forgotten=chosen.forgotten)
    if source.read is not None and chosen.name in source.known and (source.own or not chosen.placed):
        return source.read(chosen)
    if config.resplit:
        raise InputError(
            f"data.resplit: only a benchmark's rows can be split again; task '{chosen.name}' is not of one"
        )
    files, place = _files(chosen, config, source)
    there = chosen.splits if files is None else files
    # Only the rows of the limit are kept while reading, unless repeated ones are dropped or other splits taken first.
    every = whole or config.deduplicate or "test" not in there or bool(config.split.eval)
    selections = {
        split: Selection(
            f"limit/{chosen.name}/{split}", None if every else getattr(config.limit, split), config.rows_in_memory
        )
        for split in SPLITS
    }
    rows = _read(chosen, config, files, selections)
    metric, choices = infer_task(selections["train"].answers)
    read_as = "; ".join(dict.fromkeys(form for selection in selections.values() for form in selection.read_as))
    return Task(chosen.name, rows, metric=metric, choices=choices, source=place, read_as=chosen.read_as or read_as)


def _files(chosen: TaskConfig, config: DataConfig, source: _Source) -> tuple[dict[str, list[Path]] | None, str]:
    """The files of a task that is of no benchmark, by split (None: it is a data set of the hub), and their place."""
    if chosen.path is not None:
        return formats.task_files(chosen.path), str(chosen.path)
    if chosen.train is not None:
        return {split: [path] for split in SPLITS if (path := getattr(chosen, split)) is not None}, str(chosen.train)
    if chosen.dataset is not None:
        return None, chosen.dataset
    if source.read is None and config.path is not None:
        known = formats.task_places(config.path)
        if chosen.name not in known:
            near = did_you_mean(chosen.name, list(known))
            raise InputError(f"{config.path}: no task '{chosen.name}'{near}; there are {', '.join(known)}")
        return formats.task_files(known[chosen.name]), str(known[chosen.name])
    names = ", ".join(source.known) or "none: give the task a path, files or a dataset"
    raise InputError(f"unknown task '{chosen.name}'{did_you_mean(chosen.name, list(source.known))}; known: {names}")


def _read(
    chosen: TaskConfig,
    config: DataConfig,
    files: Mapping[str, Sequence[Path]] | None,
    selections: Mapping[str, Selection],
) -> dict[str, Sequence[Row]]:
    """The rows of the files, or of the data set where there are none."""
    how: dict[str, Any] = {
        "columns": config.columns if chosen.columns is None else chosen.columns,
        "marker": chosen.marker or config.marker,
        "unanswered": chosen.unanswered or config.unanswered,
    }
    if files is not None:
        return {
            split: _of_files(
                [formats.read_rows(path, **how, selection=selections[split]) for path in paths], config.rows_in_memory
            )
            for split, paths in files.items()
        }
    assert chosen.dataset is not None
    return {
        split: formats.read_hub(
            chosen.dataset,
            subset=chosen.subset,
            split=theirs,
            **how,
            revision=chosen.revision,
            selection=selections[split],
        )
        for split, theirs in chosen.splits.items()
    }


def _of_files(parts: Sequence[Sequence[Row]], most: int) -> Sequence[Row]:
    """The rows of several files one behind the other."""
    return parts[0] if len(parts) == 1 else gathered(chain.from_iterable(parts), most)


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
        replaces=chosen.replaces or "",
        template=chosen.template or task.template,
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
            rows[split] = gathered((rows[split][index] for index in kept), like(rows[split]))
    return replace(task, rows=rows)


def refuse_duplicates(names: list[str], *, note: str = "") -> None:
    """Raises InputError where a name cannot be a task's, or two tasks have the same one, upper and lower case aside.

    note: what else can be done about the latter.
    """
    seen: dict[str, str] = {}
    for name in names:
        label = task_label(name)
        if label in seen:
            raise InputError(
                f"duplicate task names '{seen[label]}' and '{name}': each task needs a name of its own (case aside)"
                f"{note}"
            )
        seen[label] = name
