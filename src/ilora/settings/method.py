"""Settings of every method."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from ilora.section import Section

DEFAULT_METHOD = "ilora"


class MethodConfig(Section):
    """Settings that every method has; a method adds its own in a subclass."""

    name: str
    learning_rate: float | None = Field(None, gt=0, lt=1e30, description="instead of training.learning_rate")

    @property
    def memory_capacity(self) -> int:
        """How many rows the replay memory holds: the setting `memory_size`, or 0 for a method without one."""
        return int(getattr(self, "memory_size", 0))

    def for_a_new_run(self) -> Self:
        """The settings as a run that begins now has them: a default that an older run must not get is put in here."""
        return self

    def prompt_tokens(self, tasks: int) -> int:
        """How many vectors the method puts before a row, at most, in a stream of `tasks` tasks."""
        del tasks
        return 0
