"""A sweep's runs as tasks of a Ray cluster (`pip install 'ilora[ray]'`), which must share the sweep's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ilora.errors import InputError
from ilora.sweeps.book import Entry
from ilora.sweeps.local import LOOK_EVERY, threads
from ilora.sweeps.shares import Shares, parts_of
from ilora.training.processes import MEMORY_SHARE


def connected(address: str, *, log_to_driver: bool) -> Any:
    """The module `ray`, connected to a running cluster or (`local`) to a new one of this machine. Raises InputError."""
    # Ray Train's cleaner asks the dashboard, and where there is none, as here, it would say so each second.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "Failed to query Ray Train Controller actor state")
    try:
        import ray
    except ImportError:
        raise InputError("--ray: ray is not installed; pip install 'ilora[ray]'") from None
    try:
        ray.init(address=address, log_to_driver=log_to_driver, configure_logging=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: {error}") from None
    return ray


class Cluster:
    """As many runs at a time as the cluster has GPUs for, or, without GPUs, cores."""

    def __init__(self, address: str, *, on_a_gpu: int = 1) -> None:
        """address: of a running cluster; `local`: one on this machine, for as long as the sweep lasts.

        on_a_gpu: how many runs share a GPU and its memory.
        """
        ray = connected(address, log_to_driver=False)
        self._ray = ray
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        self.places = gpus * on_a_gpu or max(1, int(there.get("CPU", 1)))
        self._run = ray.remote(num_cpus=1, max_retries=0)(_run)
        self._parts = on_a_gpu if gpus else 0  # of each GPU's memory
        self._shares = Shares()
        self._had: dict[Path, float] = {}  # share, of each run's last start
        self._running: dict[Any, Entry] = {}

    def has_room(self, _: Entry) -> bool:
        """As `Executor.has_room`; one that needs a larger share waits in Ray's own queue."""
        return len(self._running) < self.places

    def start(self, entry: Entry) -> None:
        """As `Executor.start`."""
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in entry.command()]
        environment, share = threads(os.cpu_count() or 1), 0.0  # one core each
        if self._parts:
            share = round(parts_of(self._shares.least(entry), self._parts) / self._parts, 4)  # Ray counts so
            environment |= {MEMORY_SHARE: str(share)}
        self._had[entry.path] = share
        run = self._run.options(num_gpus=share)
        reference = run.remote(words, entry.log.absolute(), Path.cwd(), environment)
        self._running[reference] = entry

    def ended(self) -> list[tuple[Entry, int]]:
        """As `Executor.ended`."""
        time.sleep(LOOK_EVERY)
        done, _ = (
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
            if self._running
            else ([], [])
        )
        found = []
        for reference in done:
            entry = self._running.pop(reference)
            try:
                found.append((entry, int(self._ray.get(reference))))
            except self._ray.exceptions.RayError as error:
                with entry.log.open("a", encoding="utf-8") as log:
                    log.write(f"ray: {type(error).__name__}: {error}\n")
                found.append((entry, 1))
        return found

    def has_more(self, entry: Entry) -> bool:
        """As `Executor.has_more`."""
        return self._parts > 0 and self._shares.widen(entry, self._had[entry.path])

    def stop(self) -> None:
        """As `Executor.stop`: SIGTERM reaches the run through the worker that waits for it."""
        for reference in self._running:
            self._ray.cancel(reference, force=False)
        self._ray.wait(list(self._running), num_returns=len(self._running), timeout=60) if self._running else None
        self._ray.shutdown()


def _run(words: list[str], log: Path, folder: Path, environment: dict[str, str]) -> int:
    """In a worker: the run as a process of its own, ended with SIGTERM when the task is cancelled."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "ilora", *words],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=os.environ | environment,
        )  # fmt: skip
        try:
            return process.wait()
        except BaseException:  # cancelled: KeyboardInterrupt in the worker
            process.terminate()
            process.wait()
            raise
