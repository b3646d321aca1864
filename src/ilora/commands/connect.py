"""What `ilora connect` and `ilora evaluate` do with their arguments, and the lines that they end with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilora.connectivity.choose import select
from ilora.connectivity.connect import make_results
from ilora.connectivity.evaluate import evaluate_adapter
from ilora.connectivity.jobs import Settings
from ilora.connectivity.sources import Source, from_adapters, from_run, pair_of
from ilora.errors import InputError
from ilora.present.numbers import points, with_uncertainty
from ilora.report.html import write_report
from ilora.training.processes import on_main
from ilora.training.watch import together

__all__ = ["Settings", "connect", "connect_command", "evaluate", "evaluate_command", "select_command"]

Place = str | Path
AGAIN = "the same command goes on"


def connect(
    places: Place | Sequence[Place],
    *,
    pairs: str = "last",
    data: Place | None = None,
    model: str | None = None,
    out: Place | None = None,
    quiet: bool = False,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Measure loss and score between adapters; returns the results, which lie in `out` as JSON, pictures and a page.

    places: a run folder, or two or three folders of PEFT adapters.
    pairs: which pairs of a run's adapters, `last` or `all`.
    data, model: of adapters that belong to no run: a run, a configuration or a folder of tasks; the base model's name.
    out: default `connectivity` in the run folder.
    settings: those of `ilora.connectivity.jobs.Settings`, such as `paths=("factors", "bezier")`, `points`, `rows`,
        `plane=True`, `similarity=True`.
    Raises InputError, before anything is computed, where something does not fit.
    """
    folders = [Path(places)] if isinstance(places, str | Path) else [Path(place) for place in places]
    source = _source(folders, pairs=pairs, data=None if data is None else Path(data), model=model)
    folder = Path(out) if out is not None else (source.run or Path()) / "connectivity"
    with together(AGAIN) as accelerator:
        results = make_results(source, Settings(**settings), folder, quiet=quiet)
        on_main(accelerator, lambda: _refresh_report(source, folder))
    return results


def evaluate(
    run: Place,
    *,
    at: float | None = None,
    between: str = "adjacent",
    path: str = "factors",
    data: Place | None = None,
    split: str | None = None,
    rows: int | None = None,
    out: Place | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score the adapter of a run, or a point between two of its adapters, on its own tasks or on others.

    at: the point, from 0 to 1; None: the adapter that answers.
    between: which two adapters, `adjacent` (the last two tasks' ends) or `fast-slow`.
    path: the path between them, as `connect` names it.
    data: a run, a configuration or a folder of tasks; None: the run's own.
    split: `test`, `eval` or `train`; None: the run's own.
    rows: of each task, at most.
    out: the new folder; default below `evaluations` in the run folder.
    Returns the scores by task, and the folder. Raises InputError, with nothing written, where something does not fit.
    """
    with together(AGAIN):
        return evaluate_adapter(
            Path(run),
            at=at,
            between=between,
            path=Settings(paths=(path,)).curves()[0],
            data=None if data is None else Path(data),
            split=split,
            rows=rows,
            out=None if out is None else Path(out),
            quiet=quiet,
        )


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
    results = connect(places, pairs=pairs, data=data, model=model, out=out, quiet=quiet, **vars(settings))
    folder = out or (places[0] if len(places) == 1 else Path()) / "connectivity"
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
    with together(AGAIN) as accelerator:
        found = select(source, pair, folder, kind=kind, where=where, points=settings.points, rows=settings.rows,
                       quiet=quiet)  # fmt: skip
        on_main(accelerator, lambda: _refresh_report(source, folder))
    lines = [f"chosen:   t = {found['t']:g} between {pair.ends[0].label} and {pair.ends[1].label} ({kind} in {where})"]
    lines += [f"on test:  {name} {_spread(values)}" for name, values in found["test"].items()]
    lines += [f"gain:     {_spread(values)} {name.replace('_', ' t = ')}" for name, values in found["gain"].items()]
    return [*lines, f"adapter:  {found['folder']}"]


def evaluate_command(run: Path, **chosen: Any) -> list[str]:
    """Score, and return the lines to show."""
    found = evaluate(run, **chosen)
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
    return with_uncertainty(values["score"], values["score_se"], values.get("n"))
