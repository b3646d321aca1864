"""`ilora run --dry-run`: from a configuration to what the run will need. Rows are read, weights are not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ilora.config import Config
from ilora.data.encoding import LONGEST_AUTO, Encoder
from ilora.data.stored import some
from ilora.data.task import Task, phases
from ilora.errors import InputError
from ilora.methods import method_class
from ilora.model.load import load_tokenizer
from ilora.model.names import local_folder
from ilora.model.sharded import obstacle
from ilora.planning.need import Hardware, Need, Work, layouts, need
from ilora.planning.shape import Shape, read_shape
from ilora.stream import load_tasks
from ilora.training.expected import COUNTED
from ilora.training.loading import encoder_beside_prompts
from ilora.training.processes import refuse_idle
from ilora.training.room import step_rows

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True)
class DryRun:
    """What a run will need.

    rows, steps: by phase. needs: of each layout. counted: whether the rows' tokens were counted, or are taken to be
    `data.max_length` for want of a tokenizer. whole: why the base cannot lie in parts; None: it can. refused: why a run
    does not begin on so many devices; None: it does.
    """

    config: Config
    shape: Shape
    work: Work
    needs: list[Need]
    rows: dict[str, int]
    steps: dict[str, int]
    counted: bool
    whole: str | None
    refused: str | None

    @property
    def adapter_bytes(self) -> int:
        """Of one adapter's weights, in memory and in its file."""
        return 4 * self.shape.trained

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint within a task: one adapter, its moments, the memory's rows."""
        memory = min(self.config.method.memory_capacity, sum(self.rows.values()))
        return 3 * self.adapter_bytes + round(4 * memory * self.work.tokens)

    @property
    def disk_bytes(self) -> int:
        """Of a run folder with one adapter a phase, at its largest: all phases' adapters, the snapshots of one, and
        three checkpoints while one replaces another. Predictions are not counted.
        """
        snapshots = max(self.config.training.trajectory - 1, 0)
        return (len(self.rows) + snapshots) * self.adapter_bytes + 3 * self.checkpoint_bytes

    def seconds(self, of: Need) -> float:
        """Of all optimizer steps. Evaluation and loading are not counted."""
        return sum(self.steps.values()) * of.seconds


def dry_run(config: Config, *, devices: int = 1, nodes: int = 1, hardware: Hardware | None = None) -> DryRun:
    """What the configured run will need. Raises InputError where model or data cannot be used.

    devices: of each of `nodes` machines.
    """
    tasks = load_tasks(config.data)
    shape, encoder = read_shape(config.model, config.adapter), _encoder(config, tasks)
    tasks = tasks if encoder is None else [encoder.fitting(task) for task in tasks]
    tokens, longest, answer = _lengths(config, tasks, encoder)
    order = phases(tasks, config.stream)
    rows = {phase.label: sum(len(task.rows["train"]) for task in phase.tasks) for phase in order}
    steps = {phase.label: _steps(config.at(phase.index), rows[phase.label]) for phase in order}
    micro, again = config.training.micro_batch_size, config.model.gradient_checkpointing
    work = Work(
        rows=step_rows(config, len(order)),
        micro_batch=None if micro == "auto" else micro,
        tokens=tokens,
        longest=longest,
        answer=answer,
        checkpointing=None if again == "auto" else again,
    )
    whole = "adapter.use_dora" if config.adapter.use_dora else obstacle(config.model)
    found = layouts("none" if whole else None, devices=devices, nodes=nodes)
    needs = [need(shape, work, layout, hardware or Hardware()) for layout in found]
    refused = _idle(devices * nodes, config, tasks)
    return DryRun(config, shape, work, needs, rows, steps, encoder is not None, whole, refused)


def _idle(count: int, config: Config, tasks: list[Task]) -> str | None:
    try:
        refuse_idle(count, config, tasks)
    except InputError as error:
        return str(error)
    return None


def _steps(config: Config, rows: int) -> int:
    training = config.training
    if not method_class(config.method.name).trains:
        return 0
    steps = math.ceil(rows / training.global_batch_size) * training.epochs
    return steps if training.max_steps is None else min(steps, training.max_steps)


def _encoder(config: Config, tasks: list[Task]) -> Encoder | None:
    """None where the model's folder has no tokenizer."""
    folder = local_folder(config.model.name)
    if folder is not None and not any((folder / name).is_file() for name in _TOKENIZER):
        return None
    return encoder_beside_prompts(config, load_tokenizer(config.model), None, tasks=len(tasks))


def _lengths(config: Config, tasks: list[Task], encoder: Encoder | None) -> tuple[float, int, int]:
    """Tokens of a row on average and at most, of an answer at most.

    Raises InputError where a run would: for a row that is counted, and whose answer is too long.
    """
    if encoder is None:
        most = config.data.max_length
        return float(most), most, min(LONGEST_AUTO, most // 4)
    most, pairs = encoder.config.max_length, []
    for task in tasks:
        found = encoder.of(task).lengths(some(task.rows["train"], COUNTED, key=f"plan/{task.name}"))
        longest = max(answer for _, answer in found)
        if longest >= most:
            raise InputError(
                f"task '{task.name}': an answer has {longest} tokens with its end-of-text, more than {encoder.length} "
                "leaves beside a prompt; a run refuses it: raise data.max_length, or leave such rows out with "
                "data.too_long=drop"
            )
        pairs += found
    wholes = [min(whole, most) for whole, _ in pairs]
    vectors = encoder.vectors
    return sum(wholes) / len(wholes) + vectors, max(wholes) + vectors, max(answer for _, answer in pairs)
