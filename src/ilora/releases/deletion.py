"""`ilora forget`: the rows of a task are deleted wherever a run has them. Weights and scores stay.

It is what the law asks of data sets. It is not unlearning: the adapters were trained on these rows, and stay as they
are.
Every step looks at what is there, so that it may be repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ilora.config import read_yaml
from ilora.data.task import SPLITS, task_label
from ilora.errors import InputError
from ilora.files import RUN_ENTRIES, cache_folder, flush_folder, write_atomic
from ilora.registry import did_you_mean
from ilora.releases import journal, redaction
from ilora.releases.candidate import places
from ilora.releases.journal import Deletion, Event
from ilora.releases.manifest import redact
from ilora.releases.store import current, numbers, read_release, release_folder
from ilora.results.reader import phase_labels, read_results, task_labels
from ilora.stream import BEFORE
from ilora.training import checkpoint as checkpoints
from ilora.training import keep

_ROOMS = ("data", "predictions", "evaluations")


@dataclass(frozen=True)
class Left:
    """What a deletion did not touch, a line for each."""

    task: str
    lines: tuple[str, ...]


def prepare(run: Path, task: str) -> tuple[Deletion, Left]:
    """Check all that is to be changed. Raises InputError where something of it is unknown, unfinished or damaged."""
    _refuse_unfinished(run)
    name = _known(run, task)
    results = read_results(run)
    for number in numbers(run):
        read_release(run, number)
    for folder in redaction.parts(run):
        redaction.refuse_unknown_state(read_yaml(folder / "config.yaml"), folder / "config.yaml")
        list(redaction.result_files(folder))
    redaction.gate_with(run, _redacted_predictions(run, task_label(name)))
    variant = results["variants"][results["answers_with"]]
    last = dict(zip(task_labels(results), variant["R"][-1], strict=True)) if variant["R"] else {}
    event = Event(
        id=journal.next_id(run),
        time=journal.now(),
        event="forget",
        release=current(run),
        phase=phase_labels(results)[-1],
        tasks=[name],
        scores={"summary": variant.get("summary"), "tasks": last},
        ilora=journal.version(),
    )
    return Deletion(task=name, day=journal.now()[:10], event=event), Left(name, tuple(_left(run, name)))


def _refuse_unfinished(run: Path) -> None:
    for folder in (run / place for place in places(run)):
        if not (folder / "results.json").is_file() or not read_results(folder).get("complete"):
            raise InputError(f"{folder}: not finished; `ilora resume {run}` or `ilora rollback {run}` first")


def _known(run: Path, task: str) -> str:
    """The name of a task that the run has rows of."""
    found: dict[str, bool] = {}  # whether all its rows are deleted already
    for folder in redaction.parts(run):
        for section in redaction.sections(read_yaml(folder / "config.yaml")):
            name = str(section["name"])
            found[name] = found.get(name, True) and bool(section.get("forgotten"))
        if redaction.concerned(read_yaml(folder / "config.yaml"), BEFORE):
            found.setdefault(BEFORE, False)
    names = {task_label(name): name for name in found} | {name: name for name in found}
    if task not in names:
        raise InputError(f"{run}: no task '{task}'{did_you_mean(task, list(found))}; there are {', '.join(found)}")
    if found[names[task]]:
        raise InputError(f"{run}: the rows of task '{names[task]}' were deleted already")
    return names[task]


def _left(run: Path, task: str) -> Iterator[str]:
    """What the deletion does not reach."""
    config = read_yaml(run / "config.yaml")
    if task == BEFORE and (place := config["data"].get("start_rows")):
        yield f"{place}: where the rows came from"
    for section in redaction.sections(config):
        if section["name"] == task:
            given = [str(section[key]) for key in ("path", *SPLITS, "dataset") if section.get(key)]
            inside = [place for place in given if Path(place).is_relative_to((run / "data").absolute())]
            for place in [place for place in given if place not in inside] or ([] if inside else [_source(config)]):
                yield f"{place}: where the rows came from"
    if (config.get("adapter") or {}).get("keep_below"):
        yield f"{cache_folder() / 'below'}: a cache of what the frozen layers make of rows, of this run and others"
    if (tokens := cache_folder() / "tokens").is_dir():
        yield f"{tokens}: a cache of large tasks in token ids, of this run and others"
    for path in sorted(run.iterdir()):  # nobody here knows whether another file holds rows
        if path.name not in RUN_ENTRIES and path not in keep.left_behind(run):
            yield f"{path}: not a file of ilora's"
    if (run / "trackers").exists() or config.get("trackers"):
        yield "what the trackers keep: configuration and losses"


def _source(config: dict[str, object]) -> str:
    data = config["data"]
    assert isinstance(data, dict)
    return str(data.get("path") or data.get("benchmark") or "the run's source")


def finish(run: Path, deletion: Deletion, report: Callable[[Path], object]) -> None:
    """Do all that is left of it. report: writes report.html from a run folder."""
    label = task_label(deletion.task)
    for path in _with_texts(run):
        _remove(path)
    for folder in redaction.parts(run):
        if redaction.concerned(read_yaml(folder / "config.yaml"), deletion.task):
            _redact(folder, deletion)
        _remove(folder / "data" / label)
    made = _redacted_predictions(run, label)
    if gate := redaction.gate_with(run, made):
        write_atomic(run / redaction.GATE, gate)
    for path, content in made.items():
        write_atomic(path, content)
    for number in numbers(run):
        redact(release_folder(run, number), task=deletion.task, day=deletion.day)
    report(run)
    journal.finish(run, deletion)


def _with_texts(run: Path) -> list[Path]:
    """What cannot be rewritten, or was left by a process that was killed: pages with answers, half-written files."""
    pages = [run / "report.html", *(run / "releases" / "withdrawn").glob("*/report.html")]
    pages += [run / "diffs", *(run / "releases" / "withdrawn").glob("*/diffs")]
    killed = [path for folder in redaction.parts(run) for path in keep.left_behind(folder)]
    killed += [state.parent for state in run.rglob("gate/*/trained/*/checkpoints")]  # of a repair that was stopped
    return pages + killed + [path for path in run.rglob(".*-writing") if path.name != ".lock"]


def _redact(folder: Path, deletion: Deletion) -> None:
    """Checkpoints first, since they need what the results still say of the task."""
    told = redaction.entry(folder, deletion)
    for place in checkpoints.all_of(folder / "checkpoints"):
        if place.name.startswith("damaged-") or not _sound(place, deletion):
            _remove(place)
        else:
            checkpoints.rewrite(place, lambda found: redaction.checkpoint(found, deletion, told))
    state = folder / "state"
    if (folder / "scores.json").is_file():
        checkpoints.rewrite(state, lambda found: redaction.checkpoint(found, deletion, told))
    redaction.redact_texts(folder, deletion)


def _sound(place: Path, deletion: Deletion) -> bool:
    """Whether a checkpoint can be read, and gone on from without the task's rows."""
    try:
        return not place.exists() or redaction.usable(checkpoints.load(place), deletion)
    except InputError:
        return False


def _redacted_predictions(run: Path, label: str) -> dict[Path, bytes]:
    """By prediction file of a task what it will hold: after every phase, of every variant and contrast run, of
    `evaluate` and of the gate's repair.
    """
    name = f"{label}.jsonl"
    files = [path for each in (name, f"{name}.gz") for path in run.rglob(each) if not path.is_symlink()]
    found = {path.with_name(name) for path in files}
    rooms = {file: [part for part in file.relative_to(run).parts if part in _ROOMS] for file in found}
    wanted = sorted(file for file in found if rooms[file] and rooms[file][0] != "data")
    return {path: content for file in wanted for path, content in redaction.predictions(file).items()}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        flush_folder(path.parent)
