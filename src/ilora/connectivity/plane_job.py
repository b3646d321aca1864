"""Loss and score over the plane through three adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ilora.connectivity import space as spaces
from ilora.connectivity.jobs import Job, Result, Settings, head, sets_of
from ilora.connectivity.landscape import Landscape, PointScores, average
from ilora.connectivity.plane import Plane, make_plane
from ilora.connectivity.sources import Source, Stage, file_name
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.progress import Display


class PlaneJob(Job):
    """A grid of points in the plane, its corners, and the way that the run took, projected onto it."""

    def __init__(self, source: Source, tasks: Sequence[Task], settings: Settings, out: Path) -> None:
        if source.corners is None:
            raise InputError("a plane goes through three adapters: name three, or a run of two tasks with a slow one")
        self.plane = make_plane(source.corners, space=settings.space)
        trail = _beside(self.plane, source.trail)
        projections = self.plane.project(stage.read() for stage in trail)
        self.xs, self.ys = self.plane.axes(settings.grid, others=projections)
        self.trail = [
            {"label": stage.label, "variant": stage.variant, "when": stage.when}
            | asdict(place)
            | {"near": self.plane.near(place)}
            for stage, place in zip(trail, projections, strict=True)
        ]
        name = "--".join(file_name(corner.label) for corner in self.plane.corners)
        self.file = out / f"plane-{name}-{settings.space}.json"
        self.adapters = (*self.plane.corners, *trail)
        self.tasks = tasks
        self.depends = {"grid": settings.grid, "split": settings.split, "rows": settings.rows}

    def make(self, landscape: Landscape, display: Display, before: Result | None) -> Iterator[Result]:
        """Evaluate the corners, then the grid row by row; what is there already stays."""
        plane, sets = self.plane, sets_of(landscape, self.tasks)
        content = dict(before) if before else head("plane", landscape, self.tasks, plane.corners)
        content |= {"space": plane.space, "x": self.xs, "y": self.ys, "trail": self.trail, "complete": False}
        grid = content.setdefault("grid", [])
        rows = sum(len(data.examples) for data in sets)
        total = rows * (len(self.ys) * len(self.xs) + 3)
        done = rows * (len(grid) * len(self.xs) + 3 * ("corners" in content))
        with display.bar(f"plane in {plane.space}", total, done=done) as bar:
            if "corners" not in content:
                scores = landscape.evaluate(plane.corners, exact=(0, 1, 2), sets=sets, advance=bar.advance)
                content["corners"] = [
                    {"label": corner.label, "x": x, "y": y, **self._summary(found)}
                    for corner, (x, y), found in zip(plane.corners, plane.coordinates, scores, strict=True)
                ]
                yield content
            for y in self.ys[len(grid) :]:
                points = [plane.at(x, y) for x in self.xs]
                scores = landscape.evaluate(points, sets=sets, advance=bar.advance)
                grid.append([self._summary(found) for found in scores])
                yield content
        yield content | {"complete": True}

    def _summary(self, scores: PointScores) -> dict[str, Any]:
        """A point's scores by task, and their mean."""
        labels = [task.label for task in self.tasks]
        return {"tasks": {label: scores[label].summary() for label in labels}, "mean": average(scores, labels)}


def _beside(plane: Plane, trail: Sequence[Stage]) -> list[Stage]:
    """The stages from the earliest corner on that are points of the plane's space (ranks may grow with the tasks)."""
    labels = {corner.label for corner in plane.corners}
    first = min((stage.when for stage in trail if stage.label in labels), default=0.0)
    return [
        stage
        for stage in trail
        if stage.when >= first and plane.space in spaces.common_spaces((plane.corners[0], stage.read()))
    ]
