"""What a method's runs cost on average, and where that differs from the baseline's cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ilora.comparison.run import Run
from ilora.present.numbers import number, plain
from ilora.results.matrix import mean_of_all

SAME = 0.01  # a share less than this apart counts as the same: batches end a few tokens apart
# What makes two budgets equal or not; times and peaks depend on the machine and are only shown.
WORK = {
    "trained_tokens": "tokens",
    "forward_rows": "rows forward",
    "backward_rows": "rows backward",
    "trainable_parameters": "trainable parameters",
}


def cost(runs: Sequence[Run]) -> dict[str, Any]:
    """The means over the runs of the numbers in `cost` of results.json, those in it below `stored_bytes`, too.

    None where a run has none; no kind of stored bytes counts as 0 where others are given.
    """
    costs = [run.results.get("cost") or {} for run in runs]
    keys = dict.fromkeys(key for found in costs for key in found if key != "stored_bytes")
    stored = [found.get("stored_bytes") for found in costs]
    made: dict[str, Any] = {plain(key, 40): _mean_of_numbers([found.get(key) for found in costs]) for key in keys}
    made["stored_bytes"] = None
    if all(isinstance(found, Mapping) for found in stored):
        kinds = dict.fromkeys(kind for found in stored if found for kind in found)
        made["stored_bytes"] = {
            plain(kind, 40): _mean_of_numbers([found.get(kind, 0) for found in stored if found is not None])
            for kind in kinds
        }
    return made


def _mean_of_numbers(values: Iterable[object]) -> float | None:
    return mean_of_all([number(value) for value in values])


def budget(own: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Where a cost differs from the baseline's, in words: `1.5x rows backward`, `+1.2 MB adapters`."""
    notes, unknown = [], []
    for key, words in WORK.items():
        here, there = own.get(key), base.get(key)
        if here is None or there is None:
            unknown.append(words)
        elif not _same(here, there):
            notes.append(
                f"{here / there:.2g}x {words}" if there and here else f"{_count(here)} {words}, not {_count(there)}"
            )
    ours, theirs = own.get("stored_bytes"), base.get("stored_bytes")
    if ours is None or theirs is None:
        unknown.append("stored bytes")
    else:
        for kind in dict.fromkeys([*theirs, *ours]):
            here, there = ours.get(kind, 0), theirs.get(kind, 0)
            if here is None or there is None:
                unknown.append(f"{kind} bytes")
            elif not _same(here, there):
                notes.append(f"{'+' if here > there else '−'}{size(abs(here - there))} {kind}")
    return notes + ([f"unknown: {', '.join(unknown)}"] if unknown else [])


def _same(here: float, there: float) -> bool:
    return abs(here - there) <= SAME * max(abs(here), abs(there))


def _count(value: float) -> str:
    return f"{value:,.0f}" if value else "no"


def size(amount: float | None) -> str:
    """Bytes in words, in powers of 1000."""
    if amount is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 999.5 or unit == "GB":
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1000
    raise AssertionError("every amount has a unit")
