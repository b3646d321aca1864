"""Progress on the screen: the whole run, and nested in it the task in training or evaluation, each with the time left.

On a terminal these are bars. Where the output is none (a log file, CI), a line with the same content is printed from
time to time.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from ilora.errors import InputError
from ilora.present.numbers import duration

STEPS, ANSWERS = "steps", "answers"  # kinds of work, whose units take different times
_BETWEEN_LINES = 30.0  # seconds


def hide_other_lines() -> None:
    """Keep the bars, notes and deprecations of other libraries off the terminal; to be called before their import.

    Their errors and other warnings stay.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for kind in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=kind)


def first_line(*, quiet: bool) -> None:
    """Say that a command begins, before the imports that take seconds."""
    Console(quiet=quiet, highlight=False).print("loading torch and transformers")


def seconds_between_lines() -> float:
    """Where there is no terminal: `ILORA_PROGRESS_SECONDS`, or 30. Raises InputError for what is no such number."""
    text = os.environ.get("ILORA_PROGRESS_SECONDS", "")
    try:
        seconds = float(text or _BETWEEN_LINES)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise InputError(f"ILORA_PROGRESS_SECONDS: seconds between lines, 0 or more (got {text!r})")
    return seconds


class Display:
    """Bars for a run. `quiet` (other processes than the first, and tests) shows nothing."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: seconds, for the time left."""
        self.console = console or Console(stderr=False, quiet=quiet, highlight=False)
        self.clock, self.bars = clock, list[Bar]()
        self._between, self._next_line = seconds_between_lines(), clock()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            _Times(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def bar(
        self, title: str, total: int, *, done: int = 0, kind: str = "", ahead: Mapping[str, int] | None = None
    ) -> Iterator[Bar]:
        """A bar that is there inside the block.

        kind: of its units. ahead: how many units of each kind the bars inside the block will have left in all, from
        which this one then tells the time left.
        """
        bar = Bar(self, title, total, done=done, kind=kind, ahead=ahead)
        for outer in self.bars:
            if kind in outer.ahead:
                outer.ahead[kind] -= total - done
        self.bars.append(bar)
        bar.handle = self._progress.add_task(title, total=total, completed=done, note="", bar=bar)
        try:
            yield bar
        finally:
            self.bars.remove(bar)
            self._progress.remove_task(bar.handle)

    def moved(self, bar: Bar, count: int, *, line: bool) -> None:
        """Show that a bar has changed: on the bar, or as a line of all bars where that is due or asked for."""
        self._progress.update(bar.handle, advance=count, note=bar.note)
        if line or (not self.console.is_terminal and self.clock() >= self._next_line):
            self._next_line = self.clock() + self._between
            self.say(" | ".join(bar.text for bar in self.bars))

    def warn(self, text: str) -> None:
        """What even a quiet run must not keep to itself: on standard error then."""
        if self.console.quiet:
            print(f"ilora: warning: {text}", file=sys.stderr)
        else:
            self.say(f"warning: {text}")

    def say(self, text: str) -> None:
        """One line above the bars; the text is printed as it stands, without markup."""
        self.console.print(text, markup=False, soft_wrap=True)


class Bar:
    """One bar of a Display, and its pace: what it has done in the time since it began."""

    handle: TaskID

    def __init__(
        self, display: Display, title: str, total: int, *, done: int, kind: str, ahead: Mapping[str, int] | None
    ) -> None:
        self.display, self.title, self.total, self.kind = display, title, total, kind
        self.done, self.note = done, ""
        self.ahead = dict(ahead or {})  # what bars inside, that are still to come, will have left
        self.paces: dict[str, float] = {}  # of the bars inside, by kind: that of the last one
        self.first = done
        self.began = self.at = display.clock()  # at: of the last advance

    def advance(self, count: int = 1, *, note: str | None = None, line: bool = False) -> None:
        """Move it, and change the note beside it. line: also print a line, whether or not there is a terminal."""
        self.done += count
        self.note = self.note if note is None else note
        if count:
            self.at = self.display.clock()
        for outer in self.display.bars:
            if self.kind in outer.ahead and self.pace is not None:
                outer.paces[self.kind] = self.pace
        self.display.moved(self, count, line=line)

    @property
    def pace(self) -> float | None:
        """Seconds for a unit so far; None before the first one."""
        return (self.at - self.began) / (self.done - self.first) if self.done > self.first else None

    @property
    def left(self) -> float | None:
        """Seconds by the pace so far, without work whose pace is not known yet; None where none is."""
        if self.ahead:
            known, _ = self._work_left()
            return sum(known) if known else None
        pace, now = self.pace, self.display.clock()
        return None if pace is None else max(0.0, (self.total - self.done) * pace - (now - self.at))

    def _work_left(self) -> tuple[list[float], bool]:
        """Of all bars inside: the seconds of what has a pace, and whether anything has none yet."""
        units, known = dict(self.ahead), []
        for bar in self.display.bars:
            if bar.kind in units and bar.left is not None:
                known.append(bar.left)
            elif bar.kind in units:
                units[bar.kind] += bar.total - bar.done
        known += [count * self.paces[kind] for kind, count in units.items() if kind in self.paces]
        return known, any(count and kind not in self.paces for kind, count in units.items())

    @property
    def times(self) -> str:
        """The time left, and what has gone by, in words."""
        left, gone = self.left, duration(self.display.clock() - self.began)
        if left is None:
            return f"{gone} so far"
        least = "at least " if self._work_left()[1] else ""
        return f"{least}{duration(left)} left, {gone} so far"

    @property
    def text(self) -> str:
        """All of it as a line."""
        parts = [f"{self.title.strip()} {self.done}/{self.total}", self.note.strip(), self.times]
        return ", ".join(part for part in parts if part)


class _Times(ProgressColumn):
    """A bar's time left and elapsed, each with its name."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """In words."""
        bar: Bar = task.fields["bar"]
        return Text(bar.times, style="progress.remaining")
