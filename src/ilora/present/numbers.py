"""Numbers and untrusted texts as a page, a terminal or a Markdown file shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

Z95 = 1.959963984540054  # of the normal distribution, two-sided


def plain(text: object, limit: int | None = None) -> str:
    """Untrusted text as one line without control characters; the middle of a long one is cut, not its end."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    if limit is None or len(line) <= limit:
        return line
    tail = (limit - 1) // 3
    return f"{line[: limit - 1 - tail]}…{line[len(line) - tail :]}"


def clip(text: object, limit: int) -> str:
    """The text without its middle: a prompt explains itself at its start and asks its question at its end."""
    whole = "" if text is None else str(text).strip()
    if len(whole) <= limit:
        return whole or "(empty)"
    return f"{whole[: limit // 2]}\n[… {len(whole) - limit} characters …]\n{whole[-(limit // 2) :]}"


def points(score: float | None) -> str:
    """A score of 0..1 in points with one decimal; an en dash where there is none."""
    return "–" if score is None else f"{round(100 * score, 1) + 0.0:.1f}"


def wilson(share: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share of `rows` rows (Wilson 1927): never of width 0, never beyond 0 and 1."""
    squared = Z95**2
    middle = (share + squared / (2 * rows)) / (1 + squared / rows)
    half = Z95 / (1 + squared / rows) * math.sqrt(share * (1 - share) / rows + squared / (4 * rows**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def standard_error_shown(score: float | None, error: float | None, rows: int | None) -> float | None:
    """A score's standard error; where all rows score alike and s / √n is 0, that which Wilson's interval stands for."""
    if error != 0 or score is None or not rows:
        return error
    low, high = wilson(score, rows)
    return (high - low) / (2 * Z95)


def uncertainty(score: float | None, error: float | None, rows: int | None) -> str:
    """What is beside a score: `± 4.1`, its standard error; `(72–100)`, Wilson's interval, where all rows score alike.

    Empty where there is no score or no error.
    """
    if score is None or error is None:
        return ""
    if error != 0 or not rows:
        return f"± {points(error)}"
    low, high = wilson(score, rows)
    return f"({100 * low:.0f}–{100 * high:.0f})"


def with_uncertainty(score: float | None, error: float | None, rows: int | None) -> str:
    """A score in points, and what stands beside it."""
    return " ".join(filter(None, [points(score), uncertainty(score, error, rows)]))


def forgotten(drop: float | None) -> str:
    """How far a task fell from its best score, in points; `gained 4.5` where it rose, since -4.5 reads as a loss."""
    shown = points(drop)
    return f"gained {shown[1:]}" if shown.startswith("-") else shown


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


def size(amount: int) -> str:
    """Bytes in a unit that suits them, with three figures."""
    value, unit = float(amount), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def count(amount: object) -> str:
    """A whole number with separators; an en dash where there is no number."""
    found = number(amount)
    return "–" if found is None else f"{found:,.0f}"
