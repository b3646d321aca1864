"""connectivity/index.html: one self-contained page in which moving t shows each task's score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilora.connectivity import files, pictures
from ilora.files import write_atomic
from ilora.present.figures import as_svg
from ilora.present.numbers import plain, with_uncertainty
from ilora.present.page import inert_json, own_drawing, render_page


def write_page(folder: Path, drawn: Mapping[str, str]) -> Path:
    """Write `folder/index.html` from its complete results. Raises InputError that names a damaged one.

    drawn: SVG texts by name that need not be drawn again.
    """
    results = [result for result in files.load_all(folder) if result["complete"]]
    moving, figures = [], []
    for result in results:
        with files.reading(folder / result["file"]):
            figures += _figures(result, drawn)
            moving += [_moving(result)] if result["kind"] == "path" else []
    page = render_page(
        "ilora.connectivity", "page.html.jinja", script="page.js", data=inert_json(moving), figures=figures
    )
    target = folder / "index.html"
    write_atomic(target, page)
    return target


def _moving(result: dict[str, Any]) -> dict[str, Any]:
    """What the slider needs of a path: rows (task or mean) by point, the score as a number and as a text, the loss."""
    rows = [{"title": plain(task["name"], 40), "at": ("tasks", task["label"])} for task in result["tasks"]]
    rows += [
        {"title": pictures.GROUPS[group], "at": (group,)} for group in pictures.GROUPS if group in result["groups"]
    ]
    made = []
    for row in rows:
        cells = []
        for point in result["points"]:
            values = point
            for key in row["at"]:
                values = values[key]
            shown = with_uncertainty(values["score"], values["score_se"], values.get("n"))
            cells.append([values["score"], shown, values["loss"], values["loss_se"]])
        made.append({"title": row["title"], "cells": cells})
    ends = [plain(end["label"], 48) for end in result["ends"]]
    return {
        "title": f"{ends[0]} → {ends[1]}: {result['path']} in {result['space']}",
        "ts": [point["t"] for point in result["points"]],
        "best": result["profiles"]["mean"]["score"]["best_t"],
        "rows": made,
    }


def _figures(result: dict[str, Any], drawn: Mapping[str, str]) -> list[dict[str, Any]]:
    made = []
    for ending, draw in pictures.drawings(result).items():
        name = f"{Path(result['file']).stem}{ending}"
        made.append({"title": plain(name, 120), "svg": own_drawing(drawn.get(name) or as_svg(name, draw))})
    return made
