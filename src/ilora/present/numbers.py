"""Numbers and untrusted texts as a page, a terminal or a Markdown file shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def plain(text: object, limit: int | None = None) -> str:
    """Untrusted text as one line without control characters; the middle of a long one is cut, not its end."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    if limit is None or len(line) <= limit:
        return line
    tail = (limit - 1) // 3
    return f"{line[: limit - 1 - tail]}…{line[len(line) - tail :]}"


def points(score: float | None) -> str:
    """A score of 0..1 in points with one decimal; an en dash where there is none."""
    return "–" if score is None else f"{round(100 * score, 1) + 0.0:.1f}"


def number(value: object) -> float | None:
    """A finite number, or None for null, NaN and everything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def markdown(lines: Sequence[Sequence[str]], *, strong: Sequence[Sequence[bool]] = ()) -> str:
    """A table of plain texts, the first line its head, everything escaped; `strong`: which cells are bold."""
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    cells = [[markdown_text(cell) for cell in line] for line in lines]
    for line, bold in zip(cells, strong, strict=bool(strong)):
        line[:] = [f"**{cell}**" if is_bold else cell for cell, is_bold in zip(line, bold, strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (cells[0], rule, *cells[1:]))


def markdown_text(text: str) -> str:
    """The text with the special characters of Markdown escaped."""
    return re.sub(r"([\\`*_|<>\[\]~&#])", r"\\\1", text)


def duration(seconds: object) -> str:
    """Seconds in words; an en dash where there is no number."""
    found = number(seconds)
    if found is None:
        return "–"
    if found < 60:
        return f"{found:.1f} s"
    minutes, rest = divmod(round(found), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(amount: object) -> str:
    """A whole number with separators; an en dash where there is no number."""
    found = number(amount)
    return "–" if found is None else f"{found:,.0f}"
