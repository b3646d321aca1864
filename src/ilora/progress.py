"""Progress on the terminal: the stream, and nested in it the task in training or evaluation, each with the time left.

Where the output is not a terminal (a log file, CI) one line per finished part is printed instead.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


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


class Display:
    """Bars for a run. `quiet` (other processes than the first, and tests) shows nothing."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=False, quiet=quiet, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
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
    def bar(self, title: str, total: int, *, done: int = 0) -> Iterator[Bar]:
        """A bar that is there inside the block."""
        handle = self._progress.add_task(title, total=total, completed=done, note="")
        try:
            yield Bar(self._progress, handle)
        finally:
            self._progress.remove_task(handle)

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
    """One bar of a Display."""

    def __init__(self, progress: Progress, handle: TaskID) -> None:
        self._progress = progress
        self._handle = handle

    def advance(self, count: int = 1, *, note: str | None = None) -> None:
        """Move it, and change the note beside it."""
        if note is None:
            self._progress.advance(self._handle, count)
        else:
            self._progress.update(self._handle, advance=count, note=note)
