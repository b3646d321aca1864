"""Pictures in one style, for pages (SVG) and for papers (PNG)."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ilora.present.numbers import plain

INK, MUTED, GRID = "#1c2733", "#5b6875", "#dfe4e8"

# Apart in hue and in lightness; every series also has its own hatch, line style and marker.
COLOURS = ("#0b4f8a", "#e08a1e", "#5aa9d6", "#8c5a9e", "#7a7a7a")
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PIXELS_A_POINT = 5 / 3  # of a picture on a page, at most
_DASHES_IN_TURN = 4  # five would keep step with the five colours


_SVG_ID = re.compile(r'\bid="|url\(#|href="#')

_STYLE = {
    "text.parse_math": False,  # names and labels come from the user
    "text.color": INK,
    "axes.edgecolor": "#aab4bd",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "svg.fonttype": "path",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@contextmanager
def _styled(name: str) -> Iterator[io.BytesIO]:
    """A file to print a figure into, in our style. The canvas prints: `savefig` would draw each figure twice."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield io.BytesIO()


def as_png(draw: Callable[[], Figure]) -> bytes:
    """What `draw` draws, in our style, at 200 dots per inch."""
    with _styled("png") as file:
        figure = draw()
        figure.set_dpi(200)
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def as_svg(name: str, draw: Callable[[], Figure]) -> str:
    """What `draw` draws, in our style, as an `<svg>` element whose ids begin with `name`."""
    with _styled(name) as file:
        FigureCanvasSVG(draw()).print_svg(file, metadata={"Date": None, "Creator": None})
    text = file.getvalue().decode()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Several figures stand in one page, where an id must be unique.
    text = _SVG_ID.sub(lambda match: f"{match[0]}{name}-", text)
    text = re.sub(r'^<svg ([^>]*?)width="([\d.]+)pt"', _not_blown_up, text)
    return re.sub(r">\s+<", "><", text).strip()


def _not_blown_up(match: re.Match[str]) -> str:
    """A page widens a picture to its column; a small one only so far that its letters stay those of the others."""
    return f'<svg style="max-width: {float(match[2]) * PIXELS_A_POINT:.0f}px" {match[1]}width="{match[2]}pt"'


def series_look(order: int) -> dict[str, Any]:
    """Colour, dash and marker of the n-th series: 140 before two look alike, 28 without colours."""
    return {
        "color": COLOURS[order % len(COLOURS)],
        "linestyle": DASHES[order % _DASHES_IN_TURN],
        "marker": MARKERS[order % len(MARKERS)],
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; sides in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def short_name(text: object, limit: int = 22) -> str:
    """A user's text as a label: printable, and without the leading underscore that makes matplotlib hide a label."""
    return plain(text, limit).lstrip("_") or "?"
