"""What the prompt methods share: vectors before the input of a frozen model, instead of an adapter inside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypeVar

from ilora.methods.base import Method
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.settings import MethodConfig


class PromptConfig(MethodConfig):
    """Prompt vectors have the size of embeddings, and move far less than LoRA factors at the same learning rate."""

    learning_rate: float | None = Field(0.03, gt=0, lt=1e30, description="instead of training.learning_rate")


PromptT = TypeVar("PromptT", bound=PromptConfig, default=PromptConfig)


class PromptMethod(Method[PromptT]):
    """Trains prompt vectors only: the LoRA adapter that every run has stays untouched and switched off."""

    without = ("start_from",)  # it trains no LoRA adapter

    family = "isolation"

    def __init__(self, run: RunView, config: PromptT) -> None:
        super().__init__(run, config)
        adapters.activate(self.engine.model, None)

    def word_vectors(self, count: int, *key: object) -> Tensor:
        """The embeddings of `count` random tokens, (count, features), float32: where prompts begin."""
        source = torch.Generator().manual_seed(self.position.key("prompt", *key))
        return self.engine.word_vectors(count, source)

    def stored(self) -> dict[str, int]:
        """The prompts alone: neither the untouched adapter nor what only trains them."""
        return {"prompts": super().stored().get("prompts", 0)}

    def parameter(self, value: Tensor) -> nn.Parameter:
        """A trainable tensor on the model's device."""
        return nn.Parameter(value.to(self.engine.device))


@torch.no_grad()
def fill(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Overwrite in place: the optimizer knows parameters by identity."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
