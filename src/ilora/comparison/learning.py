"""What a row learnt of its tasks beside `individual`, an adapter of its own for each: too little is no training."""

from __future__ import annotations

from collections.abc import Sequence

from ilora.comparison.items import measures
from ilora.comparison.lines import Line, Pairing
from ilora.results.matrix import LEAST_LEARNT, learnt_share

Learnt = list[tuple[float | None, float | None]]
"""For each order and seed that both have, the plasticity of a row and that of `individual`."""


def alone_of(lines: Sequence[Line]) -> Line | None:
    """The row of `individual`, if there is one."""
    return next((line for line in lines if line.first_run.results.get("method") == "individual"), None)


def learnt_beside(line: Line, alone: Line | None) -> Learnt:
    """Of a row and of `individual`; empty without a common order and seed."""
    if alone is None:
        return []
    common = [pairing for pairing in line.runs if pairing in alone.runs]
    return [(_learnt(line, pairing), _learnt(alone, pairing)) for pairing in common]


def _learnt(line: Line, pairing: Pairing) -> float | None:
    return measures(line.runs[pairing], line.variant)["plasticity"]


def share_of(learnt: Learnt) -> float | None:
    """Its mean, as a share of that of `individual`; None where it is not known (joint training)."""
    return learnt_share([own for own, _ in learnt], [best for _, best in learnt])


def is_untrained(share: float | None) -> bool:
    """Whether a row learnt too little for a verdict."""
    return share is not None and share < LEAST_LEARNT
