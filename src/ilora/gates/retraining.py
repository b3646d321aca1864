"""RUN/gate/<phase>/trained/<trial>: a phase that is trained again, as `ilora gate --repair` does.

trial.json    what it is made from: another trial in its place begins anew
checkpoints/  while it trains; a trial that was stopped goes on from there
adapter/      when it is finished: a PEFT folder
done.json     written last, with the seconds that training took
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from ilora.data.digests import training_digest
from ilora.data.examples import Example
from ilora.errors import InputError
from ilora.files import flush_folder, flush_tree, link_or_copy, write_atomic
from ilora.gates.trials import Fill, Trial
from ilora.progress import Display
from ilora.training.beginning import origin
from ilora.training.checkpoint import load_latest
from ilora.training.interrupt import StopRequest
from ilora.training.processes import joined
from ilora.training.session import Session

MADE, DONE, ADAPTER = "trial.json", "done.json", "adapter"


def folder_of(run: Path, phase: str, trial: Trial) -> Path:
    """The trial's folder. phase: the label of the one that is repaired."""
    return run / "gate" / phase / "trained" / trial.key


def is_trained(trial: Trial, place: Path) -> bool:
    """Whether just this trial is finished in its folder."""
    whole = (place / DONE).is_file() and (place / ADAPTER / "adapter_config.json").is_file()
    return whole and _made_from(place) == _origin(trial)


def retrain(trial: Trial, place: Path, *, display: Display, stop: StopRequest) -> float:
    """Do all that is left of a trial, so that `place` has its adapter; returns the seconds that training took.

    Raises InputError where the data or the model are not those of the run any more, and KeyboardInterrupt, with a
    checkpoint written, where a stop was asked for.
    """
    if not is_trained(trial, place):
        if not _is_begun(trial, place):
            _begin(trial, place)
        _finish(place, trial, _trained(trial, place, display, stop))
    for path in place.iterdir():  # what it took to make the adapter: a checkpoint has rows in its memory
        if path.name not in (MADE, DONE, ADAPTER):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return float(json.loads((place / DONE).read_text(encoding="utf-8"))["seconds"])


def _trained(trial: Trial, place: Path, display: Display, stop: StopRequest) -> tuple[Path, float]:
    """Train; returns the folder of the adapter that answers, and the seconds."""
    session = Session(trial.config, place, list(trial.tasks), accelerator=joined(), display=display, stop=stop)
    session.refuse_changes()
    session.restore()
    session.method.engine.model.train()
    began = json.loads((place / MADE).read_text(encoding="utf-8"))["seconds"]
    progress = session.state.progress
    for phase in session.stream.phases[progress.finished : trial.phase]:
        if phase.index == trial.phase and session.state.progress.ended and trial.fill is not None:
            _fill(session, trial.fill)
        session.train(phase)
    label = session.stream.phases[trial.phase - 1].label
    return place / "adapters" / label / session.method.variants[0], session.state.counters.train_seconds - began


def _fill(session: Session, fill: Fill) -> None:
    """Give the memory what it is to hold when the phase begins."""
    method, memory, encoder = session.method, session.method.memory, session.stream.encoder
    capacity = session.config.at(len(session.stream.phases)).method.memory_capacity
    rows: dict[str, Any] = {
        task.name: session.stream.train.get(task.name) or encoder.encode(encoder.fitting(task), "train")
        for task in fill.tasks
    }
    if fill.anew:
        memory.clear(capacity)
        for found in rows.values():
            method.remember(found)
        return
    held = {(row.task, row.id) for row in memory.examples}
    others: list[Example] = [row for found in rows.values() for row in found if (row.task, row.id) not in held]
    if not others:
        raise InputError(f"{', '.join(rows)}: the memory holds all rows already, so no more can be replayed")
    room = capacity - memory.capacity
    memory.take(random.Random(f"{memory.seed}/repair").sample(others, min(room, len(others))), capacity=capacity)


def _is_begun(trial: Trial, place: Path) -> bool:
    """Whether just this trial is under way in its folder, or ended without what is written last."""
    if _made_from(place) != _origin(trial) or (place / DONE).exists():
        return False
    return trial.start is None or load_latest(place / "checkpoints")[0] is not None


def _begin(trial: Trial, place: Path) -> None:
    """A new folder in the place of another trial's; it appears whole."""
    scratch = place.with_name(f".{place.name}-writing")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    seconds = 0.0
    if trial.start is not None:
        shutil.copytree(trial.start, scratch / "checkpoints" / "000001", copy_function=_link)
        state = json.loads((trial.start / "state.json").read_text(encoding="utf-8"))
        seconds = state["values"]["counters"]["train_seconds"]
    write_atomic(scratch / MADE, json.dumps({"made_from": _origin(trial), "seconds": seconds}, indent=1) + "\n")
    flush_tree(scratch)
    shutil.rmtree(place, ignore_errors=True)
    scratch.rename(place)
    flush_folder(place.parent)


def _finish(place: Path, trial: Trial, made: tuple[Path, float]) -> None:
    """Keep the adapter."""
    folder, seconds = made
    shutil.rmtree(place / ADAPTER, ignore_errors=True)
    shutil.copytree(folder, place / ADAPTER)
    flush_tree(place / ADAPTER)
    told = {"seconds": round(seconds, 1), "settings": dict(trial.settings)}
    write_atomic(place / DONE, json.dumps(told, ensure_ascii=False, indent=1) + "\n")


def _origin(trial: Trial) -> str:
    """SHA-256 of all that a trial is made from: configuration, rows to train on, the state that it begins with."""
    fill = None if trial.fill is None else [trial.fill.anew, *map(training_digest, trial.fill.tasks)]
    start = None if trial.start is None else hashlib.sha256((trial.start / "state.json").read_bytes()).hexdigest()
    config = trial.config.dump()
    config["adapter"]["start_from"] = None  # a path in the run, which may lie elsewhere now
    whole = [
        config,
        [training_digest(task) for task in trial.tasks if not task.forgotten],
        fill,
        start,
        None if start else origin(trial.config),  # a state needs no more what the run began from
    ]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _made_from(place: Path) -> str | None:
    """What the trial in a folder was made from; None where there is none that can be read."""
    try:
        return str(json.loads((place / MADE).read_text(encoding="utf-8"))["made_from"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it begins anew


def _link(source: str, target: str) -> None:
    link_or_copy(Path(source), Path(target))
