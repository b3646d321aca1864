"""Pictures of paths, planes and similarities: SVG and PNG for a paper, readable in black and white."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from ilora.files import write_atomic
from ilora.present.figures import INK, MARKERS, MUTED, as_png, as_svg, new_figure, series_look, short_name

Result = Mapping[str, Any]
"""The content of a file of connectivity/."""

_BOLD: dict[str, dict[str, Any]] = {
    "mean": {"linestyle": "-", "marker": "o", "linewidth": 2.4},
    "old": {"linestyle": (0, (5, 1.5)), "marker": "s", "linewidth": 1.8},
    "new": {"linestyle": (0, (1, 1)), "marker": "^", "linewidth": 1.8},
}
_TOGETHER = 3  # tasks that can still be drawn in one panel with their means
SCALES = {"score": (100.0, "score, points of 100"), "loss": (1.0, "loss, nats per answer token")}
_LABEL_ROOM = 0.07  # a contour's label keeps this share of the picture's sides away from its edge

GROUPS = {"old": "old tasks (A_p)", "new": "new task (A_n)", "mean": "all tasks (A_all)"}


def drawings(result: Result) -> dict[str, Callable[[], Figure]]:
    """What there is to draw of a result, by the ending of its name."""
    if result["kind"] == "path":
        return {"": partial(_draw_path, result)}
    if result["kind"] == "plane":
        return {f"-{value}": partial(_draw_plane, result, value) for value in ("score", "loss")}
    if result["kind"] == "similarity":
        return {"": partial(_draw_similarity, result)}
    return {}


def write(result: Result, folder: Path, name: str) -> dict[str, str]:
    """Write `folder/name*.svg` and `.png`; returns the SVG texts by the files' stems."""
    made = {}
    for ending, draw in drawings(result).items():
        stem = f"{name}{ending}"
        made[stem] = as_svg(stem, draw)
        write_atomic(folder / f"{stem}.svg", f'<?xml version="1.0" encoding="utf-8"?>\n{made[stem]}'.encode())
        write_atomic(folder / f"{stem}.png", as_png(draw))
    return made


def _draw_path(result: Result) -> Figure:
    """Score above, loss below; means bold, with bands of one standard error; many tasks in panels of their own."""
    tasks, groups = result["tasks"], [name for name in GROUPS if name in result["groups"]]
    apart = len(tasks) > _TOGETHER
    figure = new_figure(10.4 if apart else 6.4, 6.4)
    panels = figure.subplots(2, 2 if apart else 1, sharex=True, sharey="row", squeeze=False)
    for row, key in zip(panels, SCALES, strict=True):
        for order, task in enumerate(tasks):
            look = series_look(order) | {"linewidth": 1.1, "label": short_name(task["name"]), "zorder": 4}
            _line(row[-1], result["points"], ("tasks", task["label"]), key, look, band=not apart)
        for name in groups:
            if len(result["groups"][name]) > 1 or apart:  # a group of one task is that task again
                _line(row[0], result["points"], (name,), key, _BOLD[name] | _bold(name), band=True)
        row[0].set_ylabel(SCALES[key][1])
    best = result["profiles"]["mean"]["score"]["best_t"]
    for axes in panels.flat:
        axes.axvline(best, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
        axes.grid(visible=True)
        axes.set_xlim(-0.02, 1.02)
    one, two = (short_name(end["label"], 34) for end in result["ends"])
    figure.supxlabel(f"t   (0: {one}; 1: {two}; dotted: highest mean score; bands: one standard error)", fontsize=8.5)
    title = f"{result['path']} path in {result['space']}"
    panels[0][0].set_title(f"{title}: means over tasks" if apart else title, loc="left", fontsize=10, fontweight="bold")
    if apart:
        panels[0][1].set_title("each task", loc="left", fontsize=10, fontweight="bold")
    handles = [line for axes in panels[0] for line in axes.get_legend_handles_labels()[0]]
    figure.legend(handles, [line.get_label() for line in handles], loc="outside upper center",
                  ncols=4 if apart else 3, handlelength=4.5)  # fmt: skip
    return figure


def _bold(name: str) -> dict[str, Any]:
    return {"color": INK, "markerfacecolor": "#ffffff", "markersize": 5.5, "label": GROUPS[name], "zorder": 5}


def _line(
    axes: Any, points: Sequence[Result], place: Sequence[str], key: str, look: Mapping[str, Any], *, band: bool
) -> None:
    """One series over t. place: where its values stand within a point."""
    values = list(points)
    for step in place:
        values = [value[step] for value in values]
    ts, scale = [point["t"] for point in points], SCALES[key][0]
    ys = [scale * value[key] for value in values]
    errors = [scale * (value[f"{key}_se"] or 0.0) for value in values]
    axes.plot(ts, ys, **{"markersize": 4.5, **look})
    if band:
        most = scale if key == "score" else math.inf  # neither a score nor a loss is below 0
        low = [max(0.0, y - e) for y, e in zip(ys, errors, strict=True)]
        high = [min(most, y + e) for y, e in zip(ys, errors, strict=True)]
        axes.fill_between(ts, low, high, color=look["color"], alpha=0.13, linewidth=0)


def _draw_plane(result: Result, key: str) -> Figure:
    """Contours of the mean; corners, and the run's adapters where they lie on the plane or close to it."""
    scale, label = SCALES[key]
    xs, ys = result["x"], result["y"]
    wide, high = xs[-1] - xs[0], ys[-1] - ys[0]
    longest = max(wide, high)
    figure = new_figure(1.9 + 5.0 * wide / longest, 1.7 + 5.0 * high / longest)
    axes = figure.add_subplot()
    rows = [[scale * point["mean"][key] for point in row] for row in result["grid"]]
    filled = axes.contourf(xs, ys, rows, levels=9, cmap="Greys" if key == "loss" else "Greys_r", alpha=0.5)
    lines = axes.contour(xs, ys, rows, levels=filled.levels, colors=INK, linewidths=0.7)
    places = [place for segments in lines.allsegs for place in _label_places(segments, xs, ys)]
    if places:
        axes.clabel(lines, fontsize=7, fmt="%.4g", manual=places)
    figure.colorbar(filled, ax=axes, label=f"mean {label}", ticks=FixedLocator(list(filled.levels)), format="%.4g")
    for order, corner in enumerate(result["corners"]):
        title = f"{short_name(corner['label'], 30)}: {scale * corner['mean'][key]:.4g}"
        axes.plot(corner["x"], corner["y"], MARKERS[order], color="#ffffff", markeredgecolor=INK, markersize=9,
                  zorder=6, label=title)  # fmt: skip
    _draw_trail(axes, result["trail"])
    axes.set(xlim=(xs[0], xs[-1]), ylim=(ys[0], ys[-1]), aspect="equal")
    axes.set_xlabel(f"distance along e₁ ({result['space']})")
    axes.set_ylabel(f"distance along e₂ ({result['space']})")
    figure.legend(loc="outside lower center", ncols=2, handlelength=3.2)
    return figure


def _label_places(segments: Sequence[Any], xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Where a level's lines are labelled: on the longest of them, at its vertex that is farthest from the edge."""
    wide, high = xs[-1] - xs[0], ys[-1] - ys[0]

    def room(place: Any) -> float:
        x, y = (place[0] - xs[0]) / wide, (place[1] - ys[0]) / high
        return float(min(x, 1.0 - x, y, 1.0 - y))

    longest = max(segments, key=len, default=())
    if len(longest) < 2:
        return []
    best = max(longest, key=room)
    return [(float(best[0]), float(best[1]))] if room(best) > _LABEL_ROOM else []


def _draw_trail(axes: Any, trail: Sequence[Result]) -> None:
    """One line a variant; a hollow place is one whose adapter is far off the plane."""
    for order, variant in enumerate(dict.fromkeys(point["variant"] for point in trail)):
        points = [point for point in trail if point["variant"] == variant]
        look = series_look(order)
        axes.plot([p["x"] for p in points], [p["y"] for p in points], color=look["color"], marker=".", zorder=5,
                  linestyle=look["linestyle"], linewidth=1.5, markersize=7,
                  label=f"{short_name(variant)} along training (projected)")  # fmt: skip
        far = [point for point in points if not point["near"]]
        axes.plot([p["x"] for p in far], [p["y"] for p in far], ".", color=look["color"], zorder=5.5, markersize=7,
                  markerfacecolor="#ffffff")  # fmt: skip


def _draw_similarity(result: Result) -> Figure:
    """CKA after each layer, overlap of the update subspaces, distance along training in each space."""
    spaces = [where for where in ("factors", "delta") if any(where in way for way in result["along"].values())]
    figure = new_figure(8.2, 5.0 + 2.0 * len(spaces))
    panels = figure.subplots(2 + len(spaces), 1)
    _draw_cka(panels[0], result)
    angles = result["angles"]["layers"]
    for order, side in enumerate(("out", "in")):
        ys = [float("nan") if row[side]["overlap"] is None else row[side]["overlap"] for row in angles]
        panels[1].plot(range(1, len(ys) + 1), ys, **series_look(order), markersize=3, label=f"{side}put side")
    panels[1].set(xlabel="adapted module, in the model's order", ylabel="overlap (mean cos²)", ylim=(-0.02, 1.02))
    for axes, where in zip(panels[2:], spaces, strict=True):
        for order, (variant, way) in enumerate(result["along"].items()):
            if where in way:
                axes.plot(way["when"], way[where]["from_first"], **series_look(order), markersize=4,
                          label=f"{short_name(variant)}, from\n{short_name(way['label'][0], 24)}")  # fmt: skip
        axes.set(xlabel="tasks trained", ylabel=f"distance in {where}")
    for axes in panels[:2]:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels:
        axes.grid(visible=True)
        axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.2)
    one, two = (short_name(end["label"], 30) for end in result["ends"])
    panels[0].set_title(f"{one} and {two}", loc="left", fontsize=10, fontweight="bold")
    return figure


def _draw_cka(axes: Any, result: Result) -> None:
    """The mean over tasks bold with a band of one standard error; every task thin."""
    rows = result["cka"]
    numbers = [row["layer"] for row in rows]
    labels = list(rows[0]["tasks"]) if rows else []
    for order, label in enumerate(labels if len(labels) > 1 else ()):
        ys = [_number(row["tasks"][label]["cka"]) for row in rows]
        axes.plot(numbers, ys, **series_look(order), linewidth=0.9, markersize=3, label=short_name(label))
    title = "mean of tasks" if len(labels) > 1 else short_name(labels[0]) if labels else ""
    for key, dash, name in (("cka", "-", title), ("cka_debiased", "--", f"{title}, debiased")):
        ys = [_number(row[key]) for row in rows]
        errors = [row[f"{key}_se"] or 0.0 for row in rows]
        axes.plot(numbers, ys, color=INK, linestyle=dash, linewidth=2.0, label=name, zorder=5)
        low, high = ([y + sign * e for y, e in zip(ys, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(numbers, low, high, color=INK, alpha=0.13, linewidth=0)
    axes.set(xlabel="layer of the model", ylabel="linear CKA", ylim=(None, 1.02))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
