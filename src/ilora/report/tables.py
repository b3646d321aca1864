"""The numbers of a run and its contrast runs, once, and as a terminal table and as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from ilora.present.numbers import forgotten, markdown, number, plain, points, standard_error_shown
from ilora.results.reader import SUMMARY, Results, learning_row, matrix, method_title, task_labels, zero_shot_scores

SCORES = ("learnt", "kept", "forgotten")
CAPTION = (
    "Points of 100. learnt: just after its training; kept: at the end; "
    "forgotten: the best score since then minus the kept one; zero-shot: before any training."
)


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """The numbers of one task, 0..1; None = not evaluated, or not defined. `error`, `rows`: those of `kept`."""

    learnt: float | None = None
    kept: float | None = None
    forgotten: float | None = None
    zero_shot: float | None = None
    error: float | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One evaluated set of weights of one run: a block of columns, a row of the summary."""

    title: str
    run: int  # 0 = the run itself, 1.. = its contrast runs
    variant: str
    answers: bool
    marked: bool  # the run has several variants and this one answers
    scores: tuple[TaskOutcome, ...]
    mean: TaskOutcome
    summary: Mapping[str, float | None]

    @property
    def label(self) -> str:
        """The title with the mark of the answering variant."""
        return f"{self.title} (answers)" if self.marked else self.title


@dataclass(frozen=True, slots=True)
class RowValues:
    """What every presentation shows: series[0] is the answer of the run, contrast runs come last."""

    tasks: tuple[str, ...]
    series: tuple[Series, ...]
    finished: int  # tasks whose training and evaluation is done
    complete: bool

    @property
    def columns(self) -> tuple[Series, ...]:
        """The series shown task by task: every variant of the run, the answering one of each contrast run."""
        return tuple(s for s in self.series if s.run == 0 or s.answers)

    @property
    def answers(self) -> tuple[Series, ...]:
        """The answering series of every run."""
        return tuple(s for s in self.series if s.answers)


def _task_scores(results: Results, variant: str) -> list[TaskOutcome]:
    rows, before = matrix(results, variant), zero_shot_scores(results, variant)
    se, n = (results["variants"][variant].get(key) or [] for key in ("se", "n"))
    scores = []
    for i, zero_shot in enumerate(before):
        row = learning_row(results, i)
        if row >= len(rows):  # not trained yet: a score in the last row would show transfer, not memory
            scores.append(TaskOutcome(zero_shot=zero_shot))
            continue
        kept = rows[-1][i]
        earlier = [past[i] for past in rows[row:-1] if past[i] is not None]
        best = max((score for score in earlier if score is not None), default=None)
        drop = None if best is None or kept is None else best - kept
        error, count = (number(table[len(rows) - 1][i]) if len(table) >= len(rows) else None for table in (se, n))
        scores.append(TaskOutcome(rows[row][i], kept, drop, zero_shot, error, None if count is None else int(count)))
    return scores


def _error_of_mean(scores: Sequence[TaskOutcome]) -> float | None:
    """The standard error of the mean of kept scores; rows of different tasks are independent."""
    errors = [standard_error_shown(score.kept, score.error, score.rows) for score in scores if score.kept is not None]
    if not errors or None in errors:
        return None
    return math.sqrt(sum(error**2 for error in errors if error is not None)) / len(errors)


def _run_series(results: Results, run: int, title: str, labels: Sequence[str]) -> list[Series]:
    answering = results["answers_with"]
    variants = sorted(results["variants"], key=lambda name: name != answering)
    series = []
    for name in variants:
        by_label = dict(zip(task_labels(results), _task_scores(results, name), strict=True))
        summary = results["variants"][name].get("summary") or {}
        whole = {key: number(summary.get(key)) for key in SUMMARY}
        before = [score for score in zero_shot_scores(results, name) if score is not None]
        zero_shot = sum(before) / len(before) if len(before) == len(by_label) else None
        error = _error_of_mean([*by_label.values()])
        series.append(
            Series(
                title=title if len(variants) == 1 else f"{title} {plain(name, 20)}",
                run=run,
                variant=name,
                answers=name == answering,
                marked=name == answering and len(variants) > 1,
                scores=tuple(by_label.get(label, TaskOutcome()) for label in labels),
                mean=TaskOutcome(whole["plasticity"], whole["OP"], whole["forgetting"], zero_shot, error),
                summary=whole,
            )
        )
    return series


def row_values(results: Results, contrast: Sequence[Results] = ()) -> RowValues:
    """Every number that the tables, the bars and the page show; nothing else computes them."""
    runs = [results, *contrast]
    titles = [method_title(run) for run in runs]
    repeated = {title for title, count in Counter(titles).items() if count > 1}
    labels = task_labels(results)
    series: list[Series] = []
    for order, (run, title) in enumerate(zip(runs, titles, strict=True)):
        named = f"{title} {plain(run.get('name', order), 16)}" if title in repeated else title
        series += _run_series(run, order, named, labels)
    rows = len(matrix(results, results["answers_with"]))
    joint = results.get("stream") == "joint"
    return RowValues(
        tasks=tuple(plain(task["name"]) for task in results["tasks"]),
        series=tuple(series),
        finished=len(labels) if joint and rows else rows,
        complete=bool(results.get("complete")),
    )


def _block(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title), title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.min_width = cell_len(title) + 2
    for column in columns:
        justify: JustifyMethod = "left" if column == "task" else "right"
        table.add_column(Text(column), justify=justify, no_wrap=True)
    for row in rows[:-1]:
        table.add_row(*map(Text, row))
    table.add_section()
    table.add_row(*map(Text, rows[-1]), style="bold")
    return table


def _shown(scores: TaskOutcome, column: str) -> str:
    return forgotten(scores.forgotten) if column == "forgotten" else points(getattr(scores, column))


def _task_blocks(values: RowValues, other: Sequence[str], shown: Sequence[Series], name_width: int) -> Table:
    first = values.series[0]
    names = [*(plain(name, name_width) for name in values.tasks), "average"]
    before = [points(s.zero_shot) for s in (*first.scores, first.mean)]
    blocks = [_block(" ", ("task", "zero-shot"), list(zip(names, before, strict=True)))]
    for series in shown:
        columns = SCORES if series is first else other
        scores = (*series.scores, series.mean)
        blocks.append(_block(series.label, columns, [[_shown(s, c) for c in columns] for s in scores]))
    grid = Table.grid(padding=0)
    grid.add_row(*blocks)
    return grid


def _fitting_blocks(values: RowValues, width: int) -> tuple[Table, int]:
    """The richest layout within `width` columns, and how many series it leaves to the summary."""
    console = Console(width=1000)
    columns = values.columns
    for count in range(len(columns), 0, -1):
        for other in (SCORES, SCORES[1:], SCORES[1:2]):
            grid = _task_blocks(values, other, columns[:count], 20)
            if console.measure(grid).maximum <= width:
                return grid, len(columns) - count
    return _task_blocks(values, SCORES, columns[:1], 12), len(columns) - 1


def _summary(values: RowValues) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("over all tasks", no_wrap=True)
    for key in SUMMARY:
        table.add_column(key, justify="right", no_wrap=True)
    for series in values.series:
        cells = [Text(points(series.summary[key])) for key in SUMMARY]
        style = "bold" if series.run == 0 and series.answers else ""
        table.add_row(Text(plain(series.label, 48)), *cells, style=style)
    return table


def run_table(results: Results, contrast: Sequence[Results] = (), *, width: int = 100) -> Table:
    """The table that ends the terminal output of a run; `width` is the number of columns it may use."""
    values = row_values(results, contrast)
    blocks, left_out = _fitting_blocks(values, width)
    name, model = plain(results.get("name", ""), 32), plain(results.get("model", "?"), 32)
    head = f"{name}: {method_title(results)} on {model}"
    if not values.complete:
        head += f" (not finished: {values.finished} of {len(values.tasks)} tasks)"
    more = f" {left_out} more in the summary only." if left_out else ""
    table = Table.grid(padding=0)
    table.title = Text(head, style="bold")
    table.caption = Text(CAPTION + more, style="dim")
    table.title_justify = table.caption_justify = "left"
    table.add_row(blocks)
    table.add_row(_summary(values))
    return table


def markdown_table(results: Results, contrast: Sequence[Results] = ()) -> str:
    """The same numbers as GitHub Markdown: one table of the tasks, one of the summary."""
    values = row_values(results, contrast)
    head = ["task", "zero-shot", *(f"{s.label}: {column}" for s in values.columns for column in SCORES)]
    first = values.series[0]
    lines = [head]
    for row, name in enumerate((*values.tasks, "average")):
        per_series = [(*s.scores, s.mean)[row] for s in values.columns]
        cells = [_shown(scores, column) for scores in per_series for column in SCORES]
        lines.append([name, points((*first.scores, first.mean)[row].zero_shot), *cells])
    summary = [["run", *SUMMARY]]
    summary += [[s.label, *(points(s.summary[key]) for key in SUMMARY)] for s in values.series]
    note = f"Not finished: {values.finished} of {len(values.tasks)} tasks.\n\n" if not values.complete else ""
    return f"{note}{markdown(lines)}\n{markdown(summary)}\n{CAPTION}\n"
