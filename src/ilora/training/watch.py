"""Each process says that it is at work; who hears nothing more of another ends, instead of waiting for it for ever.

The communication library alone would wait where a machine is gone without a word: as long as `processes.LONGEST_WAIT`
allows, since one process may have long work to do for all. So a thread of each process counts
in the store where the processes met, and reads the others' counts. It does so while its process waits or computes.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from accelerate import Accelerator
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from ilora.errors import InputError
from ilora.training.processes import agreed, joined, naming_a_lost_process

LOST_AFTER = "ILORA_LOST_AFTER"
_SECONDS = 40.0  # with the looks and the grace: within a minute
_LOOKS = 9  # within these seconds
_GRACE = 10.0  # seconds for a process to meet by itself what ended another one, and to say it better
_MEETING = 6.0  # times as long may pass until all have come: some read torch from a slow disk
_LEFT, _FAILED = "left", "failed"


@contextmanager
def together(then: str) -> Iterator[Accelerator]:
    """The processes that a launcher has started, for a command that is no run. then: as for `watched`."""
    with meeting():
        accelerator = joined()
    with watched(accelerator, then), naming_a_lost_process():
        yield accelerator


@contextmanager
def meeting() -> Iterator[None]:
    """Within the block the processes come together. One that waits too long for another, which had bad input or was
    killed before it came, ends with exit code 1 and a message: the communication library would wait much longer.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield
        return
    seconds = _MEETING * _limit()
    lost = f"after {seconds:.0f} s not all {count} processes are here; one that has ended said why"
    timer = threading.Timer(seconds, _end, [lost])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def watched(accelerator: Accelerator, then: str) -> Iterator[None]:
    """Within the block no process waits for one that is gone: it ends with exit code 1 and a message.

    then: the last line of the message, which says what to do now. Raises InputError where the limit in the environment
    is no number.
    """
    if accelerator.num_processes == 1:
        yield
        return
    with meeting():
        name = agreed(accelerator, secrets.token_hex(4))  # a process may have several runs, one after the other
    watch = _Watch(accelerator, name, then, limit=_limit())
    watch.start()
    try:
        yield
    except BaseException:
        watch.leave(_FAILED)
        raise
    watch.leave(_LEFT)


def _limit() -> float:
    """After how many seconds of silence a process is lost."""
    text = os.environ.get(LOST_AFTER, str(_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < float("inf"):
        raise InputError(f"{LOST_AFTER}={text}: a number of seconds, at least 1")
    return seconds


class _Watch(threading.Thread):
    """Counts for this process and looks at the counts of the others."""

    def __init__(self, accelerator: Accelerator, name: str, then: str, *, limit: float) -> None:
        super().__init__(name="ilora watch", daemon=True)
        self._rank, self._count = accelerator.process_index, accelerator.num_processes
        self._then, self._limit = then, limit
        self._place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        # A connection of its own: the group's is held by a process that waits for the others.
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=limit),
            wait_for_workers=False,
        )
        self._store = PrefixStore(f"ilora/{name}", store)
        self._over = threading.Event()

    def leave(self, how: str) -> None:
        """Stop watching, and tell the others that this process has done its work or failed."""
        self._over.set()
        self.join(self._limit)
        try:
            self._store.set(str(self._rank), how)
        except RuntimeError:  # the store has ended with the process that kept it; nobody is left to be told
            return

    def run(self) -> None:
        heard = {rank: ("", time.monotonic()) for rank in range(self._count) if rank != self._rank}
        number = 0
        while not self._over.wait(self._limit / _LOOKS):
            number += 1
            try:
                lost = self._look(number, heard)
            except RuntimeError:
                lost = (
                    f"the place where the processes meet ({self._place}) is out of reach; its machine or process ended"
                )
            if lost is not None and not self._over.wait(_GRACE if self._limit > _GRACE else self._limit):
                _end(f"{lost}\n{self._then}")

    def _look(self, number: int, heard: dict[int, tuple[str, float]]) -> str | None:
        """Count, and read the others' counts; returns what to say where one is lost. heard: its last word and when."""
        self._store.set(str(self._rank), str(number))
        now = time.monotonic()
        for rank, (before, since) in heard.items():
            word = self._store.get(str(rank)).decode() if self._store.check([str(rank)]) else ""
            if word == _FAILED:
                return f"process {rank} of {self._count} has failed; it said why"
            if word not in (before, _LEFT):
                heard[rank] = word, now
            elif word != _LEFT and now - since > self._limit:
                return (
                    f"process {rank} of {self._count} has not been heard of for {now - since:.0f} s: it was killed, or "
                    "its machine is out of reach"
                )
        return None


def _end(message: str) -> None:
    """End this process, whatever its other threads wait for."""
    print(f"ilora: {message}", file=sys.stderr, flush=True)
    os._exit(1)
