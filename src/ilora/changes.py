"""What changes along the stream: which settings may, and what they make of a run's; tasks that replace others.

A task's `settings` hold for it and for the tasks after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from ilora.errors import InputError
from ilora.registry import did_you_mean
from ilora.section import Section
from ilora.settings import MethodConfig, TaskConfig, TrainingConfig

# Why others stay as they are, by their key or its section.
_STAYS = {
    "adapter": "the weights that are trained further have this shape",
    "contrast": "another method would have to begin with the first task",
    "data": "the rows of all tasks are read alike, and the memory holds some of them",
    "data.path": "the run's own tasks lie there; the place of a new task is given as TASK",
    "data.template": "it is that of the tasks there are; a task has a `template` of its own",
    "evaluation": "all tasks are measured alike, or their scores could not be compared",
    "keep": "it holds for the whole run; `ilora resume RUN keep...=...` changes it, `ilora prune RUN` drops more once",
    "method": "a size or a kind decides what the method has stored; its strengths may change",
    "method.name": "what is kept from task to task belongs to its method",
    "model": "all adapters of a run belong to one base model",
    "name": "it is the run's",
    "seed": "the order of all rows and all draws follow from it",
    "stream": "a run is sequential or joint as a whole",
    "trackers": "they are opened once, for the whole run",
    "training.micro_batch_size": "it changes no result, and is halved by itself where memory ends",
}


def changeable(method: MethodConfig) -> list[str]:
    """The dotted keys that a task may change: of training, and the strengths of the method and its memory's size."""
    own = type(method).model_fields
    keys = [f"training.{name}" for name in TrainingConfig.model_fields]
    keys += [f"method.{name}" for name, field in own.items() if name == "memory_size" or _decimal(field.annotation)]
    return [key for key in keys if key not in _STAYS]


def _decimal(annotation: Any) -> bool:
    """Whether a field of this type may be a decimal number: a strength, where a size or a count is an integer."""
    return annotation is float or any(map(_decimal, get_args(annotation)))


def changed(
    training: TrainingConfig, method: MethodConfig, tasks: Iterable[TaskConfig]
) -> tuple[TrainingConfig, MethodConfig]:
    """The two sections with the settings of these tasks, one after the other.

    Raises ValueError naming the task, the key and why it cannot be that.
    """
    for task in tasks:
        known = changeable(method)
        for key in task.settings:
            if key not in known:
                raise ValueError(f"task '{task.name}', {key}: {_reason(key, method, known)}")
        rates = {"training.learning_rate", "method.learning_rate"} & task.settings.keys()
        training = _with(training, "training", task)
        method = _with(method, "method", task)
        if method.learning_rate is not None and rates == {"training.learning_rate"}:
            raise ValueError(
                f"task '{task.name}', training.learning_rate: the method has a learning rate of its own, "
                f"method.learning_rate ({method.learning_rate}); change that"
            )
    return training, method


def _reason(key: str, method: MethodConfig, known: list[str]) -> str:
    """Why this setting cannot change."""
    section, _, name = key.partition(".")
    sections: dict[str, type[Section]] = {"training": TrainingConfig, "method": type(method)}
    unknown = name not in sections[section].model_fields if section in sections else section not in _STAYS
    if unknown:
        return f"unknown key{did_you_mean(key, known)}; a task may change {', '.join(known)}"
    return f"cannot change within a run: {_STAYS.get(key) or _STAYS[section]}"


Part = TypeVar("Part", bound=Section)


def _with(section: Part, name: str, task: TaskConfig) -> Part:
    """The section with what the task changes in it."""
    new = {key.partition(".")[2]: value for key, value in task.settings.items() if key.startswith(f"{name}.")}
    if not new:
        return section
    try:
        return type(section).model_validate(section.model_dump() | new)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:1]) or next(iter(new))
        told = first["msg"].removeprefix("Value error, ")
        value = f" (got {new[place]!r})" if place in new else ""
        raise ValueError(f"task '{task.name}', {name}.{place}: {told}{value}") from None


def why_not(setting: str) -> str:
    """For a message: why a method refuses a setting of the adapter, where that is not plain; else empty."""
    reason = "its tasks begin with new weights of their own, or train no LoRA adapter, so none would go on from it"
    return f": {reason}" if setting == "start_from" else ""


def standing(tasks: Iterable[TaskConfig]) -> list[str]:
    """The names of the tasks that no other one replaces. Raises ValueError for one that replaces no earlier task."""
    found: list[str] = []
    for task in tasks:
        if task.replaces is not None:
            if task.replaces not in found:
                near = did_you_mean(task.replaces, found)
                raise ValueError(f"task '{task.name}', replaces: no earlier task '{task.replaces}'{near}")
            found.remove(task.replaces)
        found.append(task.name)
    return found


def refuse_no_old(tasks: Iterable[TaskConfig], old: str) -> None:
    """Raises InputError where a run has no task of that name that could be replaced."""
    known = standing(tasks)
    if old not in known:
        near = did_you_mean(old, known)
        raise InputError(f"--replace {old}: no task of that name{near}; there are {', '.join(known)}")


def values(task: TaskConfig, training: TrainingConfig, method: MethodConfig) -> dict[str, Any]:
    """What the task changes, in plain JSON values. training, method: the sections with its settings (`changed`)."""
    sections = {"training": training.model_dump(mode="json"), "method": method.model_dump(mode="json")}
    return {key: sections[key.partition(".")[0]][key.partition(".")[2]] for key in task.settings}


def for_method(settings: Mapping[str, Any], method: MethodConfig) -> dict[str, Any]:
    """The part of a task's settings that holds for a method beside the run's: training, and the memory's size.

    Strengths are left out: those of one name mean something else in each method.
    """
    left_out = {"training.learning_rate"} if method.learning_rate is not None else set()
    taken = {key for key in changeable(method) if key.startswith("training.") or key == "method.memory_size"}
    return {key: value for key, value in settings.items() if key in taken - left_out}
