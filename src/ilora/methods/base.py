"""The contract between a method and the training loop. As it stands, `Method` is sequential fine-tuning.

The loop owns the optimizer step; a method supplies terms and reacts at fixed points. One step, in full:

    extend_batch -> split over processes and micro-batches -> loss, backward (each) -> gradients summed over processes
    -> penalty, backward -> before_step -> clip -> optimizer -> after_step
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, get_args

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar, get_original_bases

from ilora.data.examples import IGNORED, Batch, Example, Totals
from ilora.kernels.losses import token_losses
from ilora.methods.view import Position, RunView
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.fitting import fitted
from ilora.model.gradients import gradients
from ilora.model.passes import Output
from ilora.registry import Registry
from ilora.replay.memory import ReplayMemory
from ilora.settings import MethodConfig

ConfigT = TypeVar("ConfigT", bound=MethodConfig, default=MethodConfig)


class Method(Generic[ConfigT]):
    """Sequential fine-tuning of one adapter, and the hooks that every other method overrides.

    What a method sees of the run: `self.engine` computes, `self.memory` holds earlier rows, `self.position` says task,
    step and seed, `self.rows` are the task's rows; `self.run` has the rest. A method with settings of its own is a
    `Method[MyConfig]`.
    """

    title = ""  # as tables write it; empty: its name
    family = "bounds"  # or replay, regularisation, projection, isolation, merging
    paper = ""
    stores = "nothing"
    needs_task_id = False  # at inference
    trains = True
    one_adapter_answers = True  # the last folder saved, loaded in PEFT, is the whole answer
    fixed_answers = False  # once a task is trained, its answers never change: they are not computed again
    without: tuple[str, ...] = ()  # settings of the adapter that it does not work with
    fresh_start = False  # a task begins with new weights: the optimizer's moments belong to others

    Config: ClassVar[type[MethodConfig]] = MethodConfig  # ConfigT as a value

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for given in (argument for base in get_original_bases(cls) for argument in get_args(base)):
            if "Config" not in vars(cls):
                cls.Config = given if isinstance(given, type) else given.__default__

    def __init__(self, run: RunView, config: ConfigT) -> None:
        self.run = run
        self.config = config

    @property
    def engine(self) -> Engine:
        """The model, and the ways to compute with it."""
        return self.run.engine

    @property
    def memory(self) -> ReplayMemory:
        """The rows kept for replay; its capacity is the method's setting `memory_size`."""
        return self.run.memory

    @property
    def position(self) -> Position:
        """Where in the stream the run is."""
        return self.run.position

    @property
    def rows(self) -> Sequence[Example]:
        """The training rows of the task."""
        return self.run.rows

    @property
    def has_past(self) -> bool:
        """Whether something was learnt before this task: in the run, or by the adapter that it starts from."""
        return self.position.task_index > 1 or self.run.started

    @property
    def variants(self) -> list[str]:
        """The sets of weights that are saved and evaluated after each task; the first one is the method's answer."""
        return ["fast"]

    @property
    def trainable(self) -> list[nn.Parameter]:
        """What the optimizer moves: the same parameters in the same order over the whole run.

        With `fresh_start` they may be others from task to task, once `begin_task` and `load_state_dict` have run.
        """
        return list(adapters.parameters(self.engine.model, "fast").values())

    # -- hooks, in the order in which the loop calls them ---------------------------------------------------------

    def remember(self, rows: Sequence[Example]) -> None:
        """Before the first task: take the rows of what was learnt before it (`data.start_rows`) into the memory."""
        self.memory.offer(rows)

    def begin_task(self) -> None:
        """Before a task's first step: begin an adapter, take a snapshot, keep a teacher."""

    def extend_batch(self, examples: list[Example]) -> list[Example]:
        """The step's whole batch, before it is split: add replayed rows. Must be the same in every process."""
        return examples

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """This micro-batch's share of the step's loss: sums divided by the *step's* totals."""
        return self.cross_entropy(self.engine.forward(batch), batch, totals)

    def penalty(self) -> Tensor | None:
        """A term of the weights alone, added once per optimizer step."""
        return None

    def before_step(self) -> None:
        """Gradients are complete and summed over processes, not yet clipped: project them here."""

    def after_step(self) -> None:
        """The weights have moved."""

    def end_task(self) -> None:
        """After a task's last step: estimate importance, fill memory, consolidate."""

    @contextmanager
    def inference(self, task: str, variant: str) -> Iterator[None]:
        """The weights to evaluate with, inside the block. `task` is only for methods with `needs_task_id`."""
        del task
        with self.weights(variant):
            yield

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """The weights that the optimizer moves, inside the block, as `loss` uses them: for the validation loss.

        They are active all through a task, unless `loss` puts something of its own around the forward pass.
        """
        yield

    def save(self, folder: Path) -> None:
        """Write what answers: an ordinary PEFT folder `folder/<variant>` each."""
        adapters.save(self.engine.model, folder, self.variants)

    def notes(self) -> dict[str, Any]:
        """What a reader of results.json may want to know of how it went, as plain JSON values."""
        return {}

    def stored(self) -> dict[str, int]:
        """Bytes by kind that must be kept from task to task, the replay memory aside."""
        sizes = {"adapters": sum(tensor.nbytes for tensor in adapters.state(self.engine.model).values())}
        for name, value in self.state_dict().items():
            if isinstance(value, Tensor):
                kind = name.partition(".")[0]
                sizes[kind] = sizes.get(kind, 0) + value.nbytes
        return sizes

    def state_dict(self) -> dict[str, Any]:
        """What the method knows beyond the adapters, the memory and the optimizer: tensors and plain JSON values.

        A tensor's name up to the first dot is what its bytes are counted under in results.json.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; the adapters are there already, and the tensors are on the device."""

    @classmethod
    def without_task(cls, state: dict[str, Any], task: str) -> dict[str, Any]:
        """`state_dict`'s content without what came from a task's rows and could be read as them (`ilora forget`).

        Weights and means over many rows stay. A method whose state holds rows, or parts of them, leaves them out here.
        """
        del task
        return state

    # -- tools ----------------------------------------------------------------------------------------------------

    @contextmanager
    def weights(self, names: str | Sequence[str]) -> Iterator[None]:
        """Compute with these adapters (their sum), merged into the model where `evaluation.merge` says so."""
        if self.engine.merge:
            self.engine.rejoin()  # parts of the base are merged, not what is gathered of it
        how = adapters.merged if self.engine.merge else adapters.active
        with how(self.engine.model, names):
            yield

    def cross_entropy(self, output: Output, batch: Batch, totals: Totals) -> Tensor:
        """Mean cross-entropy of the current rows; with replay, ½ of it + ½ of the replayed rows' mean.

        The mean is over answer tokens, or over rows (`training.loss_average`).
        """
        per_row, current, replayed = self._per_row(output, batch, totals)
        now = (per_row * ~batch.replayed).sum() / max(current, 1)
        self.run.log("ce", now)
        if not totals.replayed.rows:
            return now
        old = (per_row * batch.replayed).sum() / replayed
        self.run.log("ce_replayed", old)
        return 0.5 * now + 0.5 * old

    def gradient(self, examples: Sequence[Example]) -> Tensor:
        """The gradient of these rows' mean cross-entropy with respect to `trainable`, flat, over all processes.

        Computed at the present weights without dropout; leaves `.grad` as it is.
        """
        rows = [replace(example, replayed=False) for example in examples]
        total = fitted(self.engine, self.engine.mine(rows), partial(self._gradient, rows))
        self.engine.all_reduce([total])
        return total

    def _gradient(self, rows: Sequence[Example]) -> Tensor:
        """This process's part of `gradient`."""
        totals, total = Totals.of(rows), None
        for batch in self.engine.micro_batches(rows):
            parts = gradients(self.engine, partial(self._loss_of_rows, batch, totals), self.trainable)
            flat = torch.cat([part.flatten() for part in parts])
            total = flat if total is None else total + flat
            self.engine.passes["backward"] += len(batch.examples)
        if total is None:  # fewer rows than processes
            total = torch.cat([torch.zeros_like(parameter).flatten() for parameter in self.trainable])
        return total

    def _loss_of_rows(self, batch: Batch, totals: Totals) -> Tensor:
        per_row, count, _ = self._per_row(self.engine.forward(batch, dropout=False), batch, totals)
        return per_row.sum() / count

    def _per_row(self, output: Output, batch: Batch, totals: Totals) -> tuple[Tensor, int, int]:
        """Each row's loss, and what the sums over current and over replayed rows are divided by."""
        labels = batch.targets
        per_row = token_losses(output.answer_logits, labels, count=batch.label_count).sum(1)
        if self.run.training.loss_average == "rows":
            return per_row / (labels != IGNORED).sum(1), totals.current.rows, totals.replayed.rows
        return per_row, totals.current.labels, totals.replayed.labels


METHODS: Registry[type[Method[Any]]] = Registry("method")
