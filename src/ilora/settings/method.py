"""Settings of every method."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Self

from pydantic import Field

from ilora.section import Section
from ilora.settings.search import Around, Scale

DEFAULT_METHOD = "ilora"


class MethodConfig(Section):
    """Settings that every method has; a method adds its own in a subclass."""

    # Where `ilora tune` looks; a method adds its strengths. What decides a budget, such as memory_size, is not tuned.
    search: ClassVar[dict[str, Scale]] = {"learning_rate": Around(10)}

    name: str
    learning_rate: float | None = Field(None, gt=0, lt=1e30, description="instead of training.learning_rate")

    @property
    def memory_capacity(self) -> int:
        """How many rows the replay memory holds: the setting `memory_size`, or 0 for a method without one."""
        return int(getattr(self, "memory_size", 0))

    @classmethod
    def to_search(cls, given: Collection[str]) -> dict[str, Scale]:
        """The scales of the settings that are not given."""
        return {key: scale for key, scale in cls.search.items() if key not in given}

    def for_a_new_run(self) -> Self:
        """The settings as a run that begins now has them: a default that an older run must not get is put in here."""
        return self

    def prompt_tokens(self, tasks: int) -> int:
        """How many vectors the method puts before a row, at most, in a stream of `tasks` tasks."""
        del tasks
        return 0
