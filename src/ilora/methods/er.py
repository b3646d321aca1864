"""Experience replay: Chaudhry et al., "On tiny episodic memories in continual learning" (arXiv 1902.10486).

Each step trains on the current rows and as many drawn from a reservoir of earlier ones, ½ + ½ of their mean losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import TypeVar

from ilora.data.examples import Example
from ilora.data.stored import some
from ilora.methods.base import METHODS, Method
from ilora.replay.memory import MOST
from ilora.settings import MethodConfig


class ReplayConfig(MethodConfig):
    """Settings of every method with a replay memory."""

    memory_size: int = Field(500, ge=0, description="rows in the memory, over the whole stream; 0: no replay")
    memory_policy: Literal["reservoir", "balanced"] = Field(
        "reservoir",
        description="balanced: chosen when a task ends, equally many rows of each task and of each answer in it",
    )
    replay_from: Literal["earlier_tasks", "whole_memory"] = Field(
        "earlier_tasks", description="whole_memory: also draw rows of the task in training"
    )

    @model_validator(mode="after")
    def _is_stored_in_time(self) -> ReplayConfig:
        if self.memory_policy == "balanced" and self.replay_from == "whole_memory":
            raise ValueError(
                "memory_policy balanced stores a task's rows at its end: replay_from whole_memory has none to draw"
            )
        return self


ReplayT = TypeVar("ReplayT", bound=ReplayConfig, default=ReplayConfig)


@METHODS("er")
class ExperienceReplay(Method[ReplayT]):
    """Replay with a reservoir memory, or a balanced one.

    The reservoir sees every training row once, in its task's first epoch, after the step's rows were drawn: a row is
    never replayed in the step that stores it. The balanced memory is filled when a task ends.
    """

    title = "ER"
    family = "replay"
    paper = "arXiv 1902.10486"
    stores = "memory_size examples"

    def remember(self, rows: Sequence[Example]) -> None:
        """By the memory's own rule."""
        if self.config.memory_policy == "balanced":
            self.memory.balance(rows)
        else:
            self.memory.offer(rows)

    def extend_batch(self, examples: list[Example]) -> list[Example]:
        """As many replayed rows as current ones, as far as the memory goes."""
        replayed = self.replayed(len(examples))
        if self.position.epoch == 0 and self.config.memory_policy == "reservoir":
            self.memory.offer(examples)
        return examples + replayed

    def replayed(self, count: int) -> list[Example]:
        """The rows that this step replays, at most `count`."""
        return self.memory.draw(count, key=f"{self.position.step}", without=self.not_replayed)

    @property
    def not_replayed(self) -> frozenset[str]:
        """Tasks whose rows are not drawn."""
        return self.position.current_tasks if self.config.replay_from == "earlier_tasks" else frozenset()

    def end_task(self) -> None:
        """Fill the balanced memory."""
        if self.config.memory_policy == "balanced":
            key = f"{self.position.seed}/part/{self.position.task}"
            self.memory.balance(some(self.rows, MOST, key=key))
