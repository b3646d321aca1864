"""What goes into a forward pass of the engine, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from ilora.data.examples import sent
from ilora.kernels.attention import GROUPED, flash_serves
from ilora.kernels.packing import Packing, Spread, fill
from ilora.model import adapters


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


def pack(inputs: Inputs, core: nn.Module, *, pad: int, noisy: bool, filled: bool) -> Packing | None:
    """Change the inputs into one long row, in place; None: left alone, since that is no gain or not possible.

    core: the causal language model. pad: the token that fills. noisy: rows differ even where their tokens are the same.
    filled: with rows and columns of filling, so that few shapes occur.
    """
    arguments = inputs.arguments
    ours = core.config._attn_implementation == GROUPED  # type: ignore[union-attr]
    if not ours or "adapter_names" in arguments:
        return None
    weights = core.get_input_embeddings().weight  # type: ignore[operator]
    flash = flash_serves(weights.device, weights.dtype)
    mask, shown = inputs.mask, (inputs.mask.shape[0], inputs.mask.shape[1])
    if filled:
        mask = fill(mask)
        _fill(arguments, mask, pad)
    # Flash attention takes whole rows.
    shared = inputs.names is not None and not (noisy or flash or filled)
    packing = Packing.of(mask, inputs.names if shared else None, shown=shown)
    if not packing.saves and not filled and not flash:
        return None
    packing = packing.with_tensors(lambda tensor: sent(tensor, weights.device))
    for name in ("input_ids", "inputs_embeds", "position_ids"):
        if name in arguments:
            arguments[name] = packing.pack(arguments[name])
    needed = (
        torch.zeros(1, 1, 1, 1, dtype=weights.dtype, device=weights.device)
        if flash
        else packing.attention_mask(weights.dtype)
    )
    arguments |= {"attention_mask": needed, "packing": packing}
    return packing


def _fill(arguments: dict[str, Any], mask: Tensor, pad: int) -> None:
    """Bring the inputs into the shape of the mask: rows of filling below, columns on the left."""
    for name, value in (("input_ids", pad), ("inputs_embeds", 0.0), ("position_ids", 0)):
        if name in arguments:
            rows, columns = (want - there for want, there in zip(mask.shape, arguments[name].shape, strict=False))
            behind = (0, 0) * (arguments[name].dim() - 2)
            arguments[name] = nn.functional.pad(arguments[name], (*behind, columns, 0, 0, rows), value=value)


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


@contextmanager
def outputs_of(decoder: nn.Module | None) -> Iterator[list[Tensor]]:
    """What the decoder puts out while it makes logits. To ask for `output_hidden_states` would keep every layer's."""
    seen: list[Tensor] = []
    if decoder is None:
        yield seen
        return
    handle = decoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    try:
        yield seen
    finally:
        handle.remove()


def rows_of(layers: Sequence[Tensor], packing: Packing | None, prefix: int) -> tuple[Tensor, ...]:
    """Each layer's output as (rows, length, features), without the columns of the soft prompt."""
    return tuple((packing.spread(layer) if packing else layer)[:, prefix:] for layer in layers)


class Seated(Protocol):
    """What stands between a run and its device where it meets other runs."""

    def backward(self, compute: Callable[[], Tensor]) -> Tensor:
        """As `model.gradients.backward`."""

    def gradients(self, compute: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        """As `model.gradients.gradients`."""

    def read(self, figures: Tensor) -> list[float]:
        """As `model.gradients.read`."""


class Modes:
    """Switches a model between training and inference within a step."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self._listed: tuple[tuple[str, ...], list[dict[str, Any]]] | None = None

    @contextmanager
    def training(self, wanted: bool) -> Iterator[None]:
        """Inside the block the model is as it is, or as at inference where training is not wanted."""
        if wanted or not self.model.training:
            yield
            return
        # `eval()` and `train()` walk over thousands of modules, twice a step: on a GPU longer than the step itself.
        modules = [module for module in self._modules() if module["training"]]
        for module in modules:
            module["training"] = False
        try:
            yield
        finally:
            for module in modules:
                module["training"] = True

    def _modules(self) -> list[dict[str, Any]]:
        """The attributes of every module of the model; new adapters bring new ones."""
        names = tuple(adapters.names(self.model))
        if self._listed is None or self._listed[0] != names:
            self._listed = names, [vars(module) for module in self.model.modules()]
        return self._listed[1]
