"""`ilora connect`: paths, plane and similarity of a run's minima or of any adapters, into connectivity/."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ilora.connectivity import files, paths, pictures, similarity
from ilora.connectivity import space as spaces
from ilora.connectivity.bend import mean_loss, train_bend
from ilora.connectivity.ground import Ground, PointScores, average, contrast, gain, limited, open_ground
from ilora.connectivity.page import write_page
from ilora.connectivity.paths import Path as Curve
from ilora.connectivity.plane import Plane, make_plane
from ilora.connectivity.sources import Origins, Pair, Source, Stage, file_name
from ilora.connectivity.space import Adapter
from ilora.data.examples import Example
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.evaluation.scoring import EvaluationSet
from ilora.progress import Display

SCORE_EPSILON, LOSS_EPSILON = 0.01, 0.05  # one point of 100; nats per answer token
_SIMILARITY_ROWS = 64  # a task
_CHECKED_ROWS, _CHECKED_POINTS = 32, 6  # on which a bend's mean loss is compared with the straight line's


@dataclass(frozen=True)
class Settings:
    """paths: `kind` or `kind:space`; `factors` and `delta` are the straight lines in either. rows: at most, a task.

    paths None: both straight lines, or `delta` alone between adapters that are no points of `factors`.
    """

    paths: tuple[str, ...] | None = None
    points: int = 11
    split: str = "test"
    rows: int | None = None
    plane: bool = False
    grid: int = 15
    space: str = "factors"  # of the plane
    similarity: bool = False
    text: Path | None = None  # for similarity: rows of it instead of the tasks'
    bend_steps: int = 60
    bend_learning_rate: float = 2e-3
    bend_rows: int = 200  # of the training split, a task

    def curves(self) -> list[tuple[str, str]]:
        """(kind, space) of every path wanted. Raises InputError naming one that there is not."""
        found = []
        for text in spaces.SPACES if self.paths is None else self.paths:
            kind, _, where = ("linear", "", text) if text in spaces.SPACES else text.partition(":")
            if kind not in paths.KINDS or (where and where not in spaces.SPACES):
                raise InputError(
                    f"path {text!r}: allowed are factors, delta (straight lines), spherical, bezier and chain; these "
                    "are in factors, or with `:delta` in delta"
                )
            found.append((kind, where or "factors"))
        return list(dict.fromkeys(found))


Result = Mapping[str, Any]
Make = Callable[[Ground, Display, Result | None], Iterator[Result]]
"""Yields the content of a result's file, whole or as far as it is, so that a killed one goes on from the last one."""


@dataclass(frozen=True)
class Job:
    """One result: its file, what it depends on, and what makes it. tasks: with the rows that it takes of them."""

    file: Path
    adapters: Sequence[Adapter | Stage]
    tasks: Sequence[Task]
    settings: Mapping[str, Any]
    make: Make


def make_results(source: Source, settings: Settings, out: Path, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Do all of it; returns the results, which lie in `out` as JSON and pictures. What is there already is kept.

    Raises InputError, before anything is computed, where a setting or an adapter does not fit, or a file was made of
    something else.
    """
    jobs, notes = _jobs(source, settings, out)
    if not jobs:
        raise InputError("nothing to compute: give --paths, --plane or --similarity")
    origins = Origins(source.config)
    made_from = {job.file: origins.of(job.adapters, job.tasks, job.settings) for job in jobs}
    there = {job.file: files.earlier(job.file, made_from[job.file]) for job in jobs}
    files.load_all(out)  # so that what the page cannot show is refused now, not after hours
    with Display(quiet=quiet) as display:
        for note in notes:
            display.say(f"connect: {note}")
        ground: Ground | None = None
        results, drawn = [], dict[str, str]()
        for job in jobs:
            result = there[job.file]
            if result is None or not result["complete"]:
                if ground is None:
                    display.say(f"connect: loading {source.config.model.name}")
                    ground = open_ground(source.config, _tasks(jobs), source.adapters, split=settings.split)
                began = time.perf_counter()
                before = result.get("seconds", 0.0) if result else 0.0
                for content in job.make(ground, display, result):
                    seconds = round(before + time.perf_counter() - began, 1)
                    result = {**content, "made_from": made_from[job.file], "seconds": seconds}
                    files.save(job.file, result)
            assert result is not None
            with files.reading(job.file):
                drawn |= pictures.write(result, out, job.file.stem)
            results.append({**result, "file": job.file.name})
        write_page(out, drawn)
    return results


def _tasks(jobs: Sequence[Job]) -> list[Task]:
    return list({task.label: task for job in jobs for task in job.tasks}.values())


def _jobs(source: Source, settings: Settings, out: Path) -> tuple[list[Job], list[str]]:
    """Every result wanted, and what is to be said of those that there are not."""
    paths.grid(settings.points)
    limits = {task.label: limited(task, settings.split, settings.rows) for pair in source.pairs for task in pair.tasks}
    pairs = [_limited(pair, limits) for pair in source.pairs]
    jobs, notes = list[Job](), list[str]()
    for pair in pairs:
        for kind, where in settings.curves():
            if settings.paths is None and where not in spaces.common_spaces(pair.ends):
                notes.append(f"{pair.name}: different layers, ranks or scales, so there is no path in {where}")
                continue
            jobs.append(_path_job(pair, paths.make_path(kind, pair.ends, space=where), settings, source, out))
    if settings.plane:
        jobs.append(_plane_job(source, list(limits.values()), settings, out))
    if settings.similarity:
        jobs += [_similarity_job(pair, source, settings, out) for pair in pairs]
    return jobs, notes


def _limited(pair: Pair, limits: Mapping[str, Task]) -> Pair:
    """The same task objects for every pair, so that their digests are computed once."""
    old, new = (tuple(limits[task.label] for task in tasks) for tasks in (pair.old, pair.new))
    return replace(pair, old=old, new=new)


def _head(kind: str, ground: Ground, tasks: Sequence[Task], ends: Sequence[Adapter]) -> dict[str, Any]:
    return {
        "kind": kind,
        "complete": True,
        "model": ground.config.model.name,
        "split": ground.split,
        "ends": [{"label": end.label} for end in ends],
        "tasks": [{"name": task.name, "label": task.label, "metric": task.metric} for task in tasks],
    }


def _sets(ground: Ground, tasks: Sequence[Task]) -> list[EvaluationSet]:
    labels = {task.label for task in tasks}
    return [data for data in ground.sets if data.task.label in labels]


# -- paths ---------------------------------------------------------------------------------------------------------


def _path_job(pair: Pair, curve: Curve, settings: Settings, source: Source, out: Path) -> Job:
    name = f"{pair.name}-{curve.name}"
    file, folder = out / f"path-{name}.json", out / f"bend-{name}"
    depends: dict[str, Any] = {"points": settings.points, "split": settings.split, "rows": settings.rows}
    if curve.kind in paths.BENT:
        depends |= {key: getattr(settings, key) for key in ("bend_steps", "bend_learning_rate", "bend_rows")}
        depends |= {"seed": source.config.seed, "micro_batch_size": source.config.training.micro_batch_size}
        if folder.exists() and not file.exists():
            raise InputError(f"{folder}: exists, without the path that it is of; move it away")

    def make(ground: Ground, display: Display, before: Result | None) -> Iterator[Result]:
        path, head = curve, _head("path", ground, pair.tasks, pair.ends) | {"bend": None}
        if curve.kind in paths.BENT:
            head["bend"] = before["bend"] if before else None
            if head["bend"] is None:
                yield head | {"complete": False}  # the bend's folder is this path's from here on
                bend, training = _trained(curve, pair, ground, settings, display)
                spaces.write(replace(bend, base=bend.base or ground.config.model.name), folder, replace=True)
                head["bend"] = {**training, "adapter": folder.name}
                yield head | {"complete": False}
            path = curve.bent(spaces.read(folder, label="bend"))
        ts, sets = paths.grid(settings.points), _sets(ground, pair.tasks)
        with display.bar(f"{pair.name} {curve.name}", len(ts) * sum(len(data.examples) for data in sets)) as bar:
            scores = ground.judge([path.at(t) for t in ts], exact=(0, len(ts) - 1), sets=sets, advance=bar.advance)
        yield path_result(head, pair, curve, ts, scores)

    return Job(file, pair.ends, pair.tasks, depends, make)


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
    curve: Curve, pair: Pair, ground: Ground, settings: Settings, display: Display
) -> tuple[Adapter, dict[str, Any]]:
    """The trained bend, and what is kept of its training: the mean loss over line and curve, on some of its rows."""
    seed, size = ground.config.seed, ground.config.training.micro_batch_size
    rows = [
        example
        for task in pair.tasks
        for example in ground.encoder.encode(limited(task, "train", settings.bend_rows), "train")
    ]
    checked = random.Random(f"{seed}/bend/checked").sample(rows, min(_CHECKED_ROWS, len(rows)))

    def loss(path: Curve) -> float:
        return mean_loss(path, ground, checked, points=_CHECKED_POINTS, batch_size=size)

    line = loss(curve)  # which it is, as long as its bend is the ends' middle
    steps, rate = settings.bend_steps, settings.bend_learning_rate
    with display.bar(f"bend of {curve.name}", steps) as bar:
        bent = train_bend(
            curve, ground, rows, steps=steps, learning_rate=rate, batch_size=size, seed=seed, advance=bar.advance
        )
    losses = {"line": line, "curve": loss(bent), "n": len(checked), "points": _CHECKED_POINTS, "split": "train"}
    return bent.controls[1], {"steps": steps, "learning_rate": rate, "loss": losses}


# -- planes --------------------------------------------------------------------------------------------------------


def _plane_job(source: Source, tasks: Sequence[Task], settings: Settings, out: Path) -> Job:
    if source.corners is None:
        raise InputError("a plane goes through three adapters: name three, or a run of two tasks with a slow one")
    plane = make_plane(source.corners, space=settings.space)
    trail = _beside(plane, source.trail)
    projections = plane.project(stage.read() for stage in trail)
    xs, ys = plane.axes(settings.grid, others=projections)
    shown = [
        {"label": stage.label, "variant": stage.variant, "when": stage.when, **asdict(place),
         "near": plane.near(place)}
        for stage, place in zip(trail, projections, strict=True)
    ]  # fmt: skip
    labels = [task.label for task in tasks]

    def make(ground: Ground, display: Display, before: Result | None) -> Iterator[Result]:
        sets = _sets(ground, tasks)
        rows = sum(len(data.examples) for data in sets)

        def judged(points: Sequence[Adapter], exact: Sequence[int] = ()) -> list[dict[str, Any]]:
            found = ground.judge(points, exact=exact, sets=sets, advance=bar.advance)
            return [
                {"tasks": {label: one[label].summary() for label in labels}, "mean": average(one, labels)}
                for one in found
            ]

        content = dict(before) if before else _head("plane", ground, tasks, plane.corners)
        content |= {"space": plane.space, "x": xs, "y": ys, "trail": shown, "complete": False}
        grid = content.setdefault("grid", [])
        total, done = rows * (len(ys) * len(xs) + 3), len(grid) * len(xs) + 3 * ("corners" in content)
        with display.bar(f"plane in {plane.space}", total, done=rows * done) as bar:
            if "corners" not in content:
                places = zip(plane.corners, plane.coordinates, judged(plane.corners, (0, 1, 2)), strict=True)
                content["corners"] = [
                    {"label": corner.label, "x": x, "y": y, **values} for corner, (x, y), values in places
                ]
                yield content
            for y in ys[len(grid) :]:
                grid.append(judged([plane.at(x, y) for x in xs]))
                yield content
        yield content | {"complete": True}

    name = "--".join(file_name(corner.label) for corner in plane.corners)
    depends = {"grid": settings.grid, "split": settings.split, "rows": settings.rows}
    used: tuple[Adapter | Stage, ...] = (*plane.corners, *trail)
    return Job(out / f"plane-{name}-{settings.space}.json", used, tasks, depends, make)


def _beside(plane: Plane, trail: Sequence[Stage]) -> list[Stage]:
    """The stages from the earliest corner on that are points of the plane's space (ranks may grow with the tasks)."""
    labels = {corner.label for corner in plane.corners}
    first = min((stage.when for stage in trail if stage.label in labels), default=0.0)
    return [
        stage
        for stage in trail
        if stage.when >= first and plane.space in spaces.common_spaces((plane.corners[0], stage.read()))
    ]


# -- similarity ----------------------------------------------------------------------------------------------------


def _similarity_job(pair: Pair, source: Source, settings: Settings, out: Path) -> Job:
    trail = source.until(pair)
    depends: dict[str, Any] = {"split": settings.split, "rows": settings.rows}
    if settings.text is not None:
        depends["text"] = hashlib.sha256("\n".join(_text_lines(settings.text)).encode()).hexdigest()
    for task in pair.tasks if settings.text is None else ():
        have = len(task.rows[settings.split])
        if have < similarity.LEAST_ROWS:
            raise InputError(
                f"--similarity: task '{task.name}' has {have} rows; CKA needs at least {similarity.LEAST_ROWS}"
            )

    def make(ground: Ground, display: Display, before: Result | None) -> Iterator[Result]:
        del before
        display.say(f"similarity of {pair.name}")
        if settings.text is None:
            texts = {
                data.task.label: similarity.sampled(data.examples, _SIMILARITY_ROWS, task=data.task.label)
                for data in _sets(ground, pair.tasks)
            }
        else:
            texts = {settings.text.name: _text_rows(settings.text, ground)}
        yield {
            **_head("similarity", ground, pair.tasks, pair.ends),
            "n": {label: len(rows) for label, rows in texts.items()},
            "cka": similarity.cka_by_layer(ground, *pair.ends, texts),
            "angles": similarity.update_angles(*pair.ends),
            "distances": {
                where: similarity.distance(*pair.ends, space=where) for where in spaces.common_spaces(pair.ends)
            },
            "along": _along(trail),
        }

    used: tuple[Adapter | Stage, ...] = (*pair.ends, *trail)
    name = "" if settings.text is None else f"-{file_name(settings.text.name)}"
    return Job(out / f"similarity-{pair.name}{name}.json", used, pair.tasks, depends, make)


def _along(trail: Sequence[Stage]) -> dict[str, Any]:
    """For every variant its stages in the order of training, and the distances between them."""
    made = {}
    for variant in dict.fromkeys(stage.variant for stage in trail):
        stages = [stage for stage in trail if stage.variant == variant]
        made[variant] = {
            "label": [stage.label for stage in stages],
            "when": [stage.when for stage in stages],
            **similarity.along(stage.read() for stage in stages),
        }
    return made


def _text_lines(file: Path) -> list[str]:
    """The lines of a text that are not empty. Raises InputError where there are too few."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text: {error}") from None
    if len(lines) < similarity.LEAST_ROWS:
        raise InputError(f"{file}: {len(lines)} lines; every line is a row, and CKA needs at least "
                         f"{similarity.LEAST_ROWS}")  # fmt: skip
    return lines


def _text_rows(file: Path, ground: Ground) -> list[Example]:
    """A sample of the lines as prompts, cut to the length of the data."""
    encoder = ground.encoder
    prompts = encoder.tokenizer(_text_lines(file), verbose=False).input_ids
    rows = [
        Example(file.name, f"{file.name}/{number}", encoder.cut(prompt, encoder.config.max_length), [])
        for number, prompt in enumerate(prompts)
    ]
    return similarity.sampled(rows, _SIMILARITY_ROWS, task=file.name)
