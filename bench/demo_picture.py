"""docs/demo.svg, the picture of the README: the mean score on the tasks seen so far, after each task of the demo.

    make demo && .venv/bin/python bench/demo_picture.py runs/demo

A white background is drawn, since GitHub shows the picture on a dark page too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from ilora.files import write_atomic
from ilora.present.figures import COLOURS, DASHES, MARKERS, as_svg, new_figure
from ilora.results.reader import read_results
from ilora.results.scores import contrast_folder

PICTURE = Path(__file__).parents[1] / "docs" / "demo.svg"


def seen_so_far(results: dict[str, Any]) -> list[float]:
    """Points of 100: after each task, the mean over it and all tasks before it."""
    rows = results["variants"][results["answers_with"]]["R"]
    return [100 * fmean(row[: number + 1]) for number, row in enumerate(rows)]


def draw(runs: list[dict[str, Any]]) -> Figure:
    """One line a method."""
    figure = new_figure(7.2, 2.9)
    axes = figure.subplots()
    for order, results in enumerate(runs):
        means = seen_so_far(results)
        style = {"color": COLOURS[order], "linestyle": DASHES[order], "marker": MARKERS[order], "linewidth": 2}
        axes.plot(range(1, len(means) + 1), means, **style)
        axes.annotate(results["title"], (len(means), means[-1]), xytext=(8, -3), textcoords="offset points")
    names = [task["name"] for task in runs[0]["tasks"]]
    axes.set_xticks(range(1, len(names) + 1), [f"+ {name}" if number else name for number, name in enumerate(names)])
    axes.set_xlim(0.7, len(names) + 1.1)
    axes.set_ylim(0, 100)
    axes.set_ylabel("mean score on the\ntasks seen so far")
    axes.set_xlabel("trained on, one task after the other")
    axes.grid(axis="y")
    return figure


def main() -> None:
    """Draw it from the demo's run folder."""
    run = Path(sys.argv[1])
    runs = [read_results(run), read_results(contrast_folder(run, "sequential"))]
    text = as_svg("demo", lambda: draw(runs)).replace("<svg ", '<svg style="background:#fff" ', 1)
    write_atomic(PICTURE, text + "\n")
    print(f"{PICTURE}: {[round(means[-1], 1) for means in map(seen_so_far, runs)]} at the end")


if __name__ == "__main__":
    main()
