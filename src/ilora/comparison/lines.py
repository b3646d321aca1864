"""The rows of a comparison: the runs of one label under one answering variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ilora.comparison.run import Run
from ilora.errors import InputError
from ilora.present.numbers import plain
from ilora.registry import did_you_mean

Pairing = tuple[tuple[str, ...], int]  # the order and the seed of a run: runs that share them are a pair


@dataclass(frozen=True)
class Line:
    """A label's runs under one answering variant: a row of every table."""

    name: str
    label: str
    variant: str
    runs: Mapping[Pairing, Run]

    @property
    def first_run(self) -> Run:
        """For what all runs of a line have in common."""
        return next(iter(self.runs.values()))

    @property
    def answers(self) -> bool:
        """Whether this is the variant that answers."""
        return bool(self.variant == self.first_run.results["answers_with"])


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """One for every label and variant, in the order of the labels' first runs."""
    made: dict[tuple[str, str], dict[Pairing, Run]] = {}
    several = {run.label for run in runs if len(run.variants) > 1}
    for run in runs:
        for variant in run.variants:
            made.setdefault((run.label, variant), {})[run.order, run.seed] = run
    lines = [
        Line(f"{label} ({plain(variant, 20)})" if label in several else label, label, variant, found)
        for (label, variant), found in sorted(made.items(), key=lambda item: _place(runs, item[0][0]))
    ]
    names = [line.name for line in lines]
    for twice in (name for name in names if names.count(name) > 1):
        raise InputError(f"two rows would be called {twice!r}: give the sweep's methods other labels")
    return lines


def _place(runs: Sequence[Run], label: str) -> int:
    return next(place for place, run in enumerate(runs) if run.label == label)


def find_baseline(lines: Sequence[Line], wanted: str | None) -> Line:
    """The line of a name or a label (then of its answering variant); None: `sequential`, else the first line."""
    if wanted is None:
        return next((line for line in lines if line.label == "sequential"), lines[0])
    for line in lines:
        if wanted == line.name or (wanted == line.label and line.answers):
            return line
    names = [line.name for line in lines]
    raise InputError(f"--baseline {wanted}: no such row{did_you_mean(wanted, names)}; there are {', '.join(names)}")
