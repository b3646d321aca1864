"""Tasks whose rows are given as Python objects, for `run(config, tasks=[...])`.

Their rows go into the run folder, as data/<task>/<split>.jsonl, and the configuration names them there: the run can
then be resumed, added to, connected and compared like one that was made from files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ilora.config import Config
from ilora.data.formats import named_labels
from ilora.data.forms import RowReader
from ilora.data.rows import collect
from ilora.data.task import SPLITS, Row, Task
from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.metrics.metrics import infer_task
from ilora.registry import did_you_mean
from ilora.settings import TaskConfig
from ilora.stream import checked, prepared, refuse_duplicates


def given_tasks(tasks: Sequence[Task], config: Config, folder: Path) -> tuple[Config, list[Task], dict[Path, str]]:
    """The configuration of a run on these tasks, the tasks as the run sees them, and the files that hold their rows.

    tasks: their rows are `Row`s, mappings with the fields of a row, or a `datasets.Dataset` of such.
        A metric of `accuracy` without choices stands for: infer both from the training answers.
    folder: where the files are to be written; nothing is written here.
    Raises InputError naming the task, split and row that cannot be used.
    """
    whole = [_with_rows(task, config.data.unanswered) for task in tasks]
    refuse_duplicates([task.name for task in whole])
    places = {task.name: (folder / task.label).absolute() for task in whole}
    sections = [_section(task, places[task.name]) for task in whole]
    data = config.data.model_copy(update={"tasks": sections, "path": None, "benchmark": None})
    files = {
        places[task.name] / f"{split}.jsonl": "".join(map(_line, rows))
        for task in whole
        for split, rows in task.rows.items()
    }
    used = [prepared(replace(task, source=str(places[task.name])), data) for task in whole]
    return config.model_copy(update={"data": data}), [checked(task, data) for task in used], files


def as_tasks(given: Any, *, names: bool) -> list[Any]:
    """The tasks that are given from Python, in a list: mappings with `rows` become `Task`s.

    names: whether a task may also be the place or name of its rows, as a text. Raises InputError for anything else.
    """
    single = isinstance(given, str | Path | Task | Mapping)
    return [_as_task(item, f"tasks[{number}]", names) for number, item in enumerate([given] if single else given)]


def _as_task(item: Any, place: str, names: bool) -> Task | str:
    if isinstance(item, Task):
        return item
    if names and isinstance(item, str | Path):
        return str(item)
    known = [one.name for one in fields(Task) if one.init]
    if not isinstance(item, Mapping):
        also = ", or the place of its rows" if names else ""
        raise InputError(f"{place}: found {type(item).__name__}; give a Task, a mapping with `name` and `rows`{also}")
    for key in item:
        if key not in known and key in TaskConfig.model_fields:
            raise InputError(
                f"{place}: {key}: a task whose rows lie in files belongs into the configuration: data.tasks"
            )
        if key not in known:
            raise InputError(
                f"{place}: unknown key {key!r}{did_you_mean(str(key), known)}; a task has {', '.join(known)}"
            )
    if "name" not in item or not isinstance(item.get("rows"), Mapping):
        raise InputError(f"{place}: give `name`, and `rows` as a mapping with `train` (and `eval`, `test`)")
    return Task(**item)


def write_files(files: Mapping[Path, str]) -> None:
    """Write the rows' files."""
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)


def _with_rows(task: Task, unanswered: str) -> Task:
    """The task with its rows as `Row`s, how they were read, and with metric and choices."""
    unknown = sorted(set(task.rows) - set(SPLITS))
    if unknown or "train" not in task.rows:
        what = f"unknown split '{unknown[0]}'" if unknown else "no 'train' split"
        raise InputError(f"task '{task.name}': {what}; a task has train, and may have eval and test")
    rows, forms = {}, dict[str, None]()
    for split in (split for split in SPLITS if split in task.rows):
        reader = RowReader(place=f"task '{task.name}', {split}", unanswered=unanswered)
        rows[split] = _rows(task.rows[split], reader)
        forms |= dict.fromkeys(reader.read_as)
    metric, choices = task.metric, task.choices
    if metric == "accuracy" and not choices:
        metric, choices = infer_task([row.answer for row in rows["train"]])
    return replace(task, rows=rows, metric=metric, choices=tuple(choices), read_as="; ".join(forms))


def _rows(given: Iterable[Any], reader: RowReader) -> Sequence[Row]:
    items = named_labels(given) if hasattr(given, "features") else given
    entries = ((f"{reader.place}, row {number}", _entry(item)) for number, item in enumerate(items))
    return collect(entries, reader, reader.place)


def _entry(item: Any) -> Any:
    """A row's fields, as they stand in a file."""
    if not isinstance(item, Row):
        return item
    if item.messages:
        messages = [*map(dict, item.messages), {"role": "assistant", "content": item.answer}]
        return {"messages": messages, **({"tools": list(item.tools)} if item.tools else {})}
    return {"prompt": item.prompt, "answer": item.answer}


def _line(item: Row) -> str:
    return json.dumps(_entry(item), ensure_ascii=False) + "\n"


def _section(task: Task, folder: Path) -> TaskConfig:
    return TaskConfig.model_validate(
        {
            "name": task.name,
            "path": folder,
            "metric": task.metric,
            "choices": list(task.choices),
            "scoring": task.scoring,
            "max_new_tokens": task.max_new_tokens,
            "frame": task.frame,
            "replaces": task.replaces or None,
            "template": task.template,
            "read_as": task.read_as,
        }
    )
