"""What goes into a forward pass of the engine, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ilora.kernels.packing import Packing, Spread


@dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    logits: (rows, keep, vocabulary), of the batch's trailing columns.
    hidden: the layers that were asked for, each (rows, length, features).
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()

    @property
    def answer_logits(self) -> Tensor:
        """(rows, keep - 1, vocabulary): the prediction of each of `batch.targets`."""
        return self.logits[:, :-1]


@dataclass
class Inputs:
    """What the model is called with.

    mask: (rows, columns), as the model's attention mask, but on the CPU.
    soft: columns of soft prompt before the rows. names: (rows, columns), the same where columns are the same; None:
    rows have soft prompts of their own. upper: the embeddings are states from below the adapted layers.
    """

    arguments: dict[str, Any]
    mask: Tensor
    soft: int
    names: Tensor | None
    upper: bool


@dataclass
class ReadPrompts:
    """Prompts that the model has read once, for several answers.

    inputs: as they were read, padded. logits: of the first answer token, (rows, 1, vocabulary).
    cache: the prompts' keys and values; None where the model returns none.
    """

    inputs: Inputs
    logits: Tensor
    cache: Any

    @contextmanager
    def cache_for(self, tokens: int) -> Iterator[Any]:
        """A cache to read so many tokens into; after the block, the prompts' cache is as it was before."""
        layers = self.cache.layers
        if not all(type(layer) is DynamicLayer for layer in layers):
            yield deepcopy(self.cache)  # a sliding window or a recurrent state cannot go back
            return
        yield self.cache
        for layer in layers:
            if layer.is_initialized:  # those below `keep_below` are never filled
                layer.crop(-tokens)


def attention_cache(output: Any) -> Any:
    """The keys and values that a pass has left; None for a purely recurrent model, whose state is no such thing."""
    cache = getattr(output, "past_key_values", None)
    there = cache is not None and any(isinstance(layer, DynamicLayer) for layer in getattr(cache, "layers", ()))
    return cache if there else None


def spread_cache(cache: Any, packing: Packing) -> None:
    """Keys and values of one long row to those of its rows, in place."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys = Spread.apply(layer.keys, packing)  # type: ignore[no-untyped-call]
            layer.values = Spread.apply(layer.values, packing)  # type: ignore[no-untyped-call]


def rows_of(layers: Sequence[Tensor], packing: Packing | None, prefix: int) -> tuple[Tensor, ...]:
    """Each layer's output as (rows, length, features), without the columns of the soft prompt."""
    return tuple((packing.spread(layer) if packing else layer)[:, prefix:] for layer in layers)
