"""May the last phase be released, and how the months went: what the page of a run begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ilora.errors import InputError
from ilora.gates.decision import read_gate
from ilora.gates.outputs import HEAD, lines, parts
from ilora.present.figures import COLOURS, as_svg, new_figure, short_name
from ilora.present.numbers import plain, points
from ilora.releases.history import history
from ilora.results.reader import Results, phase_labels

_MARKS = {"current": ("o", "current release"), "released": ("D", "earlier release"), "withdrawn": ("X", "withdrawn")}


def decision(run: Path, results: Results) -> dict[str, Any]:
    """What the page says first of a finished run.

    `outcome`: passed or failed, None where the gate was not asked or files changed since; with it what `parts` gives.
    `table`: the checks. `release`: the current one, in words. `months`: the months, as `history` has them.
    `problem`: why gate or releases cannot be read.
    """
    found, problem = None, None
    months: Mapping[str, Any] = {"phases": [], "current": None}
    try:
        months = history(run)
        found = read_gate(run, phase_labels(results)[-1]) if results.get("complete") else None
    except InputError as error:  # the page of a run must not depend on the state of its releases
        problem = plain(str(error))
    return {
        "complete": bool(results.get("complete")),
        "outcome": found["outcome"] if found else None,
        **(parts(found) if found else {}),
        "head": HEAD,
        "table": lines(found) if found else [],
        "release": _release(months),
        "months": months["phases"],
        "problem": problem,
        "is_line": bool(months["current"]) or len(months["phases"]) > 1,
    }


def _release(months: Mapping[str, Any]) -> str | None:
    for month in months["phases"]:
        if month["state"] == "current":
            return f"release {month['release']} ({plain(month['phase'], 40)})"
    return None


def months_svg(months: Sequence[Mapping[str, Any]], *, name: str = "months") -> str | None:
    """The mean score over the tasks so far, phase by phase, with the releases; None below two phases."""
    own = [month for month in months if month["state"] != "withdrawn"]
    return as_svg(name, lambda: _draw_months(own, months)) if len(own) > 1 else None


def _draw_months(own: Sequence[Mapping[str, Any]], months: Sequence[Mapping[str, Any]]) -> Figure:
    places = {month["phase"]: place for place, month in enumerate(own)}
    figure = new_figure(max(4.4, 1.6 + 0.62 * len(own)), 2.9)
    axes = figure.subplots()
    known = [(places[month["phase"]], 100 * month["mean"]) for month in own if month["mean"] is not None]
    axes.plot([place for place, _ in known], [mean for _, mean in known], color=COLOURS[0], linewidth=1.5, marker=".")
    for state, (marker, label) in _MARKS.items():
        marked = [
            month for month in months if month["state"] == state and month["mean"] is not None
            and month["phase"] in places
        ]  # fmt: skip
        xs, ys = [places[month["phase"]] for month in marked], [100 * month["mean"] for month in marked]
        if marked:
            axes.plot(xs, ys, marker, color=COLOURS[0 if state == "current" else 1], markersize=8, label=label)
        for x, y, month in zip(xs, ys, marked, strict=True):
            axes.annotate(f"{month['release']}", (x, y), xytext=(0, 8), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(own)), [short_name(month["phase"], 18) for month in own], rotation=30, ha="right")
    axes.set_ylim(-4, 112)
    axes.set_ylabel("mean over tasks so far", fontsize=9)
    axes.grid(axis="y")
    axes.tick_params(length=0, labelsize=8)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def month_cells(month: Mapping[str, Any]) -> list[str]:
    """A line of the table of months, as texts: phase, tasks, score, mean, forgotten, release, gate, state."""
    gate = "" if month["gate"] is None else str(month["gate"].get("outcome", "asked"))
    return [
        plain(month["phase"], 40),
        plain(", ".join(month["tasks"]), 60),
        *(points(month[key]) for key in ("score", "mean", "forgotten")),
        "" if month["release"] is None else str(month["release"]),
        gate,
        month["state"],
    ]
