"""The rule `keep`: what a run need not keep when a task is finished, and how it goes.

Each piece that goes is renamed into `.prune-...` below the run's folder, and deleted there. So a kill leaves it whole
in its place or out of sight, and whatever lies in such a folder is deleted later. Releases are never touched.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ilora.config import Config
from ilora.files import flush_folder, write_atomic
from ilora.keeping import KeepConfig
from ilora.results.scores import compressed
from ilora.training import checkpoint as checkpoints
from ilora.training import trajectory
from ilora.training.optim import made_anew

_SCRATCH = ".prune-"
_EMPTY = 64  # bytes: a file of tensors that holds none is no larger


@dataclass(frozen=True)
class Reached:
    """How far a method's run has come: phases trained and measured, and who answers after the last one."""

    phases: int
    complete: bool
    answering: str  # the variant that answers
    one_adapter_answers: bool  # else each task needs the adapter that was saved after it


@dataclass(frozen=True)
class Surplus:
    """What a rule does not keep of one method's run: files and folders to delete, and prediction files to compress."""

    checkpoints: tuple[Path, ...] = ()
    trajectory: tuple[Path, ...] = ()
    adapters: tuple[Path, ...] = ()
    predictions: tuple[Path, ...] = ()

    @property
    def deleted(self) -> tuple[Path, ...]:
        """All that goes without a trace."""
        return (*self.checkpoints, *self.trajectory, *self.adapters)


def surplus(run: Path, rule: KeepConfig, reached: Reached, *, checkpoints_too: bool = True) -> Surplus:
    """What the rule does not keep of the run in the folder `run`. Files that ilora has not written are left out.

    checkpoints_too: whether the newest checkpoint is known to be sound.
    """
    plain = rule.predictions == "plain"
    states = checkpoints.complete(run / "checkpoints") if reached.complete and checkpoints_too else []
    return Surplus(
        checkpoints=tuple(states[: -rule.checkpoints]),
        trajectory=tuple(_snapshots(run, rule, reached)),
        adapters=tuple(_adapters(run, rule, reached)),
        predictions=() if plain else tuple(sorted((run / "predictions").rglob("*.jsonl"))),
    )


def _snapshots(run: Path, rule: KeepConfig, reached: Reached) -> Iterator[Path]:
    first = {"all": 0, "last": reached.phases, "none": reached.phases + 1}[rule.trajectory]
    for file in trajectory.files(run / "trajectory"):
        if trajectory.phase_number(file) < first:
            yield file


def _adapters(run: Path, rule: KeepConfig, reached: Reached) -> Iterator[Path]:
    if rule.adapters == "all" or not reached.one_adapter_answers:
        return
    for folder in sorted((run / "adapters").glob("[0-9]*-*")):
        number = re.match(r"\d+", folder.name)
        if number is None or int(number[0]) >= reached.phases:
            continue
        if rule.adapters == "last":
            yield folder
        else:
            yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and path.name != reached.answering)


def drop(run: Path, found: Surplus) -> None:
    """Drop what a rule does not keep. Killed anywhere, it leaves a run that can be read and resumed."""
    delete(run, found.deleted)
    for file in found.predictions:
        compress(file)


def delete(run: Path, paths: Sequence[Path]) -> None:
    """Delete files and folders below `run`, each at once."""
    if not paths:
        return
    aside = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=run))
    for number, path in enumerate(paths):
        path.rename(aside / f"{number}-{path.name}")
    for folder in {path.parent for path in paths}:
        flush_folder(folder)
    shutil.rmtree(aside, ignore_errors=True)


def compress(file: Path) -> None:
    """Replace a prediction file by a compressed one: the same content gives the same bytes."""
    write_atomic(compressed(file), gzip.compress(file.read_bytes(), mtime=0))
    file.unlink()


def left_behind(run: Path) -> list[Path]:
    """Folders of files to be deleted that a kill left."""
    return sorted(run.glob(f"{_SCRATCH}*"))


def finish_dropping(run: Path) -> None:
    """Delete what a kill left."""
    for folder in left_behind(run):
        shutil.rmtree(folder, ignore_errors=True)


def needless_moments(run: Path, rule: KeepConfig, config: Config, *, fresh_start: bool) -> list[Path]:
    """The files with AdamW's moments in a finished run's checkpoints, if the rule does not keep them.

    fresh_start: of the method.
    """
    if rule.moments or not made_anew(config, len(config.data.tasks or []) + 1, fresh_start=fresh_start):
        return []
    files = (path / "optimizer.safetensors" for path in checkpoints.complete(run / "checkpoints"))
    return [file for file in files if file.is_file() and file.stat().st_size > _EMPTY]


def write_without_moments(run: Path, rule: KeepConfig) -> None:
    """Write the newest checkpoint again, without the moments, as often as the rule keeps it; the others go."""
    folder = run / "checkpoints"
    found, _ = checkpoints.load_latest(folder)
    if found is None:
        return
    found.tensors["optimizer"] = {}
    for _ in range(rule.checkpoints):
        checkpoints.save(folder, found)
    delete(run, checkpoints.complete(folder)[: -rule.checkpoints])
