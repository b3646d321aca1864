"""The tables of docs/results.md: python bench/evidence.py FILE... [--baseline NAME ...] [--only PATTERN ...] [--tasks]

One line a row, best first: mean OP and BWT, what was learnt (the mean of R[i, i]), and the paired difference in OP from
every baseline with its interval; bold: holds after Holm's adjustment over the column. With --tasks: the score of every
task at the end instead of the differences.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tables import table

from ilora.compare.command import compare
from ilora.compare.tables import signed
from ilora.report.tables import points


def mean(row: dict[str, Any], measure: str) -> str:
    """Over the runs; empty where the row has none."""
    found = row["measures"][measure]
    return points(found["mean"]).replace("-", "−") if found else ""


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
    parser.add_argument("--tasks", action="store_true")
    args = parser.parse_args()
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
    return [row["name"], *(mean(row, key) for key in ("OP", "BWT", "plasticity")), *beside, str(len(row["runs"]))]


if __name__ == "__main__":
    main()
