"""Threads of which one works at a time, each until it rests: so what they do together does not depend on chance."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from ilora.model.joint import Noise


class Player:
    """A thread with turns. `around` is entered for each of its turns, `noise` is what it draws random numbers from.

    ready: whether it can go on; who has what a resting thread waits for sets it again. over: whether it has ended.
    """

    def __init__(
        self, work: Callable[[], object], *, around: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        """work: raises nothing."""
        self.ready, self.over, self.noise = True, False, Noise()
        self._work, self._around = work, around
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)  # a second Ctrl-C waits for none of them
        self._thread.start()

    def turn(self) -> None:
        """Let it work until it rests or ends."""
        with self._around(), self.noise.drawn():
            self._go.release()
            self._back.acquire()
        if self.over:
            self._thread.join()

    def rest(self) -> None:
        """In the thread: end the turn; returns when the next one begins, once it is ready again."""
        self.ready = False
        self._back.release()
        self._go.acquire()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            self.over = True
            self._back.release()
