"""What `ilora connect` and `ilora evaluate` do with their arguments, and the lines that they end with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilora.connectivity.choose import select
from ilora.connectivity.connect import Settings, connect
from ilora.connectivity.evaluate import evaluate
from ilora.connectivity.sources import Source, from_adapters, from_run, pair_of
from ilora.errors import InputError
from ilora.present.numbers import points
from ilora.report.html import write_report

__all__ = ["Settings", "connect_command", "evaluate_command", "select_command"]


def connect_command(
    places: Sequence[Path],
    settings: Settings,
    *,
    pairs: str,
    data: Path | None,
    model: str | None,
    out: Path | None,
    quiet: bool,
) -> list[str]:
    """Paths, and what else is wanted, of a run or of two or three adapters; returns lines to show."""
    source = _source(places, pairs=pairs, data=data, model=model)
    folder = out or (source.run or Path()) / "connectivity"
    results = connect(source, settings, folder, quiet=quiet)
    _refresh_report(source, folder)
    return [*(line for result in results for line in _lines(result)), f"page:     {folder / 'index.html'}"]


def select_command(
    places: Sequence[Path], settings: Settings, *, between: str, out: Path | None, quiet: bool
) -> list[str]:
    """Choose t, write the adapter there, say what it gains."""
    if len(places) != 1:
        raise InputError("--select needs a run folder: the choice is made on its replay memory and evaluation split")
    source = _source(places, pairs="last", data=None, model=None)
    curves = [("linear", "factors")] if settings.paths is None else settings.curves()
    if len(curves) != 1:
        raise InputError(f"--select goes along one path; --paths names {len(curves)}")
    kind, where = curves[0]
    folder = out or (source.run or Path()) / "connectivity"
    pair = pair_of(source, between)
    found = select(source, pair, folder, kind=kind, where=where, points=settings.points, rows=settings.rows,
                   quiet=quiet)  # fmt: skip
    _refresh_report(source, folder)
    lines = [f"chosen:   t = {found['t']:g} between {pair.ends[0].label} and {pair.ends[1].label} ({kind} in {where})"]
    lines += [f"on test:  {name} {_spread(values)}" for name, values in found["test"].items()]
    lines += [f"gain:     {_spread(values)} {name.replace('_', ' t = ')}" for name, values in found["gain"].items()]
    return [*lines, f"adapter:  {found['folder']}"]


def evaluate_command(run: Path, *, path: str, **chosen: Any) -> list[str]:
    """Score, and the lines to show."""
    found = evaluate(run, path=Settings(paths=(path,)).curves()[0], **chosen)
    lines = [
        f"{task}: {_spread(values)} ({values['metric']}, {values['n']} rows)" for task, values in found["tasks"].items()
    ]
    return [f"{found['adapter']}, {found['split']} split", *lines, f"written:  {found['folder']}"]


def _source(places: Sequence[Path], *, pairs: str, data: Path | None, model: str | None) -> Source:
    if len(places) != 1:
        return from_adapters(places, data=data, model=model)
    if data is not None or model is not None:
        raise InputError(
            f"{places[0]}: a run brings its own data and model; --data and --model are for adapter folders"
        )
    if (places[0] / "adapter_config.json").is_file():
        raise InputError(f"{places[0]}: one adapter; name two or three adapter folders, or a run folder")
    return from_run(places[0], pairs=pairs)


def _refresh_report(source: Source, folder: Path) -> None:
    """The run's page has a section on what lies in its own connectivity/."""
    if source.run is not None and folder == source.run / "connectivity":
        write_report(source.run)


def _lines(result: Mapping[str, Any]) -> list[str]:
    name = Path(result["file"]).stem
    if result["kind"] == "path":
        ends = [result["points"][place]["mean"] for place in (0, -1)]
        score, loss = (result["profiles"]["mean"][key] for key in ("score", "loss"))
        error = "" if loss["barrier_se"] is None else f" ± {loss['barrier_se']:.3f}"
        lines = [
            f"{name}: mean score {points(ends[0]['score'])} at t = 0, {points(ends[1]['score'])} at t = 1, best "
            f"{points(score['best'])} at t = {score['best_t']:g}; loss barrier {loss['barrier']:.3f}{error}"
        ]
        if result["bend"]:
            trained = result["bend"]["loss"]
            lines.append(
                f"{name}: mean training loss over the curve {trained['curve']:.3f}, over the straight line "
                f"{trained['line']:.3f} ({trained['n']} rows)"
            )
        return lines
    if result["kind"] == "plane":
        best = max(point["mean"]["score"] for row in result["grid"] for point in row)
        corners = ", ".join(points(corner["mean"]["score"]) for corner in result["corners"])
        return [f"{name}: mean score {corners} at the corners, best {points(best)} on the grid"]
    layers = [row["cka"] for row in result["cka"] if row["cka"] is not None]
    return [f"{name}: CKA from {min(layers):.3f} to {max(layers):.3f} over the layers"] if layers else []


def _spread(values: Mapping[str, Any]) -> str:
    error = "" if values["score_se"] is None else f" ± {points(values['score_se'])}"
    return f"{points(values['score'])}{error}"
