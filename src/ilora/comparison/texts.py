"""The grids as a terminal table, Markdown and LaTeX, and the numbers behind them as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ilora.comparison.tables import Comparison, Grid, GridCell, difference_grid, grids, main_grid, notes, scope
from ilora.present.numbers import markdown, markdown_text

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$", "–": "--", "±": r"$\pm$", "…": r"\dots{}", "·": r"$\cdot$", '"': "''",
}  # fmt: skip
# What fits on a terminal of 80 columns.
MAIN_SHOWN = ("method", "OP", "BWT", "forgetting", "plasticity", "OP group", "runs")
AGAINST_SHOWN = ("method", "pairs", "OP difference", "OP", "p after Holm")


def terminal(comparison: Comparison) -> RenderableType:
    """What the command prints: the measures, and the differences from the baseline."""
    head = Text(f"{comparison['model']}: {scope(comparison)}", style="bold")
    main, against = main_grid(comparison), difference_grid(comparison)
    parts: list[RenderableType] = [head, _rich(main, MAIN_SHOWN), Text(main.note, style="dim")]
    if against.rows:
        parts += [Text(), Text(against.title, style="bold"), _rich(against, AGAINST_SHOWN)]
        parts.append(Text(against.note, style="dim"))
    return Group(*parts, *(Text(line, style="dim") for line in notes(comparison)))


def _rich(grid: Grid, names: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = [column for column, name in enumerate(grid.head) if name in names]
    for column in columns:
        table.add_column(
            Text(grid.head[column]), justify="left" if column in grid.left else "right", no_wrap=True, overflow="fold"
        )
    for _, cells in grid.rows:
        table.add_row(*(_styled(cells[column], named=column == 0) for column in columns))
    return table


def _styled(cell: GridCell, *, named: bool) -> Text:
    text = Text(cell.text, style={"strong": "bold", "muted": "dim"}.get(cell.style, ""))
    return text.append(f" {cell.small}", style="dim") if cell.small and not named else text


def as_markdown(comparison: Comparison) -> str:
    """All tables."""
    parts = [f"# Comparison\n\n{markdown_text(comparison['model'])}: {scope(comparison)}.\n"]
    parts += [markdown_text(line) + "\n" for line in notes(comparison)]
    for grid in grids(comparison):
        lines = [[*grid.head], *([_line(cell) for cell in cells] for _, cells in grid.rows)]
        strong = [[False] * len(grid.head), *([cell.style == "strong" for cell in cells] for _, cells in grid.rows)]
        table = markdown(lines, strong=strong)
        parts.append(f"## {markdown_text(grid.title)}\n\n{table}\n{markdown_text(grid.note)}\n")
    return "\n".join(parts)


def _line(cell: GridCell) -> str:
    return f"{cell.text} {cell.small}".strip()


def as_latex(comparison: Comparison) -> str:
    """All tables, with booktabs."""
    parts = [f"% {_tex(comparison['model'])}: {_tex(scope(comparison))}. Needs booktabs and adjustbox."]
    for grid in grids(comparison):
        columns = "".join("l" if column in grid.left else "r" for column in range(len(grid.head)))
        body = [" & ".join(_tex_cell(cell) for cell in cells) + r" \\" for _, cells in grid.rows]
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(grid.title)}. {_tex(grid.note)}}}",
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(_tex, grid.head)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\end{table}",
        ]
    return "\n".join([*parts, *(f"% {_tex(line)}" for line in notes(comparison))]) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _tex_cell(cell: GridCell) -> str:
    text = _tex(_line(cell))
    return rf"\textbf{{{text}}}" if cell.style == "strong" else text


CSV_HEAD = ("row", "label", "variant", "answers", "kind", "name", "task", "n", "mean", "low", "high", "p", "p_holm",
            "verdict")  # fmt: skip


def as_csv(comparison: Comparison) -> str:
    """One number a line (scores 0..1): measures, scores of tasks, differences from the baseline, costs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for row in comparison["rows"]:
        own = [_inert(row["name"]), _inert(row["label"]), _inert(row["variant"]), row["answers"]]
        for kind, name, task, found in _numbers(row):
            cells = [found.get(key) for key in CSV_HEAD[7:]]
            writer.writerow([*own, kind, _inert(name), _inert(task), *cells])
    return out.getvalue()


def _numbers(row: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for key, found in row["measures"].items():
        yield "measure", key, "", found or {}
    yield "measure", "intransigence", "", row["intransigence"] or {}
    for task, scores in row["tasks"].items():
        for key, found in scores.items():
            yield "task", key, task, found or {}
    for key, found in (row["difference"] or {}).items():
        yield "difference", key, "", {**found, "n": found["pairs"]}
    count = len(row["runs"])
    stored = row["cost"]["stored_bytes"] or {}
    for key, value in [*row["cost"].items(), *((f"stored_bytes.{kind}", value) for kind, value in stored.items())]:
        if key != "stored_bytes":
            yield "cost", key, "", {"n": count, "mean": value}


def _inert(text: str) -> str:
    """A name that a spreadsheet would take for a formula gets an apostrophe."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
