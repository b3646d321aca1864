"""Whether two streams rank methods alike: rank correlations between two evidence files.

python bench/ranks.py ONE OTHER [--measure OP] [--only PATTERN ...] [--without ROW ...] [--repeats 2000]

ONE and OTHER are evidence files (`ilora compare --save`) or folders of runs, each of one stream. The rows that both
have are ranked by their means over the runs; in each file only the orders and seeds that all these rows have count.
Printed are the ranks and Spearman's and Kendall's correlation (tau b). Brackets hold the middle 95 % of correlations
over drawn runs: in each repeat orders and seeds are drawn anew with replacement, the same for all rows, seeds within
drawn orders. Noise of the runs moves both ends towards 0; the choice of methods is not part of the interval.
Rows that are no methods to choose between (joint, zero_shot) lift the correlation: leave them out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from tables import table

from ilora.comparison.gather import gather
from ilora.comparison.items import measures
from ilora.comparison.lines import Line, lines_of
from ilora.comparison.statistics import LEVEL, Floats
from ilora.errors import InputError
from ilora.results.reader import SUMMARY

LEAST_ROWS = 3  # two rows have a correlation of 1 or -1, whatever they are


class Scores(NamedTuple):
    """A stream: (runs, rows) of the measure, and the order of each run."""

    values: Floats
    orders: list[tuple[str, ...]]


def rows_of(place: Path, only: Sequence[str], measure: str) -> dict[str, Line]:
    """By name, those of which every run has the measure."""
    lines = lines_of(gather([place], only).runs)
    return {
        line.name: line
        for line in lines
        if all(measures(run, line.variant)[measure] is not None for run in line.runs.values())
    }


def scores_of(place: Path, lines: Sequence[Line], measure: str) -> Scores:
    """Raises InputError where the rows have no order and seed in common."""
    common = [pairing for pairing in lines[0].runs if all(pairing in line.runs for line in lines)]
    if not common:
        raise InputError(f"{place}: {', '.join(line.name for line in lines)} have no order and seed in common")
    values = [[measures(line.runs[pairing], line.variant)[measure] for line in lines] for pairing in common]
    return Scores(np.array(values, dtype=np.float64), [order for order, _ in common])


def drawn(scores: Scores, repeats: int, source: np.random.Generator) -> Floats:
    """(repeats, rows) means over runs drawn with replacement: orders, then seeds within each."""
    orders = sorted(set(scores.orders))
    runs_of = [[place for place, other in enumerate(scores.orders) if other == order] for order in orders]
    means = []
    for chosen in source.integers(len(orders), size=(repeats, len(orders))):
        runs = np.concatenate([source.choice(runs_of[order], size=len(runs_of[order])) for order in chosen])
        means.append(scores.values[runs].mean(axis=0))
    return np.array(means)


def correlations(one: Floats, other: Floats) -> Floats:
    """(2, repeats) Spearman's and Kendall's of (repeats, rows) twice; nan where all rows of a stream are equal.

    Both are cosines: of the centred ranks, and of the signs of all differences between two rows.
    """
    made = []
    for features in (centred_ranks, signs):
        left, right = features(one), features(other)
        with np.errstate(invalid="ignore"):
            made.append((left * right).sum(1) / np.sqrt((left**2).sum(1) * (right**2).sum(1)))
    return np.array(made)


def centred_ranks(means: Floats) -> Floats:
    """(repeats, rows) ranks around 0; equal rows share theirs."""
    ranks: Floats = rankdata(means, axis=1) - (means.shape[1] + 1) / 2
    return ranks


def signs(means: Floats) -> Floats:
    """(repeats, pairs of rows) 1, 0 or -1."""
    one, other = np.triu_indices(means.shape[1], 1)
    found: Floats = np.sign(means[:, one] - means[:, other])
    return found


def interval(one: Scores, other: Scores, repeats: int, seed: int = 0) -> Floats:
    """(2, 2) the ends of Spearman's, and of Kendall's."""
    source = np.random.default_rng(seed)
    found = correlations(drawn(one, repeats, source), drawn(other, repeats, source))
    ends: Floats = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1).T
    return ends


def main() -> None:
    """Print the ranks and the correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs=2, type=Path, metavar="FILE")
    parser.add_argument("--measure", default="OP", choices=SUMMARY)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=2000)
    args = parser.parse_args()
    try:
        found = [rows_of(place, args.only, args.measure) for place in args.places]
        if unknown := [name for name in args.without if not any(name in lines for lines in found)]:
            raise InputError(f"--without {unknown[0]}: no such row; there are {', '.join(found[0] | found[1])}")
        names = [name for name in found[0] if name in found[1] and name not in args.without]
        if len(names) < LEAST_ROWS:
            raise InputError(f"{len(names)} rows in common ({', '.join(names)}); {LEAST_ROWS} or more are needed")
        one, other = (
            scores_of(place, [lines[name] for name in names], args.measure)
            for place, lines in zip(args.places, found, strict=True)
        )
    except InputError as error:
        parser.error(str(error))
    report(names, one, other, args.measure, args.repeats)


def report(names: Sequence[str], one: Scores, other: Scores, measure: str, repeats: int) -> None:
    """Every row's mean and rank, then the correlations."""
    means = [scores.values.mean(axis=0) for scores in (one, other)]
    ranks = [rankdata(mean if measure == "forgetting" else -mean) for mean in means]
    lines = []
    for row in np.argsort(ranks[0], kind="stable"):
        shown = [f"{100 * mean[row]:.1f} ({rank[row]:g})" for mean, rank in zip(means, ranks, strict=True)]
        lines.append([names[row], *(text.replace("-", "−") for text in shown)])
    print(table([f"{measure} (rank)", *(f"{len(scores.orders)} runs" for scores in (one, other))], lines))
    several = all(len(scores.orders) > 1 for scores in (one, other))
    ends = interval(one, other, repeats) if several else None
    for place, name in enumerate(("Spearman", "Kendall")):
        value = correlations(means[0][None], means[1][None])[place, 0]
        beside = "(no interval: a stream has one run)" if ends is None else "[{:.2f}, {:.2f}]".format(*ends[place])
        print(f"{name}: {value:.2f} {beside}".replace("-", "−"))


if __name__ == "__main__":
    main()
