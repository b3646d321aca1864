"""The page's section on mode connectivity between a run's adapters, from RUN/connectivity/*.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ilora.connectivity import files, pictures
from ilora.present.figures import as_svg
from ilora.present.numbers import plain

# How many results of each kind the page draws: those of the newest tasks. connectivity/index.html has them all.
MOST = {"plane": 1, "path": 3, "similarity": 1}
_PLURALS = {"plane": "planes", "path": "paths", "similarity": "similarities"}


def connectivity(run_dir: Path) -> dict[str, Any] | None:
    """Rows of paths, choices and figures; None where nothing was computed. Raises InputError for a damaged file."""
    folder = run_dir / "connectivity"
    found = [result for result in files.load_all(folder) if result["complete"]]
    if not found:
        return None
    shown = [result for kind, most in MOST.items() for result in _newest(found, kind)[:most]]
    content: dict[str, Any] = {"paths": [], "choices": [], "figures": [], "left_out": _left_out(found)}
    for result in found:
        with files.reading(folder / result["file"]):
            if result["kind"] == "path":
                content["paths"].append(_path(result))
            if result["kind"] == "selection":
                content["choices"].append(_choice(result))
    for result in shown:
        with files.reading(folder / result["file"]):
            content["figures"] += _figures(result)
    return content


def _newest(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Results of one kind, those of later adapters first (labels of a run begin with the task's number)."""
    chosen = [result for result in found if result["kind"] == kind]
    return sorted(chosen, key=lambda result: [str(end["label"]) for end in reversed(result["ends"])], reverse=True)


def _left_out(found: list[dict[str, Any]]) -> str:
    """The results that the page does not draw, such as `4 paths and 1 plane`; empty: it draws all."""
    counts = {kind: sum(result["kind"] == kind for result in found) - most for kind, most in MOST.items()}
    return " and ".join(
        f"{count} {kind if count == 1 else _PLURALS[kind]}" for kind, count in counts.items() if count > 0
    )


def _ends(result: Mapping[str, Any]) -> str:
    return " → ".join(plain(end["label"], 40) for end in result["ends"])


def _path(result: Mapping[str, Any]) -> dict[str, Any]:
    score, loss = (result["profiles"]["mean"][key] for key in ("score", "loss"))
    first, last = (result["points"][place]["mean"] for place in (0, -1))
    best = next(point for point in result["points"] if point["t"] == score["best_t"])
    return {
        "ends": _ends(result),
        "kind": f"{result['path']}, {result['space']}",
        "first": (first["score"], first["score_se"]),
        "last": (last["score"], last["score_se"]),
        "best": (score["best"], score["best_se"]),
        "old": best["old"]["score"] if "old" in best else None,
        "new": best["new"]["score"] if "new" in best else None,
        "t": f"{score['best_t']:.2f}",
        "width": f"{score['width']:.2f}",
        "barrier": f"{loss['barrier']:.3f}" + ("" if loss["barrier_se"] is None else f" ± {loss['barrier_se']:.3f}"),
    }


def _choice(result: Mapping[str, Any]) -> dict[str, Any]:
    gains = [(name.removeprefix("over_"), values["score"], values["score_se"]) for name, values in
             result["gain"].items()]  # fmt: skip
    return {
        "ends": _ends(result),
        "kind": f"{result['path']} in {result['space']}",
        "t": f"{result['t']:.2f}",
        "adapter": plain(result["adapter"], 200),
        "gains": gains,
    }


def _figures(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    name = Path(result["file"]).stem
    # Markup: our own SVG, in which matplotlib drew every text of the user as glyph outlines.
    return [
        {"title": f"{result['kind']}: {_ends(result)}", "svg": Markup(as_svg(f"geo-{name}{ending}", draw))}
        for ending, draw in pictures.drawings(result).items()
    ]
