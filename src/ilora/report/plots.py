"""The figures of a report as SVG text: readable in black and white, the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ilora.present.figures import COLOURS, DASHES, GRID, INK, MARKERS, MUTED, as_svg, new_figure, short_name
from ilora.present.numbers import number, points
from ilora.report.tables import RowValues, Series, row_values
from ilora.results.reader import Results, learning_row, matrix, zero_shot_scores

NUMBERS_UP_TO = 30  # tasks; above, a heat map shows only its colours
_HEAT = LinearSegmentedColormap.from_list("ilora", ["#f6f8fa", "#a9cce6", "#3f86bd", "#083a68"])


def _percent_axis(axis: Any, *, label: str = "") -> None:
    axis.set_ticks([0, 25, 50, 75, 100])
    axis.grid(visible=True)
    if label:
        axis.set_label_text(label)


def heatmap_svg(results: Results, variant: str, *, title: str = "", name: str = "heat") -> str:
    """R of a variant with its numbers: a row before any training and per phase, a column per task."""
    tasks = [short_name(task["name"]) for task in results["tasks"]]
    phases = [short_name(phase) for phase in results.get("phases") or tasks]
    rows = matrix(results, variant)
    named = [(f"{i + 1}  {phases[i] if i < len(phases) else '?'}", row) for i, row in enumerate(rows)]
    before = zero_shot_scores(results, variant)
    if any(score is not None for score in before):
        named.insert(0, ("zero-shot", before))
    own = {(len(named) - len(rows) + learning_row(results, i), i) for i in range(len(tasks))}
    return as_svg(name, lambda: _draw_heatmap(named, tasks, own, title))


def _draw_heatmap(
    named: Sequence[tuple[str, Sequence[float | None]]],
    tasks: Sequence[str],
    own: set[tuple[int, int]],
    title: str,
) -> Figure:
    figure = new_figure(2.0 + 0.46 * max(5, len(tasks)), 1.9 + 0.3 * len(named))
    axes = figure.add_subplot()
    for y, (_, row) in enumerate(named):
        for x, score in enumerate(row):
            empty = score is None
            fill = "#ffffff" if score is None else _HEAT(min(1.0, max(0.0, score)))
            edge = INK if (y, x) in own and not empty else "#ffffff"
            axes.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, facecolor=fill, edgecolor=edge, linewidth=1.1))
            colour = GRID if score is None else "#ffffff" if score > 0.65 else INK
            label = "·" if score is None else f"{100 * score:.0f}"
            if len(tasks) <= NUMBERS_UP_TO:
                axes.text(x + 0.5, y + 0.52, label, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlim(0, len(tasks))
    axes.set_ylim(max(1, len(named)), 0)
    axes.set_xticks([i + 0.5 for i in range(len(tasks))], tasks, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks([i + 0.5 for i in range(len(named))], [label for label, _ in named])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("tested on")
    axes.set_ylabel("after training on")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    return figure


def bars_svg(results: Results, contrast: Sequence[Results] = (), *, name: str = "bars") -> str:
    """A bar of each task's final score, with a hatched part up to the score just after its training, for each run."""
    values = row_values(results, contrast)
    shown = values.answers[: len(COLOURS)]
    return as_svg(name, lambda: _draw_bars(values, shown))


def _draw_bars(values: RowValues, shown: Sequence[Series]) -> Figure:
    step = 0.8 / len(shown)
    figure = new_figure(8.6, 1.3 + len(values.tasks) * (0.2 + 0.17 * len(shown)))
    axes = figure.add_subplot()
    for order, series in enumerate(shown):
        colour = COLOURS[order]
        for i, scores in enumerate(series.scores):
            y = i - 0.4 + step * (order + 0.5)
            kept, learnt = 100 * (scores.kept or 0.0), 100 * (scores.learnt or 0.0)
            axes.barh(y, kept, height=0.84 * step, color=colour, edgecolor=colour, linewidth=0.8)
            if learnt > kept:
                axes.barh(
                    y, learnt - kept, left=kept, height=0.84 * step,
                    facecolor="#ffffff", edgecolor=colour, hatch="/////", linewidth=0.8,
                )  # fmt: skip
            if scores.kept is not None:
                axes.text(max(kept, learnt) + 0.8, y + 0.01, points(scores.kept), va="center", fontsize=7.5)
    for i, scores in enumerate(values.series[0].scores):
        if scores.zero_shot is not None:
            axes.vlines(100 * scores.zero_shot, i - 0.44, i + 0.44, color=INK, linewidth=1.6, zorder=4)
            axes.vlines(100 * scores.zero_shot, i - 0.42, i + 0.42, color="#ffffff", linewidth=0.7, zorder=5)
    handles: list[Any] = [Patch(facecolor=COLOURS[i], edgecolor=COLOURS[i]) for i in range(len(shown))]
    labels = [f"{series.title}: kept" for series in shown]
    handles.append(Patch(facecolor="#ffffff", edgecolor=MUTED, hatch="/////"))
    labels.append("learnt, then forgotten")
    if any(scores.zero_shot is not None for scores in values.series[0].scores):
        handles.append(Line2D([], [], color=INK, marker="|", linestyle="", markersize=10, markeredgewidth=1.6))
        labels.append("zero-shot")
    figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)))
    axes.set_yticks(range(len(values.tasks)), [short_name(task, 26) for task in values.tasks])
    axes.set_ylim(len(values.tasks) - 0.5, -0.5)
    axes.set_xlim(0, 106)
    axes.tick_params(axis="y", length=0)
    _percent_axis(axes.xaxis, label="score, points of 100 (the number is what is kept)")
    return figure


def curves_svg(results: Results, contrast: Sequence[Results] = (), *, name: str = "curves") -> str:
    """One small plot per task: its score after each phase, of the answering variant of every run."""
    values = row_values(results, contrast)
    runs = [results, *contrast][: len(COLOURS)]
    titles = [series.title for series in values.answers]
    return as_svg(name, lambda: _draw_curves(values.tasks, runs, titles))


def _draw_curves(tasks: Sequence[str], runs: Sequence[Results], titles: Sequence[str]) -> Figure:
    across = min(4, len(tasks))
    down = -(-len(tasks) // across)
    figure = new_figure(max(4.4, 2.2 * across), 0.95 + 1.45 * down)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    lines: list[Any] = []
    for i, axes in enumerate(grid):
        if i >= len(tasks):
            axes.set_visible(False)
            continue
        lines = [_curve(axes, results, i, order) for order, results in enumerate(runs)]
        axes.set_title(short_name(tasks[i], 24), loc="left", fontsize=8.5)
        axes.axvline(learning_row(runs[0], i) + 1, color="#9aa5ae", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        axes.set_ylim(-4, 104)
        _percent_axis(axes.yaxis)
        axes.tick_params(length=0, labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    phases = max(len(matrix(run, run["answers_with"])) for run in runs)
    axes = figure.axes[0]
    axes.set_xlim(-0.4 if phases < 12 else -0.8, max(1, phases) + 0.4)
    figure.supxlabel("tasks trained so far (0 = zero-shot; dotted: this task is trained)", fontsize=9)
    figure.supylabel("score, points of 100", fontsize=9)
    figure.legend(lines, list(titles), loc="outside upper left", ncols=min(4, len(titles)), handlelength=3)
    return figure


def _curve(axes: Any, results: Results, task: int, order: int) -> Any:
    variant = results["answers_with"]
    column = [row[task] for row in matrix(results, variant)]
    known = [(phase, 100 * score) for phase, score in enumerate(column, 1) if score is not None]
    before = zero_shot_scores(results, variant)[task]
    if before is not None:
        axes.plot(0, 100 * before, MARKERS[order], color=COLOURS[order], markersize=3.2, zorder=9 - order)
    (line,) = axes.plot(
        [phase for phase, _ in known],
        [score for _, score in known],
        color=COLOURS[order],
        linestyle=DASHES[order],
        marker=MARKERS[order],
        markersize=3.2,
        linewidth=1.5,
        zorder=9 - order,
    )
    return line


class LoggedStep(NamedTuple):
    """A logged optimizer step of the whole run, its task and the finite losses by name."""

    step: int
    task: str
    losses: dict[str, float]


def loss_points(metrics: Sequence[Mapping[str, Any]]) -> list[LoggedStep]:
    """The logged steps of the whole run in rising order; of a repeated step (a resumed run) the last."""
    latest: dict[tuple[int, int], Mapping[str, Any]] = {}
    for line in metrics:
        task, step = number(line.get("task_index")), number(line.get("step"))
        if step is not None:
            latest[int(task or 0), int(step)] = line
    found: list[LoggedStep] = []
    offset, before = 0, None
    for (task_index, step), line in sorted(latest.items(), key=lambda item: item[0]):
        if task_index != before:
            end = found[-1].step if found else 0
            offset = end if found and step <= end else 0  # steps are counted from 1 within each task
            before = task_index
        found.append(LoggedStep(offset + step, str(line.get("task", "")), _losses(line)))
    return found


def _losses(line: Mapping[str, Any]) -> dict[str, float]:
    """The loss, and its terms where there are several."""
    terms = line.get("terms")
    named = {"loss": line.get("loss"), **(terms if isinstance(terms, Mapping) and len(terms) > 1 else {})}
    return {key: value for key, raw in named.items() if (value := number(raw)) is not None}


def loss_svg(metrics: Sequence[Mapping[str, Any]], *, name: str = "loss", width: int = 400) -> str | None:
    """The training loss and its terms over the steps, averaged to `width` places; None without any."""
    steps = loss_points(metrics)
    return as_svg(name, lambda: _draw_loss(steps, width)) if any(step.losses for step in steps) else None


def _draw_loss(steps: Sequence[LoggedStep], width: int) -> Figure:
    figure = new_figure(8.6, 3.4)
    axes = figure.add_subplot()
    together = -(-len(steps) // width)
    keys = list(dict.fromkeys(key for step in steps for key in step.losses))[: len(COLOURS)]
    for order, key in enumerate(keys):
        xs, ys = _thinned(steps, key, together)
        axes.plot(xs, ys, color=COLOURS[order], linestyle=DASHES[order], linewidth=1.6 if order == 0 else 1.2,
                  label=short_name(key), zorder=9 - order, marker="o" if len(steps) < 4 else None)  # fmt: skip
    _mark_tasks(axes, steps)
    axes.set_xlim(steps[0].step - 1, steps[-1].step + 1)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(visible=True, axis="y")
    axes.set_xlabel("optimizer step" + (f" (each point the mean of {together} logged steps)" if together > 1 else ""))
    axes.set_ylabel("training loss")
    figure.legend(loc="outside lower center", ncols=min(5, len(keys)), handlelength=3)
    return figure


def _thinned(steps: Sequence[LoggedStep], key: str, together: int) -> tuple[list[float], list[float]]:
    """Steps and losses of one term, each the mean of `together` logged steps.

    A term that a task does not have leaves a gap (a NaN) instead of a line across the task.
    """
    xs, ys = [], []
    for start in range(0, len(steps), together):
        chunk = steps[start : start + together]
        with_term = [step for step in chunk if key in step.losses]
        xs.append(fmean(step.step for step in with_term) if with_term else float(chunk[0].step))
        ys.append(sum(step.losses[key] for step in with_term) / len(with_term) if with_term else math.nan)
    return xs, ys


def _mark_tasks(axes: Any, steps: Sequence[LoggedStep]) -> None:
    """A dotted line where the next task begins, and the tasks' names along the top."""
    starts = [step for i, step in enumerate(steps) if i == 0 or step.task != steps[i - 1].task]
    for start in starts[1:]:
        axes.axvline(start.step - 0.5, color="#9aa5ae", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    top = axes.secondary_xaxis("top")
    top.set_xticks([start.step for start in starts], [short_name(start.task, 18) for start in starts])
    top.tick_params(length=0, labelsize=7.5, labelrotation=30)
    for label in top.get_xticklabels():
        label.set(horizontalalignment="left", rotation_mode="anchor")
    top.spines[:].set_visible(False)
