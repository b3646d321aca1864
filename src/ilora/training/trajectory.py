"""RUN/trajectory: the adapters at a few steps within every task, for the trajectories that `ilora connect` draws.

Each snapshot is one file, `<phase>-<step of the run>.safetensors`, in float32 as trained. It is written after its step
and before any checkpoint that covers the step. A resume drops the snapshots of steps that it repeats, so that none is
missing and none has other weights. Nothing reads them during training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.methods.base import Method
from ilora.model import adapters

_NAME = re.compile(r"[0-9]+-.+-[0-9]+\.safetensors", re.DOTALL)
MOVING = ("fast", "slow")  # the adapters that steps move; others (`merged`) change at a task's end only


@dataclass(frozen=True)
class Snapshot:
    """Where in the run a file of the trajectory belongs. step: of the run; share: of the task's planned steps."""

    file: Path
    phase: str
    step: int
    share: float

    adapters: tuple[str, ...]

    def tensors(self, adapter: str) -> dict[str, Tensor]:
        """One adapter's tensors by parameter. Raises InputError where the file is damaged."""
        try:
            with safe_open(self.file, framework="pt") as content:
                keys = [key for key in content.keys() if key.startswith(f"{adapter}:")]  # noqa: SIM118 (no mapping)
                return {key.removeprefix(f"{adapter}:"): content.get_tensor(key) for key in keys}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.file}: cannot be read: {error}") from None


def due(steps: int, parts: int) -> set[int]:
    """The steps that divide a task of `steps` steps into `parts`. Its last step is none of them: it is saved anyway."""
    return {round(steps * number / parts) for number in range(1, parts)} - {0, steps}


def moving(method: Method) -> list[str]:
    """The adapters to take snapshots of: none for a method that does not save an adapter of the model as it is."""
    if not method.one_adapter_answers or type(method).save is not Method.save:
        return []
    return [name for name in MOVING if name in adapters.names(method.engine.model)]


def write(folder: Path, method: Method, *, phase: str) -> None:
    """Write the present adapters. Raises IloraError where the disk is full."""
    position, tensors = method.position, {}
    for name in moving(method):
        for key, value in adapters.parameters(method.engine.model, name).items():
            tensors[f"{name}:{key}"] = value.detach().cpu().contiguous()
    if tensors:
        place = {"phase": phase, "step": position.step, "share": position.task_step / position.task_steps}
        write_atomic(
            folder / f"{phase}-{position.step:06d}.safetensors", save(tensors, metadata={"place": json.dumps(place)})
        )


def files(folder: Path) -> list[Path]:
    """The files that are snapshots by their names; others are not ours to delete."""
    return sorted(file for file in folder.glob("*.safetensors") if _NAME.fullmatch(file.name))


def phase_number(file: Path) -> int:
    """Of which phase a snapshot is, by its name."""
    return int(file.name.partition("-")[0])


def cut(folder: Path, step: int) -> None:
    """Drop the snapshots of later steps of the run, and files that a kill has left incomplete."""
    for file in folder.glob(".*-writing"):
        file.unlink()
    for file in files(folder):
        if int(file.stem.rpartition("-")[2]) > step:
            file.unlink()


def snapshots(folder: Path) -> Iterator[Snapshot]:
    """The snapshots in the folder, by phase and step. Raises InputError naming a damaged file."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as content:
                place, keys = json.loads(content.metadata()["place"]), content.keys()
            names = dict.fromkeys(key.partition(":")[0] for key in keys)
            yield Snapshot(file, str(place["phase"]), int(place["step"]), float(place["share"]), tuple(names))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: not a snapshot of a run's trajectory ({error!r}); move it away") from None
