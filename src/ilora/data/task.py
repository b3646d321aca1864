"""What a task is: named rows in three splits, and how its answers are judged."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilora.errors import InputError

SPLITS = ("train", "eval", "test")
_NAME = re.compile(r"[^\W_][\w .+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Row:
    """One question and its reference answer, as text.

    messages: of a conversation, the turns before the answer, each `{"role": ..., "content": ...}` and what a call of
        a tool has beside; `prompt` then holds the same turns as plain text, for reports and for tokenizers without a
        chat template.
    tools: definitions of functions, which the model's chat template may show.
    """

    prompt: str
    answer: str
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Task:
    """A named task: `rows[split]` for each of SPLITS that it has.

    metric: a name in `ilora.metrics.metrics.METRICS`.
    choices: the allowed answers of a closed task, else empty.
    scoring: `generate` (the metric judges greedy text) or `rank` (the likeliest choice is the prediction).
    max_new_tokens: of an answer; None: it follows from the longest training answer.
    frame: what a benchmark's template puts before and after the text in every prompt.
    dropped: by split, how many rows `data.deduplicate` left out.
    too_long: by split, how many rows `data.too_long: drop` left out.
    read_as: the forms in which the rows stood in their files, in words; empty for ilora's own.
    split_off: by split, how many of the training rows became rows of it, where it had none.
    replaces: the name of an earlier task for which this one stands; empty for none.
    forgotten: the day on which its rows were deleted (`ilora forget`); it has none then. Empty for all others.
    template: in which its prompts stand (none, alpaca or chat); None: the run's.
    """

    name: str
    rows: Mapping[str, Sequence[Row]]
    metric: str = "accuracy"
    choices: tuple[str, ...] = ()
    scoring: str = "generate"
    max_new_tokens: int | None = None
    source: str = ""
    frame: tuple[str, str] = ("", "")
    dropped: Mapping[str, int] = field(default_factory=dict)
    too_long: Mapping[str, int] = field(default_factory=dict)
    read_as: str = ""
    split_off: Mapping[str, int] = field(default_factory=dict)
    replaces: str = ""
    forgotten: str = ""
    template: str | None = None
    label: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", task_label(self.name))

    def text(self, row: Row) -> str:
        """The text inside a prompt: the prompt without the task's frame."""
        return row.prompt.removeprefix(self.frame[0]).removesuffix(self.frame[1])


def task_label(name: str) -> str:
    """The name in the form that is used in paths: lower case, dashes for spaces.

    Raises InputError for a name that could lead out of its folder.
    """
    if not _is_allowed(name):
        raise InputError(
            f"task name {name!r}: allowed are 1 to 64 letters, digits, '_', '-', '+', '.' and spaces, "
            "beginning with a letter or digit, without '..' and not ending in '.' or a space"
        )
    return name.lower().replace(" ", "-")


def _is_allowed(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and ".." not in name and not name.endswith((".", " "))


def name_after(place: Path) -> str:
    """A task's name after its file or folder: what a name may not have becomes a dash (`Jan (2).csv`: `Jan-2`).

    Raises InputError where nothing is left of it.
    """
    place = place.resolve()
    name = unicodedata.normalize("NFC", place.name if place.is_dir() else place.stem)
    if not _is_allowed(name):
        name = re.sub(r"[^\w.+]+", "-", re.sub(r"\.{2,}", ".", name))[:64].strip(".+-_")
    if not _is_allowed(name):
        raise InputError(f"{place}: no task name can be made of its name; rename it, to letters, digits and dashes")
    return name


@dataclass(frozen=True)
class Phase:
    """One training from one set of rows: a task, or (joint) all of them. `index` counts from 1."""

    index: int
    name: str
    tasks: tuple[Task, ...]

    @property
    def label(self) -> str:
        """The name in file names: `03-fomc`."""
        return f"{self.index:02d}-{task_label(self.name)}"


def phases(tasks: list[Task], stream: str) -> list[Phase]:
    """One phase per task, or a single joint one."""
    if stream == "joint":
        return [Phase(1, "joint", tuple(tasks))]
    return [Phase(index, task.name, (task,)) for index, task in enumerate(tasks, 1)]
