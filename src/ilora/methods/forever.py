"""FOREVER, replay by the intervals of a forgetting curve: Feng et al. 2026 (ACL, arXiv 2601.03938).

Time is what the weights have travelled. A day is how far they go in the task's first S steps; the memory is replayed
when the task is 1, 2, 4, 7, 15 and 30 days old, the firmer, the faster the weights move then:

    Δ_s = ‖θ_s - θ_{s-1}‖,    τ = Σ_s Δ_s,    day = Σ_{s ≤ S} Δ_s,    replay where τ ≥ d · day
    L = ½ CE(x) + ½ [CE(x_m) + β ‖θ - θ*‖²],    β = strength · clip(1 + γ (μ / μ_0 - 1), 0.5, 3)

θ* are the weights before the task, μ_0 is the mean of Δ over the first day, and μ <- (1 - λ) μ + λ Δ after it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ilora.data.examples import Example
from ilora.data.task import task_label
from ilora.methods.base import METHODS
from ilora.methods.er import ExperienceReplay, ReplayConfig
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.settings import Fraction, Log, PositiveInt

ANCHOR = "anchor"  # the adapter as the task found it
LEAST, MOST = 0.5, 3.0  # between which β may leave `strength`, as a factor
ALIKE = 1e-3  # of a day: rounding shall not put a review off by a step where all steps are of one length


class FOREVERConfig(ReplayConfig):
    """When the memory is replayed, and how firmly."""

    search = ReplayConfig.search | {"strength": Log(1e-4, 0.1)}

    days: tuple[float, ...] = Field((1, 2, 4, 7, 15, 30), description="the ages of a task at which memory is replayed")
    day_steps: PositiveInt | None = Field(
        None, description="S, the steps that make the first day; None: a fortieth of the task's"
    )
    replay_epochs: PositiveInt = Field(2, description="passes over the memory each time")
    strength: float = Field(1e-3, ge=0, description="β at the pace of the first day; 0: no anchor")
    intensity: float = Field(1.0, ge=0, description="γ, how much the pace of the weights changes β")
    smoothing: Fraction = Field(0.05, description="λ of the pace's moving average")

    @field_validator("days")
    @classmethod
    def _grow(cls, days: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in zip((0.0, *days), days, strict=False)):
            raise ValueError(f"must be positive and grow from one to the next, not {list(days)}")
        return days


@METHODS("forever")
class FOREVER(ExperienceReplay[FOREVERConfig]):
    """Replay at growing intervals of the weights' own time.

    Each review is `replay_epochs` passes over the earlier tasks' rows, in the steps that follow, as many rows in a step
    as there are current ones; what is still to come when the task ends is left out. One that falls due meanwhile is
    added; days that come in one step are one review. Cost: none but the replayed rows. Stored: one more adapter, θ*.
    Differs: replayed rows share a step with current ones, ½ + ½ as in `er` (the paper trains on memory between the
    steps of the task). S is a share of the task's steps, so that the last review falls into a task of any length (the
    paper: 24 steps; `day_steps`), and the clock starts once the learning rate is warmed up, since a day of the warm-up
    would be short. Only the abstract and two summaries of the paper could be read, not its text or code: from these are
    the equations, the days, S, λ, `strength` and the clip's ends; 2 passes are from notes on its protocol, and γ was
    found nowhere.
    """

    title = "FOREVER"
    paper = "arXiv 2601.03938"
    stores = "memory_size examples, one more adapter"

    def __init__(self, run: RunView, config: FOREVERConfig) -> None:
        super().__init__(run, config)
        self.reviews: dict[str, int] = {}  # by task, how many of the days have come
        self._restart()
        self._before: list[Tensor] = []  # the weights before this step
        self._replays = False  # this step

    def _restart(self) -> None:
        self.steps = 0  # since the clock has started
        self.time = self.day = self.pace = 0.0  # τ, the day, μ
        self.due: list[str] = []  # ids of the rows to replay, in their order

    @property
    def first_day(self) -> int:
        """S in this task."""
        return self.config.day_steps or max(1, self.position.task_steps // 40)

    def begin_task(self) -> None:
        """The clock starts anew, and these weights are the anchor."""
        self._restart()
        if self.has_past:
            adapters.keep_copy(self.engine.model, "fast", ANCHOR)

    def replayed(self, count: int) -> list[Example]:
        """The next rows of the reviews that are due, without those that the memory has given up meanwhile."""
        held = {row.id: row for row in self.memory.examples}
        waiting = [key for key in self.due if key in held]
        now, self.due = waiting[:count], waiting[count:]
        self._replays = bool(now)
        return [replace(held[key], replayed=True) for key in now]

    def beta(self) -> float:
        """β at this step."""
        change = self.pace * self.first_day / self.day if self.day else 1.0
        return self.config.strength * min(max(1.0 + self.config.intensity * (change - 1.0), LEAST), MOST)

    def penalty(self) -> Tensor | None:
        """The anchor, in the steps that replay."""
        if not (self._replays and self.has_past and self.config.strength):
            return None
        kept = adapters.parameters(self.engine.model, ANCHOR)
        mine = adapters.parameters(self.engine.model, "fast")
        gaps = [(weight - kept[key]).square().sum() for key, weight in mine.items()]
        return 0.5 * self.beta() * torch.stack(gaps).sum()

    def before_step(self) -> None:
        """Note where the weights are."""
        self._before = [weight.detach().clone() for weight in self.trainable]

    def after_step(self) -> None:
        """The clock goes on; a day that has come makes the memory due."""
        if self.position.task_step <= round(self.run.training.warmup_ratio * self.position.task_steps):
            return
        moves = [now.detach() - then for now, then in zip(self.trainable, self._before, strict=True)]
        self._before = []
        self._advance(float(torch.stack(torch._foreach_norm(moves)).norm()))
        task, reached = self.position.task, sum(self.time >= (day - ALIKE) * self.day for day in self.config.days)
        if self.day and reached > self.reviews.get(task, 0):
            self.reviews[task] = reached
            self.due += self._review()

    def _advance(self, moved: float) -> None:
        self.steps += 1
        self.time += moved
        if self.steps == self.first_day:
            self.day, self.pace = self.time, self.time / self.steps
        elif self.day:
            self.pace += self.config.smoothing * (moved - self.pace)

    def _review(self) -> list[str]:
        """The ids of the rows of all passes, each pass in an order of its own."""
        rows = [row.id for row in self.memory.examples if row.task not in self.not_replayed]
        passes = [f"{self.position.seed}/review/{self.position.step}/{n}" for n in range(self.config.replay_epochs)]
        return [key for number in passes for key in random.Random(number).sample(rows, len(rows))]

    def notes(self) -> dict[str, Any]:
        """By task, how many of the days came."""
        return {"reviews": dict(self.reviews)}

    def state_dict(self) -> dict[str, Any]:
        """The clock, the days that have come, and the rows that are due."""
        clock = {name: getattr(self, name) for name in ("steps", "time", "day", "pace")}
        return clock | {"reviews": dict(self.reviews), "due": list(self.due)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)

    @classmethod
    def without_task(cls, state: dict[str, Any], task: str) -> dict[str, Any]:
        """Without its rows among those that are due."""
        return state | {"due": [key for key in state["due"] if not key.startswith(f"{task_label(task)}/")]}
