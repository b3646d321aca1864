"""RUN/diffs/<A>..<B>.html: one self-contained page with every changed row, which opens fast with 100,000 of them.

Rows are inert JSON in parts. The page's script reads a part when one of its rows is shown. At the first search it makes
of each part one text in lower case, so that no row needs to stay in memory as objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from ilora.diffs.groups import groups
from ilora.diffs.rows import Change, Changes
from ilora.files import write_atomic
from ilora.present.numbers import clip, plain
from ilora.present.page import inert_json, render_page

PART = 2000  # rows that are read together
# A page of more characters would be slow to open: then texts are cut more.
MOST_CHARACTERS = 48_000_000
CUTS = (1200, 500, 200, 80)  # characters of a text; those of the prompt
KINDS = ("lost", "gained")


def write_page(path: Path, found: Changes) -> None:
    """Write the page whole."""
    parts, cut = _parts(found)
    page = render_page(
        "ilora.diffs",
        "page.html.jinja",
        script="page.js",
        titles=[plain(title, 80) for title in found.titles],
        threshold=found.threshold,
        graded=any(row.score_before not in (0, 1) for task in found.tasks for row in task.rows),
        tasks=summary(found),
        skipped=[plain(line) for line in found.skipped],
        groups=[(plain(task.name), made) for task in found.tasks if (made := groups(task, threshold=found.threshold))],
        cut=cut,
        index=inert_json(_index(found)),
        parts=parts,
    )
    write_atomic(path, page)


@dataclass(frozen=True)
class Line:
    """Figures of a task, or of all: rows, how many were lost and gained, mean scores before and after."""

    name: str
    n: int
    lost: int
    gained: int
    before: float
    after: float


def summary(found: Changes) -> list[Line]:
    """A line for each task, and one for all of them where there are several, each task counting alike in its means."""
    made = [
        Line(
            plain(task.name, 64),
            len(task.rows),
            len(task.lost),
            len(task.gained),
            fmean(row.score_before for row in task.rows),
            fmean(row.score_after for row in task.rows),
        )
        for task in found.tasks
    ]
    if len(made) > 1:
        counts = (sum(getattr(line, key) for line in made) for key in ("n", "lost", "gained"))
        means = (fmean(getattr(line, key) for line in made) for key in ("before", "after"))
        made.append(Line("all", *counts, *means))
    return made


def changed(found: Changes) -> Iterator[tuple[int, str, list[Change]]]:
    """(number of the task, kind, rows), in the order of the page: what was lost first."""
    for kind in KINDS:
        for number, task in enumerate(found.tasks):
            yield number, kind, getattr(task, kind)


def _index(found: Changes) -> Mapping[str, Any]:
    """What the script needs before it reads a row."""
    stretches = [[number, KINDS.index(kind), len(rows)] for number, kind, rows in changed(found)]
    return {"tasks": [plain(task.name) for task in found.tasks], "stretches": stretches, "part": PART}


def _parts(found: Changes) -> tuple[list[Markup], int]:
    """The rows as JSON in parts of PART, and to how many characters prompts are cut: the most that leave it small."""
    every = [row for _, _, rows in changed(found) for row in rows]
    for most in CUTS:
        parts = [inert_json([_row(row, most) for row in every[at : at + PART]]) for at in range(0, len(every), PART)]
        if sum(map(len, parts)) <= MOST_CHARACTERS:
            break
    return parts, most


def _row(row: Change, most: int) -> list[Any]:
    texts = [clip(row.prompt, most), *(clip(text, most // 3) for text in (row.reference, row.before, row.after))]
    return [*texts, round(row.score_before, 3), round(row.score_after, 3)]
