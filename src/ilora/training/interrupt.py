"""Ctrl-C and SIGTERM as a request: the step in progress ends, a checkpoint is written, then the run stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from weakref import WeakSet


class StopRequest:
    """Inside the block the first signal sets `requested`; the second one interrupts at once, as usual.

    Outside the main thread, or with several processes (which would stop at different steps), signals stay as they are.
    """

    def __init__(self, *, enabled: bool = True, notify: Callable[[str], None] = lambda _: None) -> None:
        self.requested = False
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._notify = notify
        self._before: dict[signal.Signals, object] = {}

    def check(self) -> None:
        """Raises KeyboardInterrupt where a stop was asked for: called where it is safe to stop."""
        if self.requested:
            raise KeyboardInterrupt

    def __enter__(self) -> StopRequest:
        _OPEN.add(self)
        if self._enabled:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _OPEN.discard(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._notify("stopping after this step; once more to stop at once")


def stop_all() -> None:
    """Ask for a stop of every run of this process, in whatever thread."""
    for request in list(_OPEN):
        request.requested = True


_OPEN: WeakSet[StopRequest] = WeakSet()
