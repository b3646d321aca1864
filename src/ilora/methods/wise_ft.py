"""WiSE-FT: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), along a stream.

When a task ends, the answering weights move from the previous minimum towards the new one, by t on the straight path:

    merged <- (1 - t) · merged + t · fast,      for A and B each on their own
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ilora.methods.base import METHODS, Method
from ilora.model import adapters
from ilora.settings import Fraction, Linear, MethodConfig


class WiseFTConfig(MethodConfig):
    """The interpolation."""

    search = MethodConfig.search | {"t": Linear(0.1, 0.9)}

    t: Fraction = Field(0.5, description="0: the previous minimum, 1: the new one (sequential fine-tuning)")
    next_task_from: Literal["merged", "fast"] = Field(
        "merged", description="the adapter with which the next task begins"
    )


@METHODS("wise_ft")
class WiseFT(Method[WiseFTConfig]):
    """Sequential fine-tuning with interpolation after each task; the first task's minimum is taken as it is.

    Differs: the paper interpolates whole weights between the zero-shot and one fine-tuned model; here it is LoRA
    factors, between successive minima (`path: factors` in the vocabulary of mode connectivity, not their product).
    """

    title = "WiSE-FT"
    family = "merging"
    paper = "arXiv 2109.01903"
    stores = "one more adapter"

    @property
    def variants(self) -> list[str]:
        """The interpolated adapter answers; the newest minimum is evaluated beside it."""
        return ["merged", "fast"]

    def begin_task(self) -> None:
        """From the interpolated weights, unless told otherwise."""
        if self.run.started and self.position.task_index == 1:
            adapters.keep_copy(self.engine.model, "fast", "merged")
        elif self.position.task_index > 1 and self.config.next_task_from == "merged":
            adapters.copy(self.engine.model, "merged", "fast")

    def end_task(self) -> None:
        """merged <- (1 - t) · merged + t · fast."""
        model = self.engine.model
        if not self.has_past:
            adapters.keep_copy(model, "fast", "merged")
        else:
            adapters.interpolate(model, "merged", "fast", by=self.config.t)
