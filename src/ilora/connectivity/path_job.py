"""Loss and score along a path between two adapters."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ilora.connectivity import paths
from ilora.connectivity import space as spaces
from ilora.connectivity.bend import mean_loss, train_bend
from ilora.connectivity.jobs import Job, Result, Settings, head, sets_of
from ilora.connectivity.landscape import Landscape, PointScores, average, contrast, gain, limited
from ilora.connectivity.paths import Curve
from ilora.connectivity.sources import Pair, Source
from ilora.connectivity.space import Adapter
from ilora.errors import InputError
from ilora.progress import Display
from ilora.training.processes import on_main

SCORE_EPSILON, LOSS_EPSILON = 0.01, 0.05  # one point of 100; nats per answer token
_CHECKED_ROWS, _CHECKED_POINTS = 32, 6  # on which a bend's mean loss is compared with the straight line's


class PathJob(Job):
    """A curve between the two adapters of a pair; a bent one is trained first, and kept as an adapter folder."""

    def __init__(self, pair: Pair, curve: Curve, settings: Settings, source: Source, out: Path) -> None:
        self.pair, self.curve, self.settings = pair, curve, settings
        name = f"{pair.name}-{curve.name}"
        self.file, self.bend_folder = out / f"path-{name}.json", out / f"bend-{name}"
        self.adapters, self.tasks = pair.ends, pair.tasks
        self.depends: dict[str, Any] = {"points": settings.points, "split": settings.split, "rows": settings.rows}
        self.bent = curve.kind in paths.BENT
        if self.bent:
            self.depends |= {key: getattr(settings, key) for key in ("bend_steps", "bend_learning_rate", "bend_rows")}
            training = source.config.training
            self.depends |= {"seed": source.config.seed, "micro_batch_size": training.micro_batch_size}
            if self.bend_folder.exists() and not self.file.exists():
                raise InputError(f"{self.bend_folder}: exists without the path that it belongs to; move it away")

    def make(self, landscape: Landscape, display: Display, before: Result | None) -> Iterator[Result]:
        """Train the bend where there is none yet, then evaluate the points."""
        content = head("path", landscape, self.tasks, self.pair.ends) | {"bend": before["bend"] if before else None}
        curve = self.curve
        if self.bent:
            if content["bend"] is None:
                yield content | {"complete": False}  # the bend's folder belongs to this path from here on
                content["bend"] = self._train(landscape, display)
                yield content | {"complete": False}
            curve = curve.bent(spaces.read(self.bend_folder, label="bend"))
        ts, sets = paths.grid(self.settings.points), sets_of(landscape, self.tasks)
        rows = sum(len(data.examples) for data in sets)
        with display.bar(f"{self.pair.name} {curve.name}", len(ts) * rows) as bar:
            points = [curve.at(t) for t in ts]
            scores = landscape.evaluate(points, exact=(0, len(ts) - 1), sets=sets, advance=bar.advance)
        yield path_result(content, self.pair, self.curve, ts, scores)

    def _train(self, landscape: Landscape, display: Display) -> dict[str, Any]:
        """Write the bend's folder; returns what is kept of its training."""
        bend, training = _trained(self.curve, self.pair, landscape, self.settings, display)
        bend = replace(bend, base=bend.base or landscape.config.model.name)
        on_main(landscape.engine.accelerator, lambda: spaces.write(bend, self.bend_folder, replace=True))
        return {**training, "adapter": self.bend_folder.name}


def path_result(head: Result, pair: Pair, curve: Curve, ts: Sequence[float], scores: Sequence[PointScores]) -> Result:
    """The content of a path's file from every row's loss and score at every point."""
    groups = {"mean": [task.label for task in pair.tasks]}
    if pair.old and pair.new:
        groups |= {"old": [task.label for task in pair.old], "new": [task.label for task in pair.new]}
    points = [
        {
            "t": t,
            "weights": list(curve.weights(t)),
            "tasks": {label: values.summary() for label, values in found.items()},
            **{group: average(found, labels) for group, labels in groups.items()},
        }
        for t, found in zip(ts, scores, strict=True)
    ]
    return {
        **head,
        "path": curve.kind,
        "space": curve.space,
        "groups": groups,
        "points": points,
        "profiles": {group: _profiles(ts, points, scores, group, labels) for group, labels in groups.items()},
        "interior": interior(ts, scores, groups["mean"]),
    }


def _profiles(
    ts: Sequence[float], points: Sequence[Any], scores: Sequence[PointScores], group: str, tasks: Sequence[str]
) -> dict[str, Any]:
    made = {}
    for key, higher, epsilon in (("score", True, SCORE_EPSILON), ("loss", False, LOSS_EPSILON)):
        found = paths.profile(ts, [point[group][key] for point in points], higher_is_better=higher, epsilon=epsilon)
        t, place = found.barrier_t, ts.index(found.barrier_t)
        rows = f"{key}es" if key == "loss" else f"{key}s"
        _, error = contrast([scores[place], scores[0], scores[-1]], [1.0, t - 1.0, -t], tasks, key=rows)
        best = points[ts.index(found.best_t)][group][f"{key}_se"]
        made[key] = asdict(found) | {"width": found.width, "barrier_se": error, "best_se": best}
    return made


def interior(ts: Sequence[float], scores: Sequence[PointScores], tasks: Sequence[str]) -> dict[str, Any] | None:
    """The best point strictly inside (highest mean score, then lowest loss), against both ends, paired by row.

    It is the best of several on the very rows it is judged on, so the gain is flattered; `ilora connect --select`
    chooses on other rows. None where there is no point inside.
    """
    if len(ts) < 3:
        return None
    means = [average(found, tasks) for found in scores]
    best = max(range(1, len(ts) - 1), key=lambda n: (means[n]["score"], -means[n]["loss"]))
    return {"t": ts[best], **{f"over_{t:g}": gain(scores[best], scores[n], tasks) for t, n in ((0, 0), (1, -1))}}


def _trained(
    curve: Curve, pair: Pair, landscape: Landscape, settings: Settings, display: Display
) -> tuple[Adapter, dict[str, Any]]:
    """The trained bend, and its training: the mean loss along the straight line and along the curve, on some rows."""
    seed, size = landscape.config.seed, landscape.config.training.rows_at_once
    rows = [
        example
        for task in pair.tasks
        for example in landscape.encoder.encode(limited(task, "train", settings.bend_rows), "train")
    ]
    checked = random.Random(f"{seed}/bend/checked").sample(rows, min(_CHECKED_ROWS, len(rows)))

    def loss(path: Curve) -> float:
        return mean_loss(path, landscape, checked, points=_CHECKED_POINTS, batch_size=size)

    line = loss(curve)  # which it is, as long as its bend is the ends' middle
    steps, rate = settings.bend_steps, settings.bend_learning_rate
    with display.bar(f"bend of {curve.name}", steps) as bar:
        bent = train_bend(
            curve, landscape, rows, steps=steps, learning_rate=rate, batch_size=size, seed=seed, advance=bar.advance
        )
    losses = {"line": line, "curve": loss(bent), "n": len(checked), "points": _CHECKED_POINTS, "split": "train"}
    return bent.controls[1], {"steps": steps, "learning_rate": rate, "loss": losses}
