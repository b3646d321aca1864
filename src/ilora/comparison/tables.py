"""The comparison as grids of cells, which the terminal, Markdown, LaTeX and the page each print in their way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ilora.comparison.budget import size
from ilora.comparison.differences import NOT_TRAINED, TOO_FEW
from ilora.present.numbers import duration, plain, points
from ilora.results.reader import SUMMARY

Comparison = Mapping[str, Any]

NONE = "–"
MAIN_NOTE = (
    "Points of 100: mean over the runs (seeds and orders) ± half of its 95 % interval (Student's t); – for one run. "
    "Rows without a common letter differ in OP, after Holm's adjustment over all pairs of rows. Rows are not ranked. "
    "Intransigence: how much less of each task is learnt than by an adapter of its own (`individual`)."
)
COSTS = {
    "train_seconds": "training",
    "trained_tokens": "tokens",
    "forward_rows": "rows forward",
    "backward_rows": "rows backward",
    "trainable_parameters": "trainable",
    "peak_memory_bytes": "peak memory",
}


@dataclass(frozen=True, slots=True)
class GridCell:
    """What a cell shows.

    text, small: what it says, and what stands beside it with less weight.
    value: what its column is sorted by.
    style: strong, muted or letters (of groups).
    """

    text: str
    value: float | None = None
    small: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: every row begins with its name and belongs to a row of the comparison (its index)."""

    key: str
    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[int, tuple[GridCell, ...]], ...]
    left: frozenset[int] = frozenset({0})  # columns of words


def grids(comparison: Comparison) -> list[Grid]:
    """All of them, in the order in which they are read."""
    made = [main_grid(comparison), difference_grid(comparison), task_grid(comparison), cost_grid(comparison)]
    return [grid for grid in made if grid.rows]


def signed(score: float) -> str:
    """A difference in points with its sign."""
    text = points(score)
    return text.replace("-", "−") if text.startswith("-") else f"+{text}"


def spread(interval: Mapping[str, Any] | None) -> GridCell:
    """mean ± half the interval."""
    if interval is None:
        return GridCell(NONE)
    half = NONE if interval["low"] is None else points((interval["high"] - interval["low"]) / 2)
    return GridCell(points(interval["mean"]).replace("-", "−"), 100 * interval["mean"], f"± {half}")


def main_grid(comparison: Comparison) -> Grid:
    """Measures, letters, the verdict against the baseline, cost."""
    base = comparison["baseline"]
    known = any(row.get("intransigence") for row in comparison["rows"])
    head = (
        "method",
        *SUMMARY,
        *(["intransigence"] if known else []),
        "OP group",
        f"OP against {base}",
        "runs",
        "training",
        f"budget against {base}",
    )
    rows = []
    for place, row in enumerate(comparison["rows"]):
        seconds = row["cost"].get("train_seconds")
        rows.append((place, (
            _name(row),
            *(spread(row["measures"][key]) for key in SUMMARY),
            *([spread(row["intransigence"])] if known else []),
            GridCell(NOT_TRAINED, style="muted") if row["not_trained"] else GridCell(row["letters"], style="letters"),
            _verdict(row["difference"], "OP"),
            GridCell(str(len(row["runs"])), len(row["runs"])),
            GridCell(duration(seconds), seconds),
            GridCell(_budget(row)),
        )))  # fmt: skip
    words = head.index("OP group")
    left = frozenset({0, words, words + 1, len(head) - 1})
    return Grid("main", "All methods", MAIN_NOTE, head, tuple(rows), left)


def _name(row: Mapping[str, Any]) -> GridCell:
    return GridCell(row["name"], small="" if row["answers"] else "not the variant that answers")


def _budget(row: Mapping[str, Any]) -> str:
    return "baseline" if row["difference"] is None else "; ".join(row["budget"]) or "same"


def _verdict(found: Mapping[str, Any] | None, key: str) -> GridCell:
    if found is None:
        return GridCell("baseline", style="muted")
    if key not in found:
        return GridCell("no common order and seed", style="muted")
    return _verdict_cell(found[key])


def _verdict_cell(difference: Mapping[str, Any]) -> GridCell:
    style = "strong" if difference["holds_after_holm"] else ""
    style = style if difference["verdict"] in ("better", "worse") else "muted"
    return GridCell(difference["verdict"], 100 * difference["mean"], style=style)


def difference_grid(comparison: Comparison) -> Grid:
    """Every measure's difference from the baseline, and the verdict on OP."""
    base = comparison["baseline"]
    shown = [key for key in SUMMARY if any(key in (row["difference"] or {}) for row in comparison["rows"])]
    head = ("method", "pairs", *(f"{key} difference" for key in shown), "OP", "p (OP)", "p after Holm")
    rows = []
    for place, row in enumerate(comparison["rows"]):
        if not row["difference"]:
            continue
        found = row["difference"]
        op = found.get("OP")
        count = op["pairs"] if op else 0
        rows.append((place, (
            GridCell(row["name"]),
            GridCell(str(count), count, small="" if op is None else _varying(op)),
            *(_between(found.get(key)) for key in shown),
            _verdict(found, "OP"),
            _p(op and op["p"]),
            _p(op and op["p_holm"]),
        )))  # fmt: skip
    note = (
        f"Row minus {base}, in points, with its 95 % interval over pairs of runs (same order and seed) and over test "
        "items; with one pair, over items only. 'by order': pairs vary around the mean of their order, which has "
        "several seeds. Muted: the interval contains 0, so it does not show which is higher, or there is no verdict. "
        "Bold: still different after Holm's adjustment over the rows of its column. For forgetting, lower is better."
    )
    return Grid("differences", f"Against {base}", note, head, tuple(rows), frozenset({0, 2 + len(shown)}))


def _varying(found: Mapping[str, Any]) -> str:
    """What the interval covers beside items, where that is not simply all pairs."""
    if found["pairs"] == 1:
        return "items only"
    return "by order" if found["within_orders"] else ""


def _between(found: Mapping[str, Any] | None) -> GridCell:
    if found is None:
        return GridCell(NONE)
    ends = f"[{signed(found['low'])}, {signed(found['high'])}]"
    return GridCell(signed(found["mean"]), 100 * found["mean"], ends, _verdict_cell(found).style)


def _p(value: float | None) -> GridCell:
    if value is None:
        return GridCell(NONE)
    return GridCell("< 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}", value)


def task_grid(comparison: Comparison) -> Grid:
    """Every task's score at the end."""
    head = ("method", *(task["name"] for task in comparison["tasks"]))
    rows = tuple(
        (place, (_name(row), *(spread(row["tasks"][task["label"]]["kept"]) for task in comparison["tasks"])))
        for place, row in enumerate(comparison["rows"])
    )
    note = "Each task's score at the end of the stream: mean over the runs ± half of its 95 % interval (Student's t)."
    return Grid("tasks", "Task by task", note, head, rows)


def cost_grid(comparison: Comparison) -> Grid:
    """What the runs cost, in everything that any run counted."""
    costs = [row["cost"] for row in comparison["rows"]]
    more = [key for key in dict.fromkeys(key for cost in costs for key in cost) if key not in (*COSTS, "stored_bytes")]
    kinds = list(dict.fromkeys(kind for cost in costs for kind in cost["stored_bytes"] or ()))
    head = ("method", *COSTS.values(), *(f"stored: {kind}" for kind in kinds),
            *(key.replace("_", " ") for key in more), "budget")  # fmt: skip
    rows = []
    for place, (row, cost) in enumerate(zip(comparison["rows"], costs, strict=True)):
        stored = cost["stored_bytes"]
        cells = [_amount(key, cost.get(key)) for key in COSTS]
        cells += [_amount("bytes", None if stored is None else stored.get(kind, 0.0)) for kind in kinds]
        cells += [_amount(key, cost.get(key)) for key in more]
        rows.append((place, (GridCell(row["name"]), *cells, GridCell(_budget(row)))))
    note = (
        "Means over the runs. A row counts once for each pass, however many layers it goes through (fewer with "
        "adapter.keep_below). Budget: where tokens, rows through the model, trainable parameters or stored bytes are "
        f"not those of {comparison['baseline']}; times and peaks depend on the machine and what else ran on it."
    )
    return Grid("cost", "Cost", note, head, tuple(rows), frozenset({0, len(head) - 1}))


def _amount(key: str, value: float | None) -> GridCell:
    if value is None:
        return GridCell(NONE)
    if key.endswith("seconds"):
        return GridCell(duration(value), value)
    return GridCell(size(value) if key.endswith("bytes") else f"{value:,.0f}", value)


def scope(comparison: Comparison) -> str:
    """How much was compared, in words."""
    counts = [
        (len(comparison["rows"]), "row"),
        (len({run["folder"] for row in comparison["rows"] for run in row["runs"]}), "run"),
        (len(comparison["seeds"]), "seed"),
        (len(comparison["orders"]), "order"),
        (len(comparison["tasks"]), "task"),
        (sum(task["items"] for task in comparison["tasks"]), f"{comparison['split']} item"),
    ]
    return ", ".join(f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in counts)


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know beside the tables: runs left out, settings that differ, few pairs."""
    lines = [f"Left out: {plain(entry['folder'])}: {plain(entry['reason'])}." for entry in comparison["left_out"]]
    for key, by_label in comparison["settings"].items():
        has = "; ".join(f"{value}: {', '.join(_of(by_label, value))}" for value in dict.fromkeys(by_label.values()))
        lines.append(f"The rows differ in a setting: {plain(key, 60)} ({has}).")
    differences: Sequence[Any] = [row["difference"] for row in comparison["rows"] if row["difference"]]
    if any(found["OP"]["verdict"] == TOO_FEW for found in differences if "OP" in found):
        lines.append(few_pairs(comparison))
    if any(row["not_trained"] for row in comparison["rows"]):
        lines.append(too_little_learnt(comparison))
    return lines


def few_pairs(comparison: Comparison) -> str:
    """Why some differences have no verdict."""
    return (
        f"Differences over fewer than {comparison['least_pairs']} pairs of runs (same order and seed) have no verdict: "
        "so few runs do not show what other seeds and orders would give. The interval of a single pair is over test "
        "items alone."
    )


def too_little_learnt(comparison: Comparison) -> str:
    """Which rows were not trained, and what follows from it."""
    shown = [f"{row['name']} ({row['learnt_share']:.0%})" for row in comparison["rows"] if row["not_trained"]]
    follows = "They have no group and no verdict"
    if any(row["not_trained"] and row["difference"] is None for row in comparison["rows"]):
        follows += ", and neither have differences from the baseline, which is one of them"
    return (
        f"Not trained: {', '.join(shown)}. What they learnt of each task just after its training is below "
        f"{comparison['least_learnt']:.0%} of what an adapter of its own learns (`individual`). {follows}."
    )


def _of(by_label: Mapping[str, str], value: str) -> list[str]:
    return [label for label, has in by_label.items() if has == value]
