"""Everything that a run knows between two optimizer steps, and how it is saved and restored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilora.config import Config, load_config
from ilora.data.digests import fingerprint
from ilora.data.task import Task, phases
from ilora.errors import InputError
from ilora.methods.base import Method
from ilora.model import adapters
from ilora.model.fitting import recompute
from ilora.model.sharded import WEIGHTS
from ilora.training.beginning import refuse_other_start
from ilora.training.checkpoint import Checkpoint, split_tensors
from ilora.training.divergence import DivergenceError
from ilora.training.optim import made_anew, make_optimizer

_ADAPTERS = "adapters"  # what a checkpoint's files of adapters begin with; one for all in those of the versions before
_NO_LIMIT = 2**62  # tokens
_PLACES = ("path", "train", "eval", "test", "dataset")  # settings of a task that say where its rows are


@dataclass
class Progress:
    """How far a run has come. phase: the one in training or last trained, 0 = nothing yet."""

    phase: int = 0
    task_step: int = 0  # optimizer steps done in the phase
    ended: bool = True  # the phase's end_task has run
    validation: list[float] = field(default_factory=list)  # losses measured in the phase (`training.stop_when`)

    @property
    def finished(self) -> int:
        """Phases trained to their end."""
        return self.phase if self.ended else self.phase - 1


@dataclass
class Counters:
    """What the run has cost so far."""

    steps: int = 0
    trained_tokens: int = 0
    passes: dict[str, int] = field(default_factory=dict)  # rows, forward and backward
    train_seconds: float = 0.0
    peak_memory_bytes: int = 0
    evaluation_seconds: float = 0.0
    phase_steps: dict[str, dict[str, Any]] = field(default_factory=dict)  # by phase, `validation.steps_taken`


@dataclass
class State:
    """What changes during a run. `config` and `tasks` do not: a checkpoint with other ones is refused."""

    config: Config
    tasks: list[Task]
    method: Method[Any]
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    counters: Counters = field(default_factory=Counters)
    forgotten: dict[str, dict[str, Any]] = field(default_factory=dict)  # by task: what results.json said of it
    start: dict[str, Any] | None = None  # what the run began from: `beginning.origin`

    def checkpoint(self) -> Checkpoint:
        """All of it. Raises DivergenceError where a weight is not finite: such a state must not replace a good one."""
        self.count_passes()
        weights = adapters.state(self.method.engine.model)
        own = {f"trained parameter {n}": value.detach() for n, value in enumerate(self.method.trainable)}
        for name, tensor in (weights | own).items():
            if not math.isfinite(float(tensor.abs().max())):
                step = self.method.position.step
                raise DivergenceError(f"weights are not finite after step {step} of the run: {name}")
        method_values, method_tensors = split_tensors(self.method.state_dict())
        memory_values, memory_tensors = split_tensors(self.method.memory.state_dict())
        return Checkpoint(
            values={
                "position": asdict(self.progress),
                "counters": asdict(self.counters),
                "config": self.config.dump(),
                "fingerprints": self.fingerprints,
                "forgotten": self.forgotten,
                "start": self.start,
                "base": self.base,
                "perplexity_text": self.text_digest,
                "micro_batches": self.micro_batches(),
                "method": method_values,
                "memory": memory_values,
            },
            tensors=_by_adapter(weights)
            | {
                "method": method_tensors,
                "memory": memory_tensors,
                "optimizer": {} if self._moments_are_done else dict(_flat(self.optimizer)),
            },
        )

    @cached_property
    def fingerprints(self) -> list[str | None]:
        """Of every task, by which a checkpoint knows its data; None of one whose rows were deleted."""
        return [None if task.forgotten else fingerprint(task) for task in self.tasks]

    def read(self) -> dict[str, str | None]:
        """What this process has read: digests of the tasks and of the base model, by what to call them."""
        found = {f"task '{task.name}'": own for task, own in zip(self.tasks, self.fingerprints, strict=True)}
        base = self.method.engine.base
        return found if base is None else found | {WEIGHTS: base.weights_sha256}

    @property
    def _moments_are_done(self) -> bool:
        """Whether the next step has a new optimizer, and nobody asked for the present one."""
        return self.progress.ended and not self.config.keep.moments and self._anew(self.progress.phase + 1)

    def _anew(self, phase: int) -> bool:
        """Whether phase `phase` begins with a new optimizer. One after the last: with the last one's settings."""
        return made_anew(self.config, phase, fresh_start=self.method.fresh_start)

    @property
    def base(self) -> dict[str, Any] | None:
        """Which base model the engine has, as plain JSON; None where it does not say."""
        base = self.method.engine.base
        return None if base is None else asdict(base)

    @cached_property
    def text_digest(self) -> str | None:
        """Of the text of `evaluation.perplexity_file`; None without one."""
        file = self.config.evaluation.perplexity_file
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()

    def micro_batches(self) -> dict[str, Any]:
        """How steps are divided, after all that ran out of memory: the smallest over processes, which all then take."""
        engine = self.method.engine
        rows = 0 if engine.micro_batch_size == "auto" else engine.micro_batch_size
        kept = 0 if engine.recomputes else 1
        now = torch.tensor([[rows, engine.micro_batch_tokens or _NO_LIMIT, kept]], device=engine.device)
        rows, tokens, kept = engine.accelerator.gather(now).amin(0).tolist()
        self.divide(rows, tokens, checkpointing=not kept)
        return {"rows": rows, "tokens": tokens, "checkpointing": not kept}

    def divide(self, rows: int, tokens: int, *, checkpointing: bool = False) -> None:
        """Inverse of `micro_batches`."""
        engine = self.method.engine
        engine.micro_batch_size = rows or "auto"
        engine.micro_batch_tokens = None if tokens == _NO_LIMIT else tokens
        if checkpointing:
            recompute(engine)

    def count_passes(self) -> None:
        """Take the rows that all processes have passed through the model since the last call into the counters."""
        engine = self.method.engine
        passes = engine.passes
        kinds = sorted(passes)
        rows = torch.tensor([passes[kind] for kind in kinds], device=engine.device)
        for kind, count in zip(kinds, engine.accelerator.reduce(rows, reduction="sum").tolist(), strict=True):
            self.counters.passes[kind] = self.counters.passes.get(kind, 0) + count
            passes[kind] = 0

    def restore(self, found: Checkpoint) -> None:
        """Inverse of `checkpoint`, for one that `refuse_changes` lets pass."""
        values, tensors = found.values, found.tensors
        if "micro_batches" in values:  # not in those of the versions before
            self.divide(**values["micro_batches"])
        self.progress = Progress(**values["position"])
        self.counters = Counters(**values["counters"])
        self.forgotten = values.get("forgotten", {})  # not in those of the versions before
        self.start = values.get("start")
        weights = {
            key: value for group, part in tensors.items() if group.startswith(_ADAPTERS) for key, value in part.items()
        }
        adapters.load_state(self.method.engine.model, weights, first="fast")
        device = self.method.engine.device
        own = {name: tensor.to(device) for name, tensor in tensors["method"].items()}
        self.method.load_state_dict(values["method"] | own)
        self.method.memory.load_state_dict(values["memory"] | tensors["memory"])
        self.optimizer = make_optimizer(self.method.trainable, self.config.training)
        self.optimizer.load_state_dict(
            {"state": _nested(tensors["optimizer"]), "param_groups": self.optimizer.state_dict()["param_groups"]}
        )

    def refuse_changes(self, found: Checkpoint) -> None:
        """Raises InputError for a changed configuration or changed data. Only `add` may append tasks, to a sequence."""
        fingerprints = found.values["fingerprints"]
        then, present = found.values.get("base"), self.base  # a checkpoint of an older version does not say
        if then and present and then["weights_sha256"] != present["weights_sha256"]:
            raise InputError(
                f"model '{self.config.model.name}': its weights changed since the run began. "
                "Put them back, or start a new run"
            )
        text = found.values.get("perplexity_text")
        if text and self.text_digest and text != self.text_digest:
            raise InputError(
                f"evaluation.perplexity_file: {self.config.evaluation.perplexity_file} changed since the run began. "
                "Put it back, or start a new run"
            )
        refuse_other_start(self.config, found.values.get("start"))
        before = load_config(found.values["config"]).dump()  # with defaults for settings that are newer than the run
        now = self.config.dump()
        before, now = _without_places(before), _without_places(now)
        if then and present:  # the same weights, wherever they lie
            now["model"] = now["model"] | {key: before["model"][key] for key in ("name", "revision")}
        old, new = before["data"]["tasks"], now["data"]["tasks"]
        if self.config.stream == "sequential" and new[: len(old)] == old:
            before = before | {"data": before["data"] | {"tasks": new}}
        changed = list(_differences(before, now))
        if changed:
            raise InputError(
                f"the configuration (config.yaml) changed since the run began: {'; '.join(changed)}. "
                "Put it back, or start a new run"
            )
        for task, now_is, was in zip(self.tasks, self.fingerprints, fingerprints, strict=False):
            if not task.forgotten and now_is != was:
                raise InputError(
                    f"task '{task.name}': its data ({task.source}) changed since the run began. "
                    "Put it back, or start a new run"
                )
        self._refuse_lost_moments(found)

    def _refuse_lost_moments(self, found: Checkpoint) -> None:
        """Raises InputError where the next task would go on with moments that were not kept."""
        done = Progress(**found.values["position"])
        next_one = done.ended and 0 < done.phase < len(phases(self.tasks, self.config.stream))
        lost = not found.tensors["optimizer"] and Counters(**found.values["counters"]).steps > 0
        if next_one and lost and not self._anew(done.phase + 1):
            raise InputError(
                "training.reset_optimizer: false cannot hold from the next task on: the run has reset its optimizer "
                "until now, and kept no moments of the last task. Leave it out; with `ilora resume RUN "
                "keep.moments=true` it can hold from the task after the next one on"
            )


def _by_adapter(weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A group, and so a file, for each adapter: those that no longer change need not be written again."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        groups.setdefault(f"{_ADAPTERS}-{key.partition(':')[0]}", {})[key] = value
    return groups


def _without_places(dump: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what may change: the places of the data (its content is compared), what is kept."""
    data, file = dump["data"], dump["evaluation"]["perplexity_file"]
    tasks = [{key: value for key, value in task.items() if key not in _PLACES} for task in data["tasks"]]
    return dump | {
        "model": dump["model"] | {"shard": None},
        "adapter": dump["adapter"] | {"start_from": dump["adapter"]["start_from"] is not None},
        "data": data | {"path": None, "start_rows": None, "rows_in_memory": None, "tasks": tasks},
        "training": dump["training"] | {"trajectory": None, "log_every": None},
        "keep": None,
        "evaluation": dump["evaluation"] | {"perplexity_file": file and Path(file).name},
    }


def _flat(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """`<parameter number>.<key>` for every tensor; AdamW keeps nothing else."""
    for number, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            yield f"{number}.{key}", value


def _nested(flat: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    nested: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        number, _, key = name.partition(".")
        nested.setdefault(int(number), {})[key] = value
    return nested


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}".strip("."))
    elif before != now:
        yield f"{key} was {before!r}, is {now!r}"
