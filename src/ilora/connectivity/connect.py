"""`ilora connect`: paths, plane and similarity of a run's minima or of any adapters, into connectivity/."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ilora.connectivity import files, paths, pictures
from ilora.connectivity import space as spaces
from ilora.connectivity.jobs import Job, Result, Settings
from ilora.connectivity.landscape import Landscape, limited, open_landscape
from ilora.connectivity.page import write_page
from ilora.connectivity.path_job import PathJob
from ilora.connectivity.plane_job import PlaneJob
from ilora.connectivity.similarity_job import SimilarityJob
from ilora.connectivity.sources import Origins, Pair, Source
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.progress import Display
from ilora.training.processes import by_first, joined, on_main, refuse_unshared


def make_results(source: Source, settings: Settings, out: Path, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Make every wanted result that is not there yet; returns them all.

    They lie in `out`, as JSON and pictures, with a page over all of them. Of several processes the first one writes.
    Raises InputError, before anything is computed, where a setting or an adapter does not fit, or a file was made of
    something else.
    """
    jobs, notes = _jobs(source, settings, out)
    if not jobs:
        raise InputError("nothing to compute: give --paths, --plane or --similarity")
    origins, accelerator = Origins(source.config), joined()
    made_from = {job.file: origins.of(job.adapters, job.tasks, job.depends) for job in jobs}
    refuse_unshared(accelerator, out)
    there = by_first(accelerator, lambda: _there(made_from, out))
    with Display(quiet=quiet or not accelerator.is_main_process) as display:
        for note in notes:
            display.say(f"connect: {note}")
        landscape: Landscape | None = None
        results, drawn = [], dict[str, str]()
        for job in jobs:
            result: Result | None = there[job.file]
            if result is None or not result["complete"]:
                if landscape is None:
                    display.say(f"connect: loading {source.config.model.name}")
                    landscape = open_landscape(source.config, _tasks(jobs), source.adapters, split=settings.split)
                result = _make(job, landscape, display, result, made_from[job.file])
            on_main(accelerator, partial(_draw, result, job.file, drawn))
            results.append({**result, "file": job.file.name})
        on_main(accelerator, lambda: write_page(out, drawn))
    return results


def _there(made_from: Mapping[Path, Any], out: Path) -> dict[Path, Result | None]:
    """What the files of these origins hold already."""
    there: dict[Path, Result | None] = {file: files.earlier(file, origin) for file, origin in made_from.items()}
    files.load_all(out)  # so that what the page cannot show is refused now, not after hours
    return there


def _draw(result: Result, file: Path, drawn: dict[str, str]) -> None:
    with files.reading(file):
        drawn |= pictures.write(result, file.parent, file.stem)


def _make(job: Job, landscape: Landscape, display: Display, before: Result | None, made_from: Any) -> Result:
    """Do a job, and save its result each time that it has come further."""
    began, spent = time.perf_counter(), before.get("seconds", 0.0) if before else 0.0
    result: Result = {}
    for content in job.make(landscape, display, before):
        seconds = round(spent + time.perf_counter() - began, 1)
        result = {**content, "made_from": made_from, "seconds": seconds}
        on_main(landscape.engine.accelerator, partial(files.save, job.file, result))
    return result


def _tasks(jobs: Sequence[Job]) -> list[Task]:
    return list({task.label: task for job in jobs for task in job.tasks}.values())


def _jobs(source: Source, settings: Settings, out: Path) -> tuple[list[Job], list[str]]:
    """A job for each wanted result, and a note for each one that cannot be."""
    paths.grid(settings.points)
    limits = {task.label: limited(task, settings.split, settings.rows) for pair in source.pairs for task in pair.tasks}
    pairs = [_limited(pair, limits) for pair in source.pairs]
    jobs, notes = list[Job](), list[str]()
    for pair in pairs:
        for kind, where in settings.curves():
            if settings.paths is None and where not in spaces.common_spaces(pair.ends):
                notes.append(f"{pair.name}: different layers, ranks or scales, so there is no path in {where}")
                continue
            jobs.append(PathJob(pair, paths.make_path(kind, pair.ends, space=where), settings, source, out))
    if settings.plane:
        jobs.append(PlaneJob(source, list(limits.values()), settings, out))
    if settings.similarity:
        jobs += [SimilarityJob(pair, source, settings, out) for pair in pairs]
    return jobs, notes


def _limited(pair: Pair, limits: Mapping[str, Task]) -> Pair:
    """The same task objects for every pair, so that their digests are computed once."""
    old, new = (tuple(limits[task.label] for task in tasks) for tasks in (pair.old, pair.new))
    return replace(pair, old=old, new=new)
