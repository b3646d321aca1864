"""Reads and checks results.json, and takes from it what tables, pages and comparisons show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ilora.data.task import Phase
from ilora.errors import InputError
from ilora.present.numbers import number, plain
from ilora.results.schema import ResultsFile, validated

Results = Mapping[str, Any]
"""The parsed `results.json` of a run."""

SUMMARY = ("OP", "BWT", "forgetting", "FWT", "plasticity")
_PROSE = {"sequential": "sequential fine-tuning", "joint": "joint training"}  # as they read in a sentence


def refuse_no_results(run: Path) -> None:
    """Raises InputError for a folder that is not that of a run, or of one without results."""
    for name in ("config.yaml", "results.json"):
        if not (run / name).is_file():
            raise InputError(f"{run}: not a run folder with results (no {name} in it)")


def refuse_no_place(place: Path) -> None:
    """Raises InputError where there is nothing to compare."""
    if not place.exists():
        raise InputError(
            f"{place}: no such folder or file; give a run folder, a folder with run folders in it, "
            "or a file that --save made"
        )


def method_title(results: Results, *, prose: bool = False) -> str:
    """How the method of a run is written: short for tables, or as it reads in a sentence."""
    method = plain(results.get("method", "?"), 24)
    title = plain(results.get("title") or method, 24)
    if results.get("stream") == "joint" and method == "sequential":
        method = title = "joint"  # plain fine-tuning on all tasks mixed
    return _PROSE.get(method, title) if prose else title


def matrix(results: Results, variant: str) -> list[list[float | None]]:
    """R of a variant, without the last rows if they are not evaluated yet."""
    rows = [[number(score) for score in row] for row in results["variants"][variant]["R"]]
    while rows and all(score is None for score in rows[-1]):
        rows.pop()
    return rows


def zero_shot_scores(results: Results, variant: str) -> list[float | None]:
    """The scores before any training; all None if they were not taken."""
    scores = results["variants"][variant].get("zero_shot") or [None] * len(results["tasks"])
    return [number(score) for score in scores]


def learning_row(results: Results, task: int) -> int:
    """The row of R that follows the training of a task."""
    return 0 if results.get("stream") == "joint" else task


def task_labels(results: Results) -> list[str]:
    """The labels of the tasks: what names their files and pairs them between runs."""
    return [str(task.get("label", task["name"])) for task in results["tasks"]]


def changes(results: Results) -> list[str]:
    """A line for each task with which settings changed: `task 3 (three) on: training.epochs 1, method.strength 2`."""
    found = []
    for place, task in enumerate(results["tasks"], 1):
        settings = task.get("settings")
        if isinstance(settings, dict) and settings:
            listed = ", ".join(f"{plain(key, 60)} {plain(value, 60)}" for key, value in settings.items())
            found.append(f"task {place} ({plain(task['name'])}) on: {listed}")
    return found


def other_templates(results: Results) -> dict[str, str]:
    """By name, the tasks whose prompts stand in another template than the run's, with that template."""
    run = results.get("template")
    return {str(task["name"]): str(own) for task in results["tasks"] if (own := task.get("template")) and own != run}


def prompt_template(results: Results, stage: int | None = None) -> str | None:
    """In which template the prompts of the last trained task stand; None in a run of an older version.

    stage: how many phases were trained by then; None: all that are scored.
    """
    done = stage or len(matrix(results, results["answers_with"]))
    own = {str(task["name"]): task.get("template") for task in results["tasks"]}
    found = own.get(phase_names(results)[done - 1]) if done else None
    found = found or results.get("template")
    return None if found is None else str(found)


def phase_names(results: Results) -> list[str]:
    """The names of the phases in order."""
    names = results.get("phases")  # a run of an older version does not say
    if names is None:
        names = ["joint"] if results.get("stream") == "joint" else [task["name"] for task in results["tasks"]]
    return list(map(str, names))


def phase_labels(results: Results) -> list[str]:
    """The labels of the phases in order, as file names have them: `02-fomc`. Raises InputError for a damaged name."""
    return [Phase(number, name, ()).label for number, name in enumerate(phase_names(results), 1)]


def deleted(results: Results) -> dict[int, str]:
    """The tasks whose rows were deleted, by their number from 0, each with the day."""
    return {place: str(task["forgotten"]) for place, task in enumerate(results["tasks"]) if task.get("forgotten")}


def retired(results: Results) -> dict[int, str]:
    """The tasks that are scored no longer, by their number from 0, each with a sentence on why."""
    by = {str(task["replaces"]): plain(task["name"]) for task in results["tasks"] if task.get("replaces")}
    found = {}
    for place, task in enumerate(results["tasks"]):
        name = plain(task["name"])
        if task.get("forgotten"):
            found[place] = f"The rows of task {name} were deleted on {plain(task['forgotten'])} (ilora forget)."
        elif task["name"] in by:
            found[place] = f"Task {name} was replaced by {by[task['name']]}: its scores are of its own, older rows."
    return found


def near_chance(results: Results) -> dict[str, str]:
    """By task, a note on each one that was not learnt.

    Its score just after its training is within two standard errors of what always giving the commonest answer has.
    """
    variant, found = results["variants"][results["answers_with"]], {}
    for index, task in enumerate(results["tasks"]):
        row, chance = learning_row(results, index), number(task.get("chance"))
        score = number(variant["R"][row][index]) if row < len(variant["R"]) else None
        if chance is None or score is None or results.get("method") == "zero_shot":
            continue
        error = number(variant["se"][row][index]) if variant.get("se") else None
        if score <= chance + 2 * (error or 0.0):
            found[str(task["name"])] = (
                f"{plain(task['name'])}: {100 * score:.1f} just after its training is not above chance "
                f"({100 * chance:.1f} for always giving the commonest answer)"
            )
    return found


def ended_early(phase_steps: Mapping[str, Mapping[str, Any]] | None) -> list[str]:
    """A note on each phase that took fewer steps than planned, since its validation loss no longer fell."""
    notes = []
    for label, steps in (phase_steps or {}).items():
        if steps["taken"] < steps["planned"]:
            note = f"{plain(label)} ended after {steps['taken']} of {steps['planned']} steps"
            if (lowest := number(steps.get("validation_loss"))) is not None:
                note += f" (lowest validation loss {lowest:.3f}, at step {steps['best_step']})"
            notes.append(note)
    return notes


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises InputError naming the file where it is missing or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: file not found") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def read_results(run_dir: Path) -> Results:
    """The checked `results.json` of a run folder."""
    path = run_dir / "results.json"
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    return check_results(content, str(path))


def check_results(results: object, source: str = "results") -> Results:
    """`results` if it has the form of schema.py. Raises InputError with `source`, the place and what is allowed."""
    validated(ResultsFile, results, source)
    return cast("Results", results)
