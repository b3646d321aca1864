"""SuRe, surprise-driven prioritised replay: Hazard et al. 2025 (arXiv 2511.22367).

The memory keeps, of each task, the rows that surprise the model most; a slow adapter follows the fast one:

    surprise(z) = -1/T Σ_t log p(z_t | z_<t),      slow <- β · slow + (1 - β) · fast
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ilora.data.examples import Example
from ilora.kernels.losses import token_losses
from ilora.methods.base import METHODS
from ilora.methods.fast_slow import FastSlow, FastSlowConfig
from ilora.model.fitting import fitted


class SuReConfig(FastSlowConfig):
    """Replay and the moving average; which rows are kept."""

    memory_policy: Literal["surprise", "reservoir", "balanced"] = Field(  # type: ignore[assignment]  # one value more
        "surprise", description="surprise: of each task equally many rows, the least expected ones"
    )
    surprise_of: Literal["row", "answer"] = Field(
        "row", description="the mean is over the tokens of prompt and answer, or of the answer alone"
    )
    surprise_when: Literal["before", "after"] = Field(
        "before", description="the model that is surprised: as the task finds it, or as the task leaves it"
    )

    @model_validator(mode="after")
    def _is_ranked_in_time(self) -> SuReConfig:
        late = self.memory_policy == "surprise" and self.surprise_when == "after"
        if late and self.replay_from == "whole_memory":
            raise ValueError(
                "surprise_when after stores a task's rows at its end: replay_from whole_memory has none to draw"
            )
        return self


@METHODS("sure")
class SuRe(FastSlow[SuReConfig]):
    """Replay of the least expected rows, with a fast and a slow adapter; the nearest relative of I-LoRA.

    A task's rows are ranked once. Each task has an equal part of the memory, and the least surprising rows go when
    another task comes. Cost: one more forward pass over each task's training rows.
    Differs: as many replayed rows as current ones, ½ + ½, of earlier tasks (`replay_from`), as in `er`, so that the
    memory's rule is what is compared (the released code replays half a batch, of the whole memory); β by its
    half-life, as in `ilora` (`ema_decay` gives β itself, 0.99 in the released code).
    """

    title = "SuRe"
    paper = "arXiv 2511.22367"

    def remember(self, rows: Sequence[Example]) -> None:
        """By the memory's own rule."""
        if self.config.memory_policy == "surprise":
            self._keep_surprising(rows)
        else:
            super().remember(rows)

    def begin_task(self) -> None:
        """Keep what surprises the model before it learns the task."""
        super().begin_task()
        if self.config.memory_policy == "surprise" and self.config.surprise_when == "before":
            self._keep_surprising(self.rows)

    def end_task(self) -> None:
        """Keep what still surprises it after the task."""
        super().end_task()
        if self.config.memory_policy == "surprise" and self.config.surprise_when == "after":
            self._keep_surprising(self.rows)

    def _keep_surprising(self, rows: Sequence[Example]) -> None:
        if not self.memory.capacity:
            return
        # Rounded, so that how rows are dealt to micro-batches and processes does not decide between equal ones.
        ranks = [(-round(value, 4), row.id) for row, value in zip(rows, self.surprise(rows).tolist(), strict=True)]
        self.memory.keep_first([row for _, row in sorted(zip(ranks, rows, strict=True), key=lambda pair: pair[0])])

    @torch.no_grad()
    def surprise(self, rows: Sequence[Example]) -> Tensor:
        """Each row's mean negative log-likelihood by the fast adapter, (rows,): the same in every process."""
        asked, size = list(rows), None
        if self.config.surprise_of == "row":  # every token but the first is asked for; one row's logits at a time
            asked, size = [replace(row, prompt=row.prompt[:1], answer=row.prompt[1:] + row.answer) for row in rows], 1
        found = fitted(self.engine, self.engine.mine(asked), partial(self._means, asked, size), size=size)
        self.engine.all_reduce([found])
        return found

    def _means(self, asked: Sequence[Example], size: int | None) -> Tensor:
        """(rows,): of the rows of this process; 0 of the others."""
        place = {row.id: number for number, row in enumerate(asked)}
        found = torch.zeros(len(asked), device=self.engine.device)
        for batch in self.engine.micro_batches(asked, size=size):
            logits = self.engine.forward(batch, dropout=False).answer_logits
            losses = token_losses(logits, batch.targets, count=batch.label_count).sum(1)
            for example, loss in zip(batch.examples, losses, strict=True):
                found[place[example.id]] = loss / len(example.answer)
        return found
