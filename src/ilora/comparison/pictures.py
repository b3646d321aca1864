"""The pictures of a comparison, in the style of a run's report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ilora.comparison.tables import Comparison
from ilora.present.figures import COLOURS, GRID, INK, MUTED, new_figure, short_name

BLUE, ORANGE = COLOURS[0], COLOURS[1]
ACROSS = 4  # small pictures in a row
WIDTH = 10.6  # inches
# What there can be at all, 0..1: Student's t knows no bounds, so that an interval may go beyond them.
SCORES, CHANGES = (0.0, 1.0), (-1.0, 1.0)
BOUNDS = {"OP": SCORES, "plasticity": SCORES, "learning": SCORES, "BWT": CHANGES, "keeping": CHANGES}


@dataclass(frozen=True)
class Picture:
    """A picture that can be drawn: its title, a line that explains it, and what draws it."""

    title: str
    text: str
    draw: Callable[[], Figure]


def pictures(comparison: Comparison) -> dict[str, Picture]:
    """The pictures by name; only those for which there are numbers."""
    base = comparison["baseline"]
    single = all(row["measures"]["OP"]["low"] is None for row in comparison["rows"] if row["measures"]["OP"])
    bars = "" if single else " Bars: 95 % interval over the runs."
    drawn: dict[str, tuple[str, str, Callable[[], Figure] | None]] = {
        "measures": ("At the end, and since learning", f"OP and BWT in points.{bars}", _measures(comparison)),
        "differences": (
            f"Difference from {base}",
            "Row minus baseline, in points, with the paired 95 % interval. Hollow: no difference shown. "
            "Filled: the interval leaves 0 out. Square: also after Holm's adjustment.",
            _differences(comparison),
        ),
        "learning": (
            "Learning",
            f"Mean score of the tasks trained so far, after each task; band: 95 % over the runs. Grey: {base}.",
            _curves(comparison, "learning", "tasks trained", "score, points of 100"),
        ),
        "keeping": (
            "Forgetting",
            "How far a task is from its score just after its own training, by the number of tasks trained since "
            f"(mean over the tasks that are old enough); band: 95 % over the runs. Grey: {base}.",
            _curves(comparison, "keeping", "tasks since", "change, points"),
        ),
        "stability": (
            "Stability and plasticity",
            f"Up: earlier tasks kept (BWT). Right: tasks learnt (plasticity).{bars}",
            _scatter(comparison, _measure("plasticity"), _measure("BWT"), "plasticity, points", "BWT, points"),
        ),
        "cost": (
            "Cost and score",
            f"Rows that went through the model in training, forward and backward, and OP.{bars}",
            _scatter(comparison, _passes, _measure("OP"), "rows forward and backward, thousands", "OP, points"),
        ),
    }
    return {name: Picture(title, text, draw) for name, (title, text, draw) in drawn.items() if draw is not None}


def _label(row: Mapping[str, Any]) -> str:
    return short_name(row["name"], 30)


def _measures(comparison: Comparison) -> Callable[[], Figure]:
    rows = comparison["rows"]

    def draw() -> Figure:
        figure = new_figure(WIDTH, 1.0 + 0.27 * len(rows))
        for axes, key in zip(figure.subplots(1, 2, sharey=True), ("OP", "BWT"), strict=True):
            for place, row in enumerate(rows):
                colour = MUTED if row["difference"] is None else BLUE
                _dot(axes, _in_points(row["measures"][key], key), place, colour=colour)
            _rows_axis(axes, rows)
            axes.set_xlabel(f"{key}, points")
            if key == "BWT":
                axes.axvline(0, color=INK, linewidth=0.8)
        return figure

    return draw


def _in_points(found: Mapping[str, Any] | None, key: str) -> dict[str, Any] | None:
    """Mean and ends of an interval as they are drawn: in points, the ends within what the measure can be."""
    if found is None:
        return None
    least, most = BOUNDS[key]
    ends = {end: None if found[end] is None else 100 * min(most, max(least, found[end])) for end in ("low", "high")}
    return {"mean": 100 * found["mean"], **ends}


def _dot(axes: Any, shown: Mapping[str, Any] | None, place: int, *, colour: str) -> None:
    if shown is None:
        return
    if shown["low"] is not None:
        axes.hlines(place, shown["low"], shown["high"], color=colour, linewidth=2.0, alpha=0.55)
    axes.plot(shown["mean"], place, "o", color=colour, markersize=5.5)


def _rows_axis(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True)


def _differences(comparison: Comparison) -> Callable[[], Figure] | None:
    keys = ("OP", "BWT", "forgetting")
    rows = [row for row in comparison["rows"] if row["difference"]]
    shown = [key for key in keys if any(key in row["difference"] for row in rows)]
    if not shown:
        return None

    def draw() -> Figure:
        figure = new_figure(WIDTH, 1.0 + 0.27 * len(rows))
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, key in zip(panels, shown, strict=True):
            for place, row in enumerate(rows):
                _verdict(axes, row["difference"].get(key), place)
            axes.axvline(0, color=INK, linewidth=0.9)
            _rows_axis(axes, rows)
            axes.set_xlabel(f"{key} difference, points")
        return figure

    return draw


def _verdict(axes: Any, found: Mapping[str, Any] | None, place: int) -> None:
    if found is None:
        return
    open_ = found["verdict"] not in ("better", "worse")
    colour = MUTED if open_ else BLUE if found["verdict"] == "better" else ORANGE
    axes.hlines(place, 100 * found["low"], 100 * found["high"], color=colour, linewidth=2.0, alpha=0.55)
    marker = "s" if found["holds_after_holm"] else "o"
    face = "#ffffff" if open_ else colour
    axes.plot(100 * found["mean"], place, marker, color=colour, markerfacecolor=face, markersize=5.5)


def _curves(comparison: Comparison, key: str, across: str, up: str) -> Callable[[], Figure] | None:
    """A small panel for each method, so that any number of them can be read, with the baseline in each."""
    base = next((row for row in comparison["rows"] if row["difference"] is None), None)
    rows = [row for row in comparison["rows"] if row[key] and row["difference"] is not None]
    if len(comparison["tasks"]) < 2 or not rows:
        return None

    def draw() -> Figure:
        columns = min(ACROSS, len(rows))
        lines = -(-len(rows) // columns)
        figure = Figure(figsize=(WIDTH if columns == ACROSS else 2.9 * columns, 0.55 + 1.65 * lines))
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(rows):
                axes.set_visible(False)
                continue
            if base is not None and base[key]:
                _line(axes, base, key, colour="#8b96a0", dash="--")
            _line(axes, rows[place], key, colour=BLUE, dash="-")
            axes.set_title(_label(rows[place]), loc="left", fontsize=8.5)
            axes.grid(visible=True)
            axes.tick_params(length=0, labelsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        figure.supxlabel(across, fontsize=9)
        figure.supylabel(up, fontsize=9)
        # By hand: constrained layout takes seconds for so many axes.
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.075 * WIDTH / figure.get_figwidth(), right=0.99, bottom=0.5 / height,
                               top=1 - 0.25 / height, wspace=0.09, hspace=0.32)  # fmt: skip
        return figure

    return draw


def _line(axes: Any, row: Mapping[str, Any], key: str, *, colour: str, dash: str) -> None:
    """A row's curve with its band; places without a value are left out."""
    first = 1 if key == "learning" else 0
    curve = {x: shown for x, found in enumerate(row[key], first) if (shown := _in_points(found, key)) is not None}
    band = {x: shown for x, shown in curve.items() if shown["low"] is not None}
    low, high = ([shown[end] for shown in band.values()] for end in ("low", "high"))
    axes.fill_between(list(band), low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(list(curve), [shown["mean"] for shown in curve.values()], color=colour, linestyle=dash, linewidth=1.5,
              marker="o" if len(curve) < 12 else None, markersize=2.6)  # fmt: skip


Reading = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


def _measure(key: str) -> Reading:
    return lambda row: _in_points(row["measures"][key], key)


def _passes(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    counts = [row["cost"].get(key) for key in ("forward_rows", "backward_rows")]
    return None if None in counts else {"mean": sum(counts) / 1000, "low": None, "high": None}


def _scatter(comparison: Comparison, x_of: Reading, y_of: Reading, across: str, up: str) -> Callable[[], Figure] | None:
    found = [(row, x_of(row), y_of(row)) for row in comparison["rows"]]
    known = [(row, x, y) for row, x, y in found if x is not None and y is not None]
    if not known:
        return None

    def draw() -> Figure:
        figure = new_figure(5.6, max(3.6, 1.0 + 0.2 * len(known)))
        axes = figure.add_subplot()
        for row, x, y in known:
            colour = MUTED if row["difference"] is None else BLUE
            if x["low"] is not None:
                axes.hlines(y["mean"], x["low"], x["high"], color=colour, alpha=0.28, linewidth=1.1)
            if y["low"] is not None:
                axes.vlines(x["mean"], y["low"], y["high"], color=colour, alpha=0.28, linewidth=1.1)
            axes.plot(x["mean"], y["mean"], "o", color=colour, markersize=5)
        axes.margins(0.08)
        axes.grid(visible=True)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        _names_beside(axes, known)
        return figure

    return draw


def _names_beside(axes: Any, known: Sequence[tuple[Any, Any, Any]]) -> None:
    """The names in a column right of the axes, in the points' order of height, each with a thin line to its point."""
    bottom, top = axes.get_ylim()
    right = axes.get_xlim()[1]
    ordered = sorted(known, key=lambda item: item[2]["mean"])
    step = (top - bottom) / max(len(ordered), 12)
    places: list[float] = []
    for count, (_, _, y) in enumerate(ordered):
        highest = top - (len(ordered) - count - 0.5) * step
        places.append(min(highest, max(y["mean"], places[-1] + step if places else bottom + step / 2)))
    width = right - axes.get_xlim()[0]
    for place, (row, x, y) in zip(places, ordered, strict=True):
        axes.annotate(
            _label(row), (x["mean"], y["mean"]), (right + 0.05 * width, place), va="center", fontsize=8,
            annotation_clip=False, arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkB": 3},
        )  # fmt: skip
    axes.set_xlim(right=right)
