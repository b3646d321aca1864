"""How much of a GPU's memory a run of a sweep needs: one whose share is too small waits for more."""

from __future__ import annotations

import math
from pathlib import Path

from ilora.environment import noted_memory
from ilora.sweeps.book import Entry

NO_ROOM = 75  # exit code of a run whose memory did not suffice
_MORE = 0.01  # than the share that did not suffice, at least


class Shares:
    """The share of a GPU that each run needs, from 0 (nothing is known) to 1 (it must be alone)."""

    def __init__(self) -> None:
        self._noted: dict[Path, float] = {}
        self._alike: dict[tuple[str, str], float] = {}

    def least(self, entry: Entry) -> float:
        """By what its folder says, and by runs that differ from it in order and seed alone."""
        if entry.path not in self._noted:
            self._noted[entry.path] = noted_share(entry.path)
        return max(self._noted[entry.path], self._alike.get(_kind(entry), 0.0))

    def widen(self, entry: Entry, had: float) -> bool:
        """After it ended for want of memory: it needs more than it had. False where it had a whole GPU."""
        if had >= 1:
            return False
        self._noted[entry.path] = noted_share(entry.path)
        self._alike[_kind(entry)] = min(1.0, max(self.least(entry), had + _MORE))
        return True


def noted_share(run: Path) -> float:
    """The share of a GPU that the run expected to need before its first step; 0 where it has noted none."""
    memory = noted_memory(run)
    there = memory.get("there_bytes")
    return float(memory.get("gpu_share", 0.0) * memory["predicted_bytes"] / there) if there else 0.0


def parts_of(share: float, parts: int) -> int:
    """How many of a GPU's equal parts make this share, 1 at least. A share that is a thousandth too large is not."""
    return max(1, min(parts, math.ceil(share * parts - 0.001)))


def _kind(entry: Entry) -> tuple[str, str]:
    return entry.job.label, repr(entry.job.settings)
