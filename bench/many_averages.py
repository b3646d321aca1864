"""One training, many moving averages of it: what λ does, for the price of one run.

With no consistency term the fast adapter does not depend on λ. docs/results.md has the command and a table.
"""

from __future__ import annotations

from pydantic import Field

from ilora.methods.er import ExperienceReplay, ReplayConfig
from ilora.model import adapters


class ManyAverages(ExperienceReplay):
    """Experience replay with a slow adapter for each of `decays`."""

    class Config(ReplayConfig):
        """The factors on the old slow weights."""

        decays: list[float] = Field([0.25, 0.8, 0.9, 0.955, 0.98, 0.99, 0.999], min_length=1)

    @property
    def slow(self) -> dict[str, float]:
        """Adapter name: its λ."""
        return {f"slow-{round(1000 * decay):03d}": decay for decay in self.config.decays}

    @property
    def variants(self) -> list[str]:
        """The trained adapter, then its averages."""
        return ["fast", *self.slow]

    def begin_task(self) -> None:
        """Every average starts as a copy."""
        if self.position.task_index == 1:
            for name in self.slow:
                adapters.keep_copy(self.engine.model, "fast", name)

    def after_step(self) -> None:
        """slow <- λ · slow + (1 - λ) · fast, for each λ."""
        for name, decay in self.slow.items():
            adapters.interpolate(self.engine.model, name, "fast", by=1.0 - decay)
