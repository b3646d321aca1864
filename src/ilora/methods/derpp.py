"""DER++, dark experience replay: Buzzega et al. 2020 (arXiv 2004.07211).

The memory keeps, beside each row, the logits that the model gave when the row was stored; replayed rows are held to
them:

    L = ½ CE(x) + ½ CE(x_m) + strength · mean (z(x_m) - z_m)²
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ilora.data.examples import Batch, Example, Totals, collate
from ilora.data.task import task_label
from ilora.methods.base import METHODS
from ilora.methods.er import ExperienceReplay, ReplayConfig
from ilora.methods.view import RunView
from ilora.model.fitting import fitted
from ilora.settings import Log, PositiveInt


class DERppConfig(ReplayConfig):
    """Replay, and the logit term."""

    search = ReplayConfig.search | {"strength": Log(0.01, 1)}

    strength: float = Field(0.1, ge=0, description="weight of the logit term")
    stored_logits: PositiveInt | None = Field(
        64, description="number of logits kept at each answer position, the largest ones; None: all"
    )


@METHODS("derpp")
class DERpp(ExperienceReplay[DERppConfig]):
    """Replay of rows and of their logits, stored once, when the reservoir takes the row.

    Differs: logits of the answer's positions, and of them the `stored_logits` largest (a whole vocabulary's would be
    megabytes a row); one draw of rows serves both terms; the two cross-entropies are weighted ½ and ½, as in `er`.
    """

    title = "DER++"
    paper = "arXiv 2004.07211"
    stores = "memory_size examples with logits"

    def __init__(self, run: RunView, config: DERppConfig) -> None:
        super().__init__(run, config)
        self.logits: dict[str, Tensor] = {}  # by row id: (answer tokens, kept), and which of the vocabulary they are
        self.entries: dict[str, Tensor] = {}

    def extend_batch(self, examples: list[Example]) -> list[Example]:
        """Replay as in `er`; rows new in the memory get their logits, by the weights before this step."""
        rows = super().extend_batch(examples)
        # A row that this step replays may just have lost its place to one that this step stores.
        self._keep_up([*self.memory.examples, *rows[len(examples) :]])
        return rows

    def end_task(self) -> None:
        """Rows that the balanced memory takes get their logits by the weights at the task's end."""
        super().end_task()
        self._keep_up(self.memory.examples)

    def _keep_up(self, examples: list[Example]) -> None:
        """Logits of these rows and of no others."""
        kept = {example.id: example for example in examples}
        new = [example for key, example in kept.items() if key not in self.logits]
        if new:
            fitted(self.engine, new, lambda: [self._store(rows) for rows in self.engine.split(new)])
        for table in (self.logits, self.entries):
            for gone in table.keys() - kept.keys():
                del table[gone]

    @torch.no_grad()
    def _store(self, rows: Sequence[Example]) -> None:
        # Every process computes all of them: they are few, and must be the same everywhere.
        batch = collate(rows, pad=self.engine.pad, device=self.engine.device)
        logits = self.engine.forward(batch, dropout=False).answer_logits.float()
        count = min(self.config.stored_logits or logits.shape[-1], logits.shape[-1])
        for example, row in zip(batch.examples, logits, strict=True):
            values, entries = row[-len(example.answer) :].topk(count)
            self.logits[example.id], self.entries[example.id] = values, entries.int()

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """Cross-entropy of all rows + strength · squared distance of the replayed rows' logits."""
        output = self.engine.forward(batch)
        loss = self.cross_entropy(output, batch, totals)
        if not totals.replayed.rows or not self.config.strength:
            return loss
        gap = torch.zeros((), device=loss.device)
        for example, row in zip(batch.examples, output.answer_logits, strict=True):
            if example.replayed:
                ours = row[-len(example.answer) :].gather(1, self.entries[example.id].long())
                gap = gap + (ours.float() - self.logits[example.id]).square().mean(1).sum()
        gap = gap / totals.replayed.labels
        self.run.log("logits", gap)
        return loss + self.config.strength * gap

    def state_dict(self) -> dict[str, Any]:
        """logits.<row id> and entries.<row id>."""
        return {f"logits.{key}": value for key, value in self.logits.items()} | {
            f"entries.{key}": value for key, value in self.entries.items()
        }

    @classmethod
    def without_task(cls, state: dict[str, Any], task: str) -> dict[str, Any]:
        """Without the logits of its rows."""
        start = f"{task_label(task)}/"
        return {name: value for name, value in state.items() if not name.partition(".")[2].startswith(start)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name, value in state.items():
            kind, _, key = name.partition(".")
            getattr(self, kind)[key] = value
