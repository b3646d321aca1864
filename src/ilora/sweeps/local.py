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
from ilora.training.processes import MEMORY_SHARE

LOOK_EVERY = 0.2  # seconds
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


class Executor(Protocol):
    """What a sweep needs of a place to run."""

    places: int  # runs at a time

    def start(self, entry: Entry) -> None:
        """Begin the run or go on with it."""

    def ended(self) -> list[tuple[Entry, int]]:
        """Runs that have ended since the last call, each with its exit code. Waits a moment, or works on them."""

    def stop(self) -> None:
        """Have all runs write their checkpoint and end; returns when they have."""


class Processes:
    """A process for each run; the machine's cores are divided among them, and its GPUs."""

    def __init__(self, places: int, *, gpus: int = 0) -> None:
        self.places, self.gpus = places, gpus
        self._running: list[tuple[Entry, subprocess.Popen[bytes]]] = []
        self._place: dict[Path, int] = {}  # of those that run

    def start(self, entry: Entry) -> None:
        """As `Executor.start`."""
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        running = {self._place[other.path] for other, _ in self._running}
        place = self._place[entry.path] = next(place for place in range(self.places) if place not in running)
        with entry.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ilora", *entry.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | threads(self.places) | gpu(place, self.places, self.gpus),
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

    def stop(self) -> None:
        """As `Executor.stop`."""
        for _, process in self._running:
            process.send_signal(signal.SIGTERM)
        for _, process in self._running:
            process.wait()


def threads(places: int) -> dict[str, str]:
    """Environment of one of several processes: its share of the cores, and no spinning while it waits for them."""
    share = str(max(1, (os.cpu_count() or 1) // places))
    return {"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share} | ({"OMP_WAIT_POLICY": "PASSIVE"} if places > 1 else {})


def gpu(place: int, places: int, gpus: int) -> dict[str, str]:
    """Environment of the process at one of several places: the one GPU that it sees, and its share of the memory."""
    if places == 1 or not gpus:
        return {}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    card = place % gpus
    beside = len(range(card, places, gpus))
    return {"CUDA_VISIBLE_DEVICES": visible[card] if visible else str(card), MEMORY_SHARE: f"{1 / beside:.4f}"}


def _end_with_parent() -> None:
    """In the child: a sweep that is killed takes its runs with it (on Linux), each after its checkpoint."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
