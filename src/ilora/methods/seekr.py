"""SEEKR, selective attention-guided knowledge retention: He et al. (EMNLP 2024, arXiv 2411.06171).

Replayed rows are held to the model that had just learnt their task: to its next tokens, and to where its most valuable
attention heads look. With A the attention weights, I the heads' value, α `logit_share`, γ `strength`:

    L = ½ CE(x) + ½ [(1 - α) CE(x_m) + α KL(p_task ‖ p)(x_m) + γ mean_{layers, heads, queries} KL(A_task ‖ A)(x_m)]
    I <- I + F · S,      F = mean (A_after - A_before)²,      S = mean (∂CE/∂A)², as a share of its layer
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ilora.data.examples import IGNORED, Batch, Example, Totals, sent
from ilora.kernels.losses import token_losses
from ilora.methods.base import METHODS
from ilora.methods.er import ExperienceReplay, ReplayConfig
from ilora.methods.lwf import distillation
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.model.fitting import fitted
from ilora.model.observing import attention_observed, refuse_unseen_attention
from ilora.settings import Fraction, Linear, Log

Heads = list[list[int]]  # of each chosen layer its number among the adapted ones, then its heads


class SEEKRConfig(ReplayConfig):
    """Replay, and the two distillations."""

    search = ReplayConfig.search | {"strength": Log(1, 100), "logit_share": Linear(0.1, 0.9)}

    strength: float = Field(10.0, ge=0, description="γ, weight of the attention term")
    logit_share: Fraction = Field(0.5, description="α, the teacher's share in what the next tokens are held to")
    layer_budget: Fraction = Field(0.75, description="share of the adapted layers whose heads may be chosen")
    head_budget: Fraction = Field(0.125, description="share of all their heads that is chosen")


@METHODS("seekr")
class SEEKR(ExperienceReplay[SEEKRConfig]):
    """Replay with distillation of next tokens and of selected attention heads.

    A task ends: F says how far its rows in the memory look elsewhere now than before it, S how much their loss feels
    it; the best layers by the sum of I are chosen, and in them the best heads. The choice holds for that task's rows.
    Cost: replayed rows pass the model twice (teacher and student), without packing and with all attention weights
    kept; at a task's end two passes over its rows in the memory, one of them backward, too.
    Differs: the task's adapter is stored, not its attention weights (megabytes a row), and gives the same ones; all
    queries, as in the released scripts; KL instead of cross-entropy with the teacher, which has the same gradient;
    replayed rows share a step with the current ones, ½ + ½ as in `er`; γ is 10, not the released code's 1000, which
    is for whole weights and small steps (docs/methods.md).
    """

    title = "SEEKR"
    paper = "arXiv 2411.06171"
    stores = "memory_size examples, one adapter a task"

    def __init__(self, run: RunView, config: SEEKRConfig) -> None:
        super().__init__(run, config)
        refuse_unseen_attention(run.engine, method=config.name)
        self.importance: Tensor | None = None  # I: (adapted layers, heads)
        self.teachers: dict[str, str] = {}  # by task, the adapter that had just learnt it
        self.heads: dict[str, Heads] = {}  # by task

    def begin_task(self) -> None:
        """What was learnt before the run has a teacher, too."""
        if self.position.task_index == 1 and self.run.started:
            self._take_up(self.memory.tasks, number=0)

    def end_task(self) -> None:
        """Fill a balanced memory; keep the teacher, and choose its heads."""
        super().end_task()
        self._take_up(self.position.current_tasks, number=self.position.task_index)

    # -- which heads ----------------------------------------------------------------------------------------------

    def _take_up(self, tasks: Collection[str], *, number: int) -> None:
        model, name, last = self.engine.model, f"teacher-{number:04d}", f"teacher-{number - 1:04d}"
        rows = [row for row in self.memory.examples if row.task in tasks]
        if rows and self.config.strength:
            new = self.value(rows, before=last if last in adapters.names(model) else None)
            self.importance = new if self.importance is None else self.importance + new
        adapters.keep_copy(model, "fast", name)
        chosen = [] if self.importance is None else self.choose(self.importance)
        self.teachers |= dict.fromkeys(sorted(tasks), name)
        self.heads |= dict.fromkeys(sorted(tasks), chosen)

    def value(self, rows: Sequence[Example], *, before: str | None) -> Tensor:
        """F · S of each head, (adapted layers, heads). before: the adapter before the task; None: the base model."""
        total = fitted(self.engine, self.engine.mine(rows), partial(self._changes, rows, before), size=1)
        self.engine.all_reduce([total])
        change, slope = total / len(rows)
        value: Tensor = change * torch.nan_to_num(slope / slope.sum(1, keepdim=True))
        return value

    def _changes(self, rows: Sequence[Example], before: str | None) -> Tensor:
        """Σ of F and of S over the rows of this process, (2, adapted layers, heads)."""
        total = None
        for batch in self.engine.micro_batches(rows, size=1):  # squares of single rows' gradients
            with torch.no_grad(), adapters.active(self.engine.model, before):
                old, _ = self._attention(batch)
            new, logits = self._attention(batch)
            loss = token_losses(logits, batch.targets).sum() / batch.label_count
            found = torch.autograd.grad(loss, [part for part in new if part.requires_grad])
            self.engine.passes["backward"] += 1
            felt = iter(found)  # attention without a gradient cannot have changed
            slopes = [next(felt) if part.requires_grad else torch.zeros_like(part) for part in new]
            changes = [after.detach() - then for after, then in zip(new, old, strict=True)]
            both = torch.stack([torch.cat(part).square().mean((2, 3)) for part in (changes, slopes)])
            total = both if total is None else total + both
        if total is None:  # fewer rows than processes
            layers, heads = self._size()
            total = torch.zeros(2, layers, heads, device=self.engine.device)
        return total

    def choose(self, importance: Tensor) -> Heads:
        """The best heads in the best layers: `[layer, head, head, ...]` of each layer that has any."""
        layers, heads = importance.shape
        best = importance.sum(1).argsort(descending=True, stable=True)[: math.ceil(self.config.layer_budget * layers)]
        values = {(layer, head): float(importance[layer, head]) for layer in best.tolist() for head in range(heads)}
        count = math.ceil(self.config.head_budget * layers * heads)
        chosen = sorted(sorted(values, key=lambda place: (-values[place], place))[:count])
        return [[layer, *(head for of, head in chosen if of == layer)] for layer in sorted({of for of, _ in chosen})]

    def _attention(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The adapted layers' attention weights, each (rows, heads, length, length), and the answers' logits."""
        with attention_observed(self.engine) as maps:
            output = self.engine.forward(batch, dropout=False)
        return maps[-self.engine.adapted :], output.answer_logits

    def _size(self) -> tuple[int, int]:
        config: Any = self.engine.core.config
        return self.engine.adapted or config.num_hidden_layers, config.num_attention_heads

    # -- the loss -------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """Cross-entropy; of the replayed rows a share of it, and the two distillations."""
        config, places = self.config, batch.replayed_rows
        if not places or not (config.strength or config.logit_share):
            return super().loss(batch, totals)
        loss = torch.zeros((), device=batch.labels.device)
        current = [number for number in range(len(batch.examples)) if number not in set(places)]
        if current:
            loss = loss + super().loss(batch.part(current), totals)
        old = batch.part(places)
        with attention_observed(self.engine) as maps:
            output = self.engine.forward(old)
        tokens = attention = torch.zeros((), device=loss.device)
        for task in dict.fromkeys(example.task for example in old.examples):
            rows = [number for number, example in enumerate(old.examples) if example.task == task]
            part, chosen = old.part(rows), sent(rows, loss.device)
            mine, answers = output.answer_logits[chosen, 1 - part.keep :], part.targets != IGNORED
            if task not in self.teachers:  # in training still, or never learnt: the answers themselves teach
                tokens = tokens + token_losses(mine, part.targets).sum()
                continue
            with torch.no_grad(), adapters.active(self.engine.model, self.teachers[task]):
                theirs, logits = self._attention(part)
            tokens = tokens + distillation(mine[answers], logits[answers], temperature=1.0)
            length = part.input_ids.shape[1]
            ours = [layer[chosen, :, -length:, -length:] for layer in maps[-self.engine.adapted :]]
            attention = attention + attention_gap(ours, theirs, heads=self.heads[task], mask=part.attention_mask)
        tokens, attention = tokens / totals.replayed.labels, attention / totals.replayed.rows
        self.run.log("distillation", tokens)
        self.run.log("attention", attention)
        replayed = (1 - config.logit_share) * self.cross_entropy(output, old, totals)
        return loss + replayed + 0.5 * (config.logit_share * tokens + config.strength * attention)

    # -- what is kept ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """importance; teachers and heads, by task."""
        state: dict[str, Any] = {"teachers": self.teachers, "heads": self.heads}
        return state if self.importance is None else state | {"importance": self.importance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.importance = state.get("importance")
        self.teachers, self.heads = dict(state["teachers"]), dict(state["heads"])


def attention_gap(ours: Sequence[Tensor], theirs: Sequence[Tensor], *, heads: Heads, mask: Tensor) -> Tensor:
    """KL(theirs ‖ ours), a mean over the chosen layers, their chosen heads and real queries, summed over rows.

    ours, theirs: attention weights, (rows, heads, length, length) a layer; mask: (rows, length), 0 at padding.
    """
    total = torch.zeros((), device=mask.device)
    for layer, *chosen in heads:
        logs = ours[layer][:, chosen].clamp(min=1e-8).log()
        gap = functional.kl_div(logs, theirs[layer][:, chosen], reduction="none").sum(-1).mean(1)
        total = total + ((gap * mask).sum(1) / mask.sum(1)).sum()
    return total / max(len(heads), 1)
