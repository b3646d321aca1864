"""I-LoRA+: I-LoRA with pseudo-rehearsal, and where a task ends on the path between the old minimum and the new one.

Few remembered rows are soon known by heart: replay keeps them and loses their task. So the texts of the *present* task
are asked the earlier tasks' questions as well (`ilora.rehearsal`), and the model is held near what it said to them
before the task:

    L = ½ CE(x) + ½ CE(x_m) [+ γ · MSE of hidden states] + strength · τ² · KL(p_before(x_p) ‖ p(x_p)),

x_p are the pseudo rows; the last term is a mean over answer tokens. The slow adapter answers. When a task ends, it may
move back on the path to what it was before the task (arXiv 2402.18865, section 3: the minima are connected). The next
task starts from there:

    slow <- (1 - t) · slow before the task + t · slow now,      for A and B each on their own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ilora.data.examples import IGNORED, Batch, Example, Totals, by_task
from ilora.data.stored import some
from ilora.kernels.losses import token_losses
from ilora.methods.base import METHODS
from ilora.methods.fast_slow import FastSlowConfig
from ilora.methods.ilora import ILoRA, ILoRAConfig
from ilora.methods.lwf import distillation
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.model.fitting import fitted
from ilora.model.writing import write_answers
from ilora.replay.memory import MOST
from ilora.replay.rehearsal import ANSWERS, Frame, pseudo_rows
from ilora.settings import Fraction, Log

OLD = "old"  # the answering adapter as the task found it


class ILoRAPlusConfig(ILoRAConfig):
    """I-LoRA's, with another start of a task; the rehearsal; the interpolation."""

    search = FastSlowConfig.search | {"pseudo_strength": Log(0.1, 5)}

    next_task_from: Literal["fast", "slow"] = Field("slow", description="the adapter with which the next task begins")
    inference: Literal["slow"] = Field("slow", description="the adapter that answers; both are evaluated")
    memory_policy: Literal["reservoir", "balanced"] = Field("balanced", description="which rows the memory keeps")
    strength: float = Field(0.0, ge=0, description="γ, the weight of I-LoRA's consistency term")
    pseudo_share: float = Field(1.0, ge=0, description="pseudo rows in a step, as a share of its new rows")
    pseudo_answers: Literal["auto", "stored", "written"] = Field(
        "stored",
        description="answers of the pseudo rows: kept ones; what the answering adapter writes before the task; "
        "`auto`: written where a task has many different ones",
    )
    pseudo_strength: float = Field(0.5, ge=0, description="weight of the pseudo rows' term")
    temperature: float = Field(2.0, gt=0, description="τ of the pseudo rows' term")
    t: Fraction | Literal["mean", "memory"] = Field(
        1.0, description="where a task ends on the path from the old minimum to the new one"
    )
    path_points: int = Field(11, ge=2, description="number of points that `memory` compares, with both ends")


@METHODS("ilora+")
class ILoRAPlus(ILoRA[ILoRAPlusConfig]):
    """I-LoRA with pseudo-rehearsal in place of the consistency term, and interpolation at a task's end.

    Without memory (`memory_size: 0`) no prompt of an earlier task is kept, only its frame and up to 16 of its answers.
    A task is not rehearsed if the present prompts have its frame already: the same instruction, or none.

    `t` is where a task ends on the path. The default is 1, the new minimum: no other value was measured to be better
    (docs/results.md). `memory` takes the point of the least loss on the memory's rows, each task with the same weight.
    `mean` takes 1 / i in the i-th task. This has the least sum of losses if the old minimum is the best point for the
    i - 1 earlier tasks, the new one for the new task, and all losses have the same curvature: (i - 1) t² + (1 - t)² is
    least at 1 / i.
    """

    title = "I-LoRA+"
    paper = "this project; after arXiv 2402.18865"
    stores = "memory_size examples, each task's frame and answers, two more adapters"

    def __init__(self, run: RunView, config: ILoRAPlusConfig) -> None:
        super().__init__(run, config)
        self.frames: list[Frame] = []
        self.pseudo: list[Example] | None = None  # of the task in training; made where first needed
        self.t_of: dict[str, float] = {}  # by task
        self.made: dict[str, int] = {}  # by task, how many pseudo rows it had

    # -- rehearsal ------------------------------------------------------------------------------------------------

    def remember(self, rows: Sequence[Example]) -> None:
        """Their frame, too, so that the present texts are asked their question."""
        super().remember(rows)
        self._learn_frames(rows)

    def begin_task(self) -> None:
        """Keep the slow adapter, from which this task starts: it is the teacher, and the other end of the path."""
        super().begin_task()
        adapters.keep_copy(self.engine.model, "slow", OLD)

    def extend_batch(self, examples: list[Example]) -> list[Example]:
        """Replayed rows and pseudo rows behind the current ones."""
        rows, made = super().extend_batch(examples), self._pseudo_rows()
        chance = random.Random(f"{self.position.seed}/pseudo/{self.position.step}")
        part = random.Random(f"{self.position.seed}/pseudo/share/{self.position.step}").random()
        count = int(self.config.pseudo_share * len(examples) + part)  # on average this share
        return rows + chance.sample(made, min(count, len(made)))

    def _pseudo_rows(self) -> list[Example]:
        if self.pseudo is None:  # the task has begun, or goes on after a stop
            earlier = [frame for frame in self.frames if frame.task not in self.position.current_tasks]
            self.pseudo = self._made(earlier)
            self.engine.prepare(self.pseudo)
        return self.pseudo

    def _made(self, earlier: Sequence[Frame]) -> list[Example]:
        """The pseudo rows of a task, some with answers that the answering adapter writes as the task found it."""
        writing = {frame.task: frame for frame in earlier if self._writes(frame)}
        asked = [frame.with_room() if frame.task in writing else frame for frame in earlier]
        made = pseudo_rows(asked, self._some(self.rows), seed=f"{self.position.seed}/pseudo/{self.position.task}")
        written: dict[str, list[int]] = {}
        with adapters.active(self.engine.model, OLD):
            for task, rows in by_task([row for row in made if row.task in writing]).items():
                known = writing[task].answers
                ends = {answer[-1] for answer in known}
                written |= write_answers(self.engine, rows, longest=max(map(len, known)), ends=ends)
        return [replace(row, answer=written.get(row.id, row.answer)) for row in made]

    def _writes(self, frame: Frame) -> bool:
        """Whether the answers to this question are written; not where the kept ones are all that there are."""
        return self.config.pseudo_answers == "written" or (
            self.config.pseudo_answers == "auto" and len(frame.answers) == ANSWERS
        )

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """I-LoRA's of the real rows + strength · distillation of the pseudo rows."""
        made = [number for number, example in enumerate(batch.examples) if example.pseudo]
        real = [number for number, example in enumerate(batch.examples) if not example.pseudo]
        loss = torch.zeros((), device=batch.labels.device)
        if real:
            loss = loss + super().loss(batch.part(real), totals)
        if made:
            kept, strength = self._kept(batch.part(made)) / totals.pseudo.labels, self.config.pseudo_strength
            self.run.log("distillation", kept)
            loss = loss + strength * kept
        return loss

    def _kept(self, batch: Batch) -> Tensor:
        """The distillation loss from the answering adapter before the task, summed over answer tokens."""
        with torch.no_grad(), adapters.active(self.engine.model, OLD):
            before = self.engine.forward(batch, dropout=False).answer_logits
        logits, answers = self.engine.forward(batch).answer_logits, batch.targets != IGNORED
        return distillation(logits[answers], before[answers], temperature=self.config.temperature)

    # -- interpolation --------------------------------------------------------------------------------------------

    def end_task(self) -> None:
        """Fill the memory, keep the task's frame; after the first task, move the slow adapter to the chosen point."""
        super().end_task()
        self._keep_frames()
        if self.has_past:
            t = self.t_of[self.position.task] = self.chosen()
            adapters.interpolate(self.engine.model, "slow", OLD, by=1.0 - t)

    def _keep_frames(self) -> None:
        self.made[self.position.task] = len(self._pseudo_rows())
        self.pseudo = None
        self.engine.prepare([])
        self._learn_frames(self.rows)

    def _some(self, rows: Sequence[Example]) -> Sequence[Example]:
        """The rows; of a large task a random part of them."""
        return some(rows, MOST, key=f"{self.position.seed}/part/{self.position.task}")

    def _learn_frames(self, found: Sequence[Example]) -> None:
        if not self.config.pseudo_share or not self.config.pseudo_strength:
            return
        known = {frame.task: frame for frame in self.frames}
        for task, rows in by_task(self._some(found)).items():
            known[task] = Frame.of(rows, seed=f"{self.position.seed}/{task}")
        self.frames = list(known.values())

    def chosen(self) -> float:
        """t of this task."""
        if self.config.t == "mean":
            return 1.0 / (self.position.task_index + self.run.started)
        if self.config.t == "memory":
            return self._best() if self.memory.examples else 1.0
        return float(self.config.t)

    @torch.no_grad()
    def _best(self) -> float:
        """The first t of least loss on the memory; the adapters stay as they are."""
        slow = adapters.parameters(self.engine.model, "slow")
        ends = [(value, old, value.clone()) for value, old in zip(slow.values(), self._old(), strict=True)]
        losses: list[float] = []
        last: int = self.config.path_points - 1
        for step in range(last + 1):
            for value, old, new in ends:
                value.copy_(old.lerp(new, step / last))
            losses.append(self._loss_of_memory())
        for value, _, new in ends:
            value.copy_(new)
        return losses.index(min(losses)) / last

    def notes(self) -> dict[str, Any]:
        """By task: where it ended, its number of pseudo rows, and the frame's tokens before and after the text."""
        frames = {frame.task: [len(frame.head), len(frame.tail)] for frame in self.frames}
        return {"t": dict(self.t_of), "pseudo_rows": dict(self.made), "frames": frames}

    def state_dict(self) -> dict[str, Any]:
        """Of the finished tasks."""
        frames = [frame.state() for frame in self.frames]
        return {"t": dict(self.t_of), "made": dict(self.made), "frames": frames}

    @classmethod
    def without_task(cls, state: dict[str, Any], task: str) -> dict[str, Any]:
        """Without its frame and answers: it is not rehearsed any more."""
        return state | {"frames": [frame for frame in state["frames"] if frame["task"] != task]}

    def stored(self) -> dict[str, int]:
        """The frames' tokens, beside the adapters."""
        return super().stored() | {"frames": sum(frame.stored_bytes() for frame in self.frames)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.t_of = dict(state["t"])
        self.made = dict(state["made"])
        self.frames = [Frame(**frame) for frame in state["frames"]]

    def _old(self) -> list[torch.Tensor]:
        return list(adapters.parameters(self.engine.model, OLD).values())

    def _loss_of_memory(self) -> float:
        """Of the slow adapter: the mean over the remembered tasks of their rows' mean cross-entropy."""
        found = []
        with adapters.active(self.engine.model, "slow"):
            for rows in by_task(self.memory.examples).values():
                found.append(fitted(self.engine, self.engine.mine(rows), partial(self._mean_loss, rows)))
        self.engine.all_reduce(found)
        return float(torch.stack(found).mean())

    def _mean_loss(self, rows: Sequence[Example]) -> torch.Tensor:
        """This process's share of the rows' mean cross-entropy."""
        total = torch.zeros((), device=self.engine.device)
        for batch in self.engine.micro_batches(rows):
            logits = self.engine.forward(batch, dropout=False).answer_logits
            total += token_losses(logits, batch.targets).sum() / Totals.of(rows).current.labels
        return total
