"""What `ilora diff` does: reads both sides, prints a summary with a few rows, writes the page and the lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ilora.diffs.page import changed, summary, write_page
from ilora.diffs.rows import Change, Changes, changes
from ilora.diffs.sides import both_sides, page_of
from ilora.files import refuse_own, write_atomic
from ilora.present.numbers import plain, points

EXAMPLES = 2  # of each task, of what was lost and of what was gained
MOST_EXAMPLES = 8  # in all


def diff(
    run: Path, names: Sequence[str], *, threshold: float, only: Sequence[str], jsonl: Path | None
) -> tuple[Changes, Path]:
    """Compare the two sides; returns what changed and the page. Raises InputError where they do not fit together."""
    refuse_own(jsonl, "--jsonl")
    first, second = both_sides(run, names)
    found, page = changes(first, second, threshold=threshold, only=only), page_of(first, second)
    write_page(page, found)
    if jsonl is not None:
        write_atomic(jsonl, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(found)))
    return found, page


def _lines(found: Changes) -> list[dict[str, object]]:
    """A line for each changed row."""
    return [
        {"task": found.tasks[number].name, "change": kind, **{key: getattr(row, key) for key in Change.__slots__}}
        for number, kind, rows in changed(found)
        for row in rows
    ]


def show(found: Changes, console: Console) -> None:
    """Print the summary and a few rows of each task."""
    first, second = (plain(title, 60) for title in found.titles)
    graded = any(row.score_before not in (0, 1) for task in found.tasks for row in task.rows)
    change = f"by {points(found.threshold)} points or more" if graded else "right to wrong, wrong to right"
    table = Table(box=None, pad_edge=False, title=Text(f"{first} → {second}"), title_justify="left",
                  caption=f"lost, gained: {change}", caption_justify="left")  # fmt: skip
    table.add_column("task")
    for name in ("rows", "lost", "gained", "net", "before", "now"):
        table.add_column(name, justify="right")
    for line in summary(found):
        counts = (str(line.n), str(line.lost), str(line.gained), f"{line.gained - line.lost:+d}")
        table.add_row(Text(line.name), *counts, points(line.before), points(line.after))
    console.print(table)
    examples = [(number, kind, row) for number, kind, rows in changed(found) for row in rows[:EXAMPLES]]
    for number, kind, row in examples[:MOST_EXAMPLES]:
        _show_row(console, plain(found.tasks[number].name, 40), kind, row)
    for why in found.skipped:
        console.print(f"not compared: {plain(why)}", markup=False, soft_wrap=True)


def _show_row(console: Console, task: str, kind: str, row: Change) -> None:
    wide = max(40, console.width - 12)
    console.print(f"\n{task}, {kind}: {plain(row.prompt.strip(), 2 * wide)}", markup=False, soft_wrap=True)
    for name, text in (("reference", row.reference), ("before", row.before), ("now", row.after)):
        console.print(f"  {name:<9} {plain(text.strip(), wide)}", markup=False, soft_wrap=True)
