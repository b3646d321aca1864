"""What I-LoRA and SuRe share: a fast adapter that learns, and a slow one that follows it by a moving average."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import TypeVar

from ilora.methods.er import ExperienceReplay, ReplayConfig
from ilora.model import adapters
from ilora.settings import Log, Scale


class FastSlowConfig(ReplayConfig):
    """Replay, and the moving average."""

    search = ReplayConfig.search | {"ema_half_life_share": Log(0.02, 2)}

    ema_decay: float | None = Field(None, ge=0, le=1, description="λ, the factor on the old slow weights")
    ema_half_life_steps: float | None = Field(None, gt=0, description="λ = ½^(1 / steps)")
    ema_half_life_share: float | None = Field(
        None, gt=0, description="half-life as a share of the task's steps; 0.25 if none of the three is given"
    )
    ema_warmup: bool = Field(False, description="λ_k = min(λ, 1 - 1/(k+1)) at the run's k-th step")
    next_task_from: Literal["fast", "slow"] = Field("fast", description="the adapter with which the next task begins")
    inference: Literal["slow", "fast"] = Field("slow", description="the adapter that answers; both are evaluated")

    @classmethod
    def to_search(cls, given: Collection[str]) -> dict[str, Scale]:
        """The half-life is not searched where the decay is given in another way."""
        other = {"ema_decay", "ema_half_life_steps"} & set(given)
        return super().to_search([*given, "ema_half_life_share"] if other else given)

    @model_validator(mode="before")
    @classmethod
    def _one_decay(cls, values: dict[str, Any]) -> dict[str, Any]:
        keys = ("ema_decay", "ema_half_life_steps", "ema_half_life_share")
        given = [key for key in keys if values.get(key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(keys)}, not {' and '.join(given)}")
        return values if given else {**values, "ema_half_life_share": 0.25}


FastSlowT = TypeVar("FastSlowT", bound=FastSlowConfig, default=FastSlowConfig)


class FastSlow(ExperienceReplay[FastSlowT]):
    """Replay; after every optimizer step slow <- λ · slow + (1 - λ) · fast, for A and B each on their own."""

    stores = "memory_size examples, one more adapter"

    @property
    def variants(self) -> list[str]:
        """Both adapters, the answering one first."""
        return ["slow", "fast"] if self.config.inference == "slow" else ["fast", "slow"]

    def begin_task(self) -> None:
        """The slow adapter starts as a copy of the fast one."""
        model = self.engine.model
        if "slow" not in adapters.names(model):
            adapters.keep_copy(model, "fast", "slow")
        elif self.config.next_task_from == "slow":
            adapters.copy(model, "slow", "fast")

    def after_step(self) -> None:
        """slow <- λ · slow + (1 - λ) · fast."""
        adapters.interpolate(self.engine.model, "slow", "fast", by=1.0 - self.decay())

    def decay(self) -> float:
        """λ at the present step (steps count from 1)."""
        config = self.config
        if config.ema_decay is not None:
            decay = config.ema_decay
        else:
            share = config.ema_half_life_share or 0.0  # `_one_decay` has seen to it that one of the three is there
            decay = 0.5 ** (1.0 / (config.ema_half_life_steps or share * self.position.task_steps))
        return float(min(decay, 1.0 - 1.0 / (self.position.step + 1)) if config.ema_warmup else decay)
