"""Further tasks for a finished run, and the settings that hold from them on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ilora.changes import changed, refuse_no_old, values
from ilora.config import Config, problems
from ilora.data.formats import has_columns
from ilora.data.task import Task, name_after, task_label
from ilora.early import refuse_no_rows
from ilora.errors import InputError
from ilora.in_memory import given_tasks
from ilora.overrides import read_overrides
from ilora.settings import TaskConfig
from ilora.stream import REPLACE, load_tasks, refuse_duplicates

# Of a task: how its files are read and its answers scored. Everything else that is given changes the run.
_OF_TASKS = ("columns", "marker", "unanswered", "template", "metric", "choices", "scoring", "max_new_tokens", "frame")
_READING = (
    "data.columns",
    "data.marker",
    "data.unanswered",
    "data.template",
)  # of the run's tasks; here of the new ones
_SETTING = re.compile(r"[a-z][a-z_0-9]*(\.[a-z_0-9]+)*=.*", re.DOTALL | re.IGNORECASE)


def tasks_and_settings(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """What stands on the command line behind the run: tasks, and `key=value`, unless a file or folder has that name."""
    tasks: list[str] = []
    settings: list[str] = []
    for word in words:
        there = os.path.exists(word)  # noqa: PTH110 - of a word that is too long for a path it is False, no error
        (settings if _SETTING.fullmatch(word) and not there else tasks).append(word)
    return tasks, settings


def with_new_tasks(
    config: Config, new: Sequence[str | Task], overrides: Iterable[str], path: Path, *, replaces: str | None = None
) -> tuple[Config, list[Task], dict[Path, str]]:
    """The longer configuration and stream, and the files to be written for tasks that are given with their rows.

    path: the run folder. replaces: the task for which the one new task stands.
    Raises InputError naming the task or setting that cannot be used.
    """
    if not new:
        raise InputError(f"{path}: no task to add; settings hold from a new task on")
    if replaces is not None:
        new = [_standing_for(replaces, new, config)]
    own, settings = _of_tasks_and_run(overrides)
    given, in_memory, files = given_tasks([task for task in new if isinstance(task, Task)], config, path / "data")
    if own and in_memory:
        raise InputError(f"{', '.join(own)}: task '{in_memory[0].name}' is given with its rows; say it in the Task")
    sections = {section.name: section for section in given.data.tasks or []}
    added = [sections[item.name] if isinstance(item, Task) else _new_task(item, config, own, replaces) for item in new]
    added[0] = _with_settings(added[0], settings, config)
    whole = [*(config.data.tasks or []), *added]
    refuse_duplicates([section.name for section in whole], note=REPLACE)
    elsewhere = config.data.model_copy(update={"tasks": [one for one in whole if one.name not in sections]})
    tasks = {task.name: task for task in [*load_tasks(elsewhere), *in_memory]}
    data = config.data.model_copy(update={"tasks": whole})
    return config.model_copy(update={"data": data}), [tasks[section.name] for section in whole], files


def _of_tasks_and_run(overrides: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of the new tasks' own sections, nested, and the dotted settings that hold from the first of them on."""
    own: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for _, key, value in read_overrides(overrides):
        key = key.removeprefix("data.") if key.startswith(_READING) else key
        first, _, rest = key.partition(".")
        if first not in _OF_TASKS:
            settings[key] = value
        elif rest:
            own[first] = {**(own[first] if isinstance(own.get(first), dict) else {}), rest: value}
        else:
            own[first] = value
    return own, settings


def _with_settings(task: TaskConfig, settings: dict[str, Any], config: Config) -> TaskConfig:
    """The task with settings that hold from it on, in the types that they have. Raises InputError."""
    task = task.model_copy(update={"settings": settings})
    before = config.at(len(config.data.tasks or []))
    try:
        sections = changed(before.training, before.method, [task])
    except ValueError as error:
        raise InputError(str(error)) from None
    return task.model_copy(update={"settings": values(task, *sections)})


def _standing_for(old: str, new: Sequence[str | Task], config: Config) -> str | Task:
    """The one task that replaces an old one. Raises InputError where there are several, or no such old one."""
    if len(new) > 1:
        raise InputError(f"--replace {old}: one task replaces another; {len(new)} are given")
    refuse_no_old(config.data.tasks or [], old)
    item = new[0]
    if not isinstance(item, Task):
        return item
    return replace(item, name=_free_name(item.name, config), replaces=old)


def _free_name(name: str, config: Config) -> str:
    """The name, with a number behind it where the run has a task of that name."""
    taken = {task_label(task.name) for task in config.data.tasks or []}
    numbered = (f"{name}-{number}" for number in count(2))
    return next(free for free in chain([name], numbered) if task_label(free) not in taken)


def _as_before(place: Path | None, config: Config) -> dict[str, Any]:
    """How the task before was read: its template; of rows at a place also marker and `unanswered`, and the columns if
    they have these (else none: by their own form).
    """
    last = (config.data.tasks or [TaskConfig(name="none")])[-1]
    if place is None:
        return {"template": last.template}
    columns = config.data.columns if last.columns is None else last.columns
    fits = not columns or has_columns(place, columns)
    read = last.model_dump(include={"template", "marker", "unanswered"})
    return {**read, "columns": last.columns if fits else {}}


def _new_task(item: str, config: Config, own: dict[str, Any], replaces: str | None) -> TaskConfig:
    """The section of a task that is named by its rows' place, or by its name in the run's own source.

    Its rows are read as those of the task before, unless `own` says otherwise; those of one that replaces an old task
    are read and scored as that one's.
    """
    place = Path(item)
    refuse_no_rows(item)
    if place.exists():
        name = name_after(place)
        old = next((one for one in config.data.tasks or [] if one.name == replaces), None)
        before = _as_before(place, config) if old is None else old.model_dump(include=set(_OF_TASKS))
        section = {"name": name, "path": place.absolute()} | before | own
        if replaces is not None:
            section |= {"name": _free_name(name, config), "replaces": replaces}
    elif config.data.path is None and config.data.benchmark is None:
        raise InputError(
            f"{item}: no such file or folder of rows, and the run has no `data.path` or `data.benchmark` to find it in"
        )
    else:
        section = {"name": item, "replaces": replaces} | _as_before(None, config) | own
    try:
        return TaskConfig.model_validate(section)
    except ValidationError as error:
        lines = problems(error, section, TaskConfig)
        raise InputError(f"task '{section['name']}': {'; '.join(lines)}") from None
