"""The tables of docs/results.md.

python bench/evidence.py FILE... [--baseline NAME ...] [--only PATTERN ...] [--tasks | --aim SHARE]

One line a row, best first: mean OP and BWT with their intervals over runs, what was learnt (the mean of R[i, i]), and
the paired difference in OP from every baseline with its interval; bold: holds after Holm's adjustment over the column.
With --tasks: the score of every task at the end instead of the differences. With --aim: which share of the way from
`sequential` to `joint` the mean OP is, over the runs that all three have, and its difference from the aim (0.8: 80 % of
the way) with its interval.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tables import table

from ilora.commands.compare import compare
from ilora.comparison.differences import contrast_of, mean_difference, values_of
from ilora.comparison.gather import gather
from ilora.comparison.lines import lines_of
from ilora.comparison.run import Run
from ilora.comparison.tables import signed
from ilora.present.numbers import points


def mean(row: dict[str, Any], measure: str, *, interval: bool = False) -> str:
    """Over the runs, with Student's interval where there are several; empty where the row has none."""
    found = row["measures"][measure]
    if not found:
        return ""
    ends = [points(found[end]) for end in ("low", "high")] if interval and found["low"] is not None else []
    return (points(found["mean"]) + (f" [{', '.join(ends)}]" if ends else "")).replace("-", "−")


def difference(row: dict[str, Any]) -> str:
    """In OP from the baseline."""
    found = (row["difference"] or {}).get("OP")
    if not found:
        return ""
    low, middle, high = (signed(found[key]) for key in ("low", "mean", "high"))
    text = f"{middle} [{low}, {high}]"
    return f"**{text}**" if found["holds_after_holm"] else text


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("places", nargs="+", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--baseline", action="append", default=[])
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--tasks", action="store_true")
    shown.add_argument("--aim", type=float)
    args = parser.parse_args()
    if args.aim is not None:
        if args.baseline:
            parser.error("--aim: the way is from sequential to joint, no --baseline is allowed beside it")
        head = ["method", "of the way", f"OP against {args.aim:.0%} of it", "runs"]
        print(table(head, aimed(gather(args.places, args.only).runs, args.aim)), end="")
        return
    with tempfile.TemporaryDirectory() as out:
        made = [compare(args.places, baseline=name, out=out, only=args.only)[0] for name in args.baseline or [None]]
    rows = sorted(made[0]["rows"], key=lambda row: -row["measures"]["OP"]["mean"])
    tasks = [task["label"] for task in made[0]["tasks"]] if args.tasks else []
    against = [] if args.tasks else [f"OP against {one['baseline']}" for one in made]
    head = ["method", "OP", "BWT", "learnt", *tasks, *against, "runs"]
    print(table(head, [cells(row, made, tasks) for row in rows]), end="")


def cells(row: dict[str, Any], made: Sequence[dict[str, Any]], tasks: Sequence[str]) -> list[str]:
    """One line."""
    scores = [points(row["tasks"][task]["kept"]["mean"]) for task in tasks]
    same = [next(other for other in one["rows"] if other["name"] == row["name"]) for one in made]
    beside = scores or [difference(other) for other in same]
    means = [mean(row, "OP", interval=True), mean(row, "BWT", interval=True), mean(row, "plasticity")]
    return [row["name"], *means, *beside, str(len(row["runs"]))]


def aimed(runs: Sequence[Run], aim: float) -> list[list[str]]:
    """The lines of --aim, best first; a point of the way is a row like any other, with which rows are compared."""
    tasks = runs[0].order
    sizes = [len(runs[0].items.ids[task]) for task in tasks]
    rows = {line.name: values_of(line, tasks) for line in lines_of(runs)}
    if not {"sequential", "joint"} <= rows.keys():
        raise SystemExit("--aim: runs of sequential and of joint are needed, and --only must not leave them out")
    start, end = rows.pop("sequential"), rows.pop("joint")
    point = {pair: {"OP": (1 - aim) * start[pair]["OP"] + aim * end[pair]["OP"]} for pair in start if pair in end}
    lines = []
    for name, every in rows.items():
        own = {pair: values for pair, values in every.items() if pair in point}
        whole = {pair: end[pair] for pair in own}
        made = [contrast_of(*two, "OP") for two in ((own, start), (whole, start), (own, point))]
        found = [mean_difference(contrast, sizes) for contrast in made if contrast]
        if not found:
            continue
        gone, way, beyond = found
        text = "{} [{}, {}]".format(*map(signed, (beyond.mean, beyond.low, beyond.high)))
        lines.append((gone.mean / way.mean, [name, text, str(len(own))]))
    lines.sort(key=lambda line: -line[0])
    return [[name, f"{share:.0%}".replace("-", "−"), *rest] for share, (name, *rest) in lines]


if __name__ == "__main__":
    main()
