"""How often the interval of `ilora compare` leaves 0 out although there is nothing to find (docs/comparing.md).

python bench/coverage.py [--repeats 4000]

Drawn are differences of two equal methods over three tasks of 150 test items, in points of 100. Pairs of runs, test
items and single answers each vary by a normal number; the columns are mixtures of the three. Each entry is the share of
intervals that leave 0 out; the promise is 5 %. With fewer than three pairs `ilora compare` gives no verdict, and the
entry in brackets is what the interval alone would say.
"""

from __future__ import annotations

import argparse

import numpy as np
from tables import table

from ilora.comparison.statistics import LEAST_PAIRS, Floats, difference

SIZES = (150, 150, 150)
MIXTURES = {  # standard deviations in points: between pairs, between items, of an answer of a pair
    "pairs 12": (12, 30, 50),
    "pairs 6": (6, 30, 50),
    "pairs 1, items 50": (1, 50, 20),
    "answers alone": (0, 0, 50),
    "pairs alone": (12, 0, 0),
}
DESIGNS = {  # the stratum of each pair
    "2 pairs": [0] * 2,
    "3 pairs": [0] * 3,
    "6 pairs": [0] * 6,
    "12 pairs": [0] * 12,
    "2 orders x 2 seeds": [0, 0, 1, 1],
    "2 orders x 3 seeds": [0, 0, 0, 1, 1, 1],
    "2 orders x 6 seeds": [0] * 6 + [1] * 6,
}


def draw(source: np.random.Generator, strata: list[int], mixture: tuple[float, float, float]) -> Floats:
    """(pairs, items) of mean 0. Strata are 20 points apart, which is no part of the error within them."""
    pairs, items = len(strata), sum(SIZES)
    between, of_items, of_answers = (deviation / 100 for deviation in mixture)
    far = 0.2 * (np.array(strata) - np.mean(strata))[:, None]
    of_pairs = between * source.standard_normal((pairs, 1))
    noise = of_items * source.standard_normal(items) + of_answers * source.standard_normal((pairs, items))
    return (far + of_pairs + noise) / len(SIZES)


def wrong(strata: list[int], mixture: tuple[float, float, float], repeats: int) -> float:
    """The share of intervals without 0."""
    source = np.random.default_rng([len(strata), *map(int, mixture)])
    found = [difference(draw(source, strata, mixture), SIZES, strata) for _ in range(repeats)]
    return sum(one.low > 0 or one.high < 0 for one in found) / repeats


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4000)
    repeats = parser.parse_args().repeats
    rows = []
    for name, strata in DESIGNS.items():
        shares = [f"{100 * wrong(strata, mixture, repeats):.1f} %" for mixture in MIXTURES.values()]
        rows.append([name, *(f"({share})" if len(strata) < LEAST_PAIRS else share for share in shares)])
    print(table(["", *MIXTURES], rows))


if __name__ == "__main__":
    main()
