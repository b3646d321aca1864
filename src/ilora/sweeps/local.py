"""Where a sweep's runs are executed: processes of this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from ilora.sweeps.book import Entry
from ilora.sweeps.shares import Shares, parts_of
from ilora.training.processes import MEMORY_SHARE

LOOK_EVERY = 0.2  # seconds
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


class Executor(Protocol):
    """What a sweep needs of a place to run."""

    def has_room(self, entry: Entry) -> bool:
        """Whether the run can start now. True where nothing runs."""

    def start(self, entry: Entry) -> None:
        """Begin the run or go on with it."""

    def ended(self) -> list[tuple[Entry, int]]:
        """Runs that have ended since the last call, each with its exit code. Waits a moment, or works on them."""

    def has_more(self, entry: Entry) -> bool:
        """Whether a run that ended for want of memory can have more of it, once others have ended."""

    def stop(self) -> None:
        """Have all runs write their checkpoint and end; returns when they have."""


class Processes:
    """A process for each run; the machine's cores are divided among them, and its GPUs with their memory.

    Each GPU has as many equal parts as runs must share it. A run takes one of them, or more where one was too little.
    """

    def __init__(self, places: int, *, gpus: int = 0) -> None:
        self.places = places
        self.parts = [len(range(card, places, gpus)) for card in range(min(places, gpus))] if places > 1 else []
        self._running: list[tuple[Entry, subprocess.Popen[bytes]]] = []
        self._taken: dict[Path, tuple[int, int]] = {}  # card and parts, of each run's last start
        self._shares = Shares()

    def has_room(self, entry: Entry) -> bool:
        """As `Executor.has_room`."""
        return len(self._running) < self.places and (not self.parts or self._room(entry) is not None)

    def start(self, entry: Entry) -> None:
        """As `Executor.start`."""
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        with entry.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ilora", *entry.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | threads(self.places) | self._gpu(entry),
                start_new_session=True,  # Ctrl-C in the terminal is for the sweep, which hands it on
                preexec_fn=_end_with_parent,
            )
        self._running.append((entry, process))

    def ended(self) -> list[tuple[Entry, int]]:
        """As `Executor.ended`."""
        time.sleep(LOOK_EVERY)
        done = [(entry, process.returncode) for entry, process in self._running if process.poll() is not None]
        self._running = [pair for pair in self._running if pair[1].returncode is None]
        return done

    def has_more(self, entry: Entry) -> bool:
        """As `Executor.has_more`."""
        if not self.parts:
            return False
        card, parts = self._taken[entry.path]
        return self._shares.widen(entry, parts / self.parts[card])

    def stop(self) -> None:
        """As `Executor.stop`."""
        for _, process in self._running:
            process.send_signal(signal.SIGTERM)
        for _, process in self._running:
            process.wait()

    def _gpu(self, entry: Entry) -> dict[str, str]:
        """Take the run's parts; its environment: the one GPU that it sees, and its share of the memory."""
        room = self._room(entry) if self.parts else None
        if room is None:
            return {}
        card, parts = self._taken[entry.path] = room
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        share = f"{parts / self.parts[card]:.6f}"
        return {"CUDA_VISIBLE_DEVICES": visible[card] if visible else str(card), MEMORY_SHARE: share}

    def _room(self, entry: Entry) -> tuple[int, int] | None:
        """A GPU with enough free parts for the run, the least used one, and how many it takes; None: there is none."""
        used = [0] * len(self.parts)
        for card, parts in (self._taken[other.path] for other, _ in self._running):
            used[card] += parts
        for card in sorted(range(len(self.parts)), key=lambda card: used[card] / self.parts[card]):
            parts = parts_of(self._shares.least(entry), self.parts[card])
            if used[card] + parts <= self.parts[card]:
                return card, parts
        return None


def threads(places: int) -> dict[str, str]:
    """Environment of one of several processes: its share of the cores, and no spinning while it waits for them."""
    share = str(max(1, (os.cpu_count() or 1) // places))
    return {"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share} | ({"OMP_WAIT_POLICY": "PASSIVE"} if places > 1 else {})


def _end_with_parent() -> None:
    """In the child: a sweep that is killed takes its runs with it (on Linux), each after its checkpoint."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
