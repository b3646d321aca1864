"""Loading a base model in parts: each process reads its own slices of the files, and none ever holds the whole."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from packaging.version import Version
from transformers import AutoModelForCausalLM, PreTrainedModel

from ilora.errors import InputError
from ilora.model.dtype import dtype_of
from ilora.model.sharding import Sharding, split
from ilora.settings import ModelConfig

T = TypeVar("T")
_PEFT = Version("0.21")  # the first that sees the shape of a weight whose parts it is given
WEIGHTS = "the weights of model.name"  # what `refuse_unlike` calls them: each process may have them at its own path
_BEGINNING = 2**16  # bytes of a file
_ROOM = 0.5  # of a device's memory: more for whole weights would leave too little for the training


@dataclass(frozen=True)
class Layout:
    """How many processes share one model, and how many such models there are."""

    parts: int
    copies: int

    @property
    def options(self) -> dict[str, Any]:
        """What transformers is told. Raises InputError where it is too old to load in parts."""
        from transformers.distributed import DistributedConfig

        known = {field.name for field in fields(DistributedConfig)}
        old = Version(importlib.metadata.version("peft")) < _PEFT
        if old or not {"fsdp_size", "dp_replicate_size"} <= known:
            found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "peft"))
            raise InputError(
                f"model.shard: not with {found}; pip install -U transformers peft, or set model.shard: none"
            )
        return {"distributed_config": DistributedConfig(fsdp_size=self.parts, dp_replicate_size=self.copies)}


def layout_of(
    config: ModelConfig, accelerator: Accelerator, settings: Callable[[], Any], *, given: bool = False
) -> Layout | None:
    """How `model.shard` spreads the model over the processes; None: each has the whole.

    settings: reads the model's config.json. given: the model is an object, and whole already.
    Raises InputError where the setting and others do not go together.
    """
    count, kind = accelerator.num_processes, config.shard
    if count == 1 or kind == "none":
        return None
    hindrance = obstacle(config, given=given)
    if kind == "auto":
        return None if hindrance else _by_memory(config, accelerator, settings)
    if hindrance:
        raise InputError(f"model.shard: {kind}: {hindrance}; leave model.shard out")
    return Layout(count, 1) if kind == "full" else _within_machines(count)


def obstacle(config: ModelConfig, *, given: bool = False) -> str | None:
    """Why weights cannot lie in parts; None: they can. given: the model is an object, and whole already."""
    if given:
        return "the model is given as an object, so that every process has the whole of it already"
    if config.quantization != "none":
        return f"model.quantization: {config.quantization} keeps weights in a form that cannot be split"
    if config.kernels == "compiled":
        return "model.kernels: compiled: a compiled layer cannot wait for its weights"
    if config.liger:
        return "model.liger: its kernels expect whole weights"
    return None


def _within_machines(count: int) -> Layout:
    """One model for the processes of each machine. Raises InputError where machines have different numbers of them."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if local < 2 or count % local:
        raise InputError(
            f"model.shard: hybrid: {count} processes, {local} of them on this machine; it needs two or more on each "
            "machine, the same number on all (LOCAL_WORLD_SIZE, which torchrun sets)"
        )
    return Layout(local, count // local)


def _by_memory(config: ModelConfig, accelerator: Accelerator, settings: Callable[[], Any]) -> Layout | None:
    """Whole where that leaves half of a device's memory free, else over a machine, else over all processes."""
    count = accelerator.num_processes
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    room = _ROOM * _memory(accelerator.device, local)
    needed = _bytes(config, in_all(settings))
    within = local > 1 and count % local == 0 and needed / local <= room
    chosen = [None if needed <= room else Layout(local, count // local) if within else Layout(count, 1)]
    broadcast_object_list(chosen)  # machines may differ
    return chosen[0]


def _memory(device: torch.device, processes: int) -> float:
    """Bytes for one of so many processes of a machine."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / processes


def _bytes(config: ModelConfig, settings: Any) -> int:
    """Of the whole model's weights, in the configured type. Nothing is loaded."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)
    except (ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"model '{config.name}': {reason}") from error
    dtype = dtype_of(config)
    numbers: int = sum(weight.numel() for weight in model.parameters())
    return numbers * dtype.itemsize


def in_all(load: Callable[[], T]) -> T:
    """What `load` returns. InputError in one process is raised in every one, so that none is left waiting."""
    failure, made = None, None
    try:
        made = load()
    except InputError as error:
        failure = error
    said = gather_object([None if failure is None else str(failure)])
    if failure is not None:
        raise failure
    for rank, message in enumerate(said):
        if message is not None:
            raise InputError(f"process {rank}: {message}")
    return cast(T, made)


def refuse_other_files(accelerator: Accelerator, folder: Path) -> None:
    """Raises InputError, in every process, where one sees other weights in the model's folder than the first one does.

    Each would read its own part of another model. Compared are names, sizes and the first 64 KiB, in which a file of
    safetensors has its header and weights: reading all would take as long as loading the whole model.
    """

    def seen() -> dict[str, str | None]:
        found = hashlib.sha256()
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as opened:
                found.update(f"{file.name} {file.stat().st_size}\n".encode() + opened.read(_BEGINNING))
        return {WEIGHTS: found.hexdigest()}

    refuse_unlike(accelerator, seen)


def refuse_unlike(accelerator: Accelerator, seen: Callable[[], Mapping[str, str | None]]) -> None:
    """Raises InputError, in every process, where one has read something else than the first one has.

    seen: what was read, and its digest, by names that are the same in all; asked only where there are several.
    """
    if accelerator.num_processes == 1:
        return
    here = f"process {accelerator.process_index} on {platform.node()}"
    (first, expected), *others = gather_object([(here, dict(seen()))])
    for place, found in others:
        for what, digest in found.items():
            if digest != expected.get(what):
                raise InputError(f"{what}: {place} sees another content than {first}; all processes must see the same")


@contextmanager
def in_parts(name: str) -> Iterator[list[Any]]:
    """Inside the block, transformers splits a model as we do, before it reads the weights.

    name: of the model, for messages. Yields a list, in which the mesh of processes will be. transformers' own plan
    gathers a layer whenever it is called, and so needs as many calls in every process.
    """
    gc.collect()  # the parts of a model before this one, which stands in circles with its hooks
    meshes: list[Any] = []

    def distribute(_: Any, model: Any, __: Any, manager: Any) -> Any:
        meshes.append(manager.get_mesh("fsdp"))  # of one model: its copies, being frozen, need nothing of each other
        split(model, meshes[0], name)
        return model

    before = vars(PreTrainedModel).get("maybe_distribute_model")
    PreTrainedModel.maybe_distribute_model = classmethod(distribute)
    try:
        yield meshes
    finally:
        if before is None:
            del PreTrainedModel.maybe_distribute_model
        else:
            PreTrainedModel.maybe_distribute_model = before


def begin_sharing(model: Any, mesh: Any, name: str) -> None:
    """After the weights are read: from now on passes gather them."""
    if hasattr(model.config, "distributed_config"):
        del model.config.distributed_config
    Sharding(model, mesh, name)
