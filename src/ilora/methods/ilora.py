"""I-LoRA: "Analyzing and Reducing Catastrophic Forgetting in Parameter Efficient Tuning" (arXiv 2402.18865).

A fast adapter learns; a slow one follows it by interpolation after every optimizer step; on replayed rows the fast
adapter's hidden states are held near the slow one's:

    L = CE(x ∪ x_m) + γ · MSE(h(x_m; fast), stop_grad h(x_m; slow)),      slow <- λ · slow + (1 - λ) · fast
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypeVar

from ilora.data.examples import Batch, Count, Totals, sent
from ilora.methods.base import METHODS
from ilora.methods.fast_slow import FastSlow, FastSlowConfig
from ilora.model import adapters
from ilora.settings import Log


class ILoRAConfig(FastSlowConfig):
    """Replay, interpolation and consistency."""

    search = FastSlowConfig.search | {"strength": Log(0.1, 10)}

    strength: float = Field(1.0, ge=0, description="γ, the weight of the consistency term")
    consistency_layers: Literal["last", "all"] = Field("last", description="all: the mean over every layer's output")
    consistency_form: Literal["mse", "one_sided"] = Field("mse", description="one_sided: mean(relu(slow - fast)²)")
    replayed_loss: bool = Field(True, description="false: replayed rows enter the consistency term only")


ILoRAT = TypeVar("ILoRAT", bound=ILoRAConfig, default=ILoRAConfig)


@METHODS("ilora")
class ILoRA(FastSlow[ILoRAT]):
    """Dual-memory replay with an exponential moving average of the adapter.

    Ablations are settings: no replay `memory_size: 0`, no gap `strength: 0`, no cross-entropy of replayed rows
    `replayed_loss: false`; a slow adapter that stands still `ema_decay: 1`, or is the fast one `ema_decay: 0`.
    Differs from the paper's text where that is silent: the slow pass runs without dropout, so that its target is a
    function of the slow weights alone.
    """

    title = "I-LoRA"
    family = "replay"
    paper = "arXiv 2402.18865"

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """Cross-entropy of all rows + γ · gap of the replayed rows."""
        weighed = totals if self.config.replayed_loss else replace(totals, replayed=Count(0, 0, 0))
        rows = batch.replayed_rows
        if self.config.strength == 0 or not rows:
            return super().loss(batch, weighed)
        layers, old = self.config.consistency_layers, batch.part(rows)
        # The slow pass comes first: what it needs is gone before anything is kept for the backward pass.
        with torch.no_grad(), adapters.active(self.engine.model, "slow"):
            target = self.engine.states(old, layers=layers, dropout=False)
        output = self.engine.forward(batch, hidden=layers)
        loss = self.cross_entropy(output, batch, weighed)
        places = sent(rows, old.labels.device)
        gap = hidden_gap(
            [state[places, -old.input_ids.shape[1] :] for state in output.hidden],
            target,
            mask=old.attention_mask,
            tokens=totals.replayed.tokens,
            one_sided=self.config.consistency_form == "one_sided",
        )
        self.run.log("consistency", gap)
        return loss + self.config.strength * gap


def hidden_gap(
    fast: list[Tensor], slow: tuple[Tensor, ...], *, mask: Tensor, tokens: int, one_sided: bool = False
) -> Tensor:
    """Mean squared difference over real tokens, features and layers.

    fast, slow: one (rows, length, features) per layer; mask: (rows, length), 0 at padding; tokens: real tokens of the
    whole step, so that the shares of micro-batches add up to the mean.
    """
    total = torch.zeros((), device=mask.device)
    for ours, target in zip(fast, slow, strict=True):
        difference = target.float() - ours.float()
        if one_sided:
            difference = difference.relu()
        total = total + (difference.square().mean(-1) * mask).sum()
    return total / (tokens * len(fast))
