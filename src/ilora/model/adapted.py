"""What a method may want to know of the layers that carry an adapter: their inputs' directions, and their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from ilora.data.examples import Example
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.sharding import whole_of

A_OF, B_OF = "{}.lora_A.weight", "{}.lora_B.weight"  # an adapter's factors, by the layer's path


def layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The linear layers with an adapter, by path: `A_OF.format(path)` is a key of `adapters.parameters`."""
    end = A_OF.format("")
    paths = [key.removesuffix(end) for key in adapters.parameters(model, "fast") if key.endswith(end)]
    return {path: model.get_submodule(path) for path in paths}


@torch.no_grad()
def input_moments(engine: Engine, rows: Sequence[Example]) -> dict[str, Tensor]:
    """Σ x xᵀ over all real tokens x of the rows, of what each layer with an adapter is given; over all processes.

    By the layer's path, (inputs, inputs) in float32: of one layer with 4,096 inputs, 64 MiB. Computed with the active
    adapters and without dropout. The rows count as passed through the model.
    """
    found = layers(engine.model)
    moments = {path: torch.zeros(layer.in_features, layer.in_features) for path, layer in found.items()}
    moments = {path: moment.to(engine.device) for path, moment in moments.items()}
    for batch in engine.micro_batches(rows):
        real = batch.attention_mask.bool()

        def add(path: str, inputs: Tensor, real: Tensor = real) -> None:
            tokens = inputs[real].float()
            moments[path].addmm_(tokens.T, tokens)

        with _watched(found, add), torch.compiler.set_stance("force_eager"):
            engine.states(batch, dropout=False, packed=False)
    for moment in moments.values():  # one message each: all together would be held twice
        engine.all_reduce([moment])
    return moments


@contextmanager
def _watched(found: dict[str, LoraLayer], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside the block, `see` is shown every input of these layers."""

    def show(path: str, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        see(path, inputs[0])

    with ExitStack() as held:
        for path, layer in found.items():
            held.callback(layer.register_forward_pre_hook(partial(show, path)).remove)
        yield


@torch.no_grad()
def weights(model: PeftModel, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Each of these layers' path and weight, (outputs, inputs) in float32, with the adapters of these names added.

    Where the base lies in parts, all processes must go through all of them, after `engine.rejoin`.
    """
    for path, layer in layers(model).items():
        whole = whole_of(dequantize_module_weight(layer.get_base_layer()).detach()).float()
        for name in names:
            whole = whole + layer.get_delta_weight(name).float()
        yield path, whole.T if layer.fan_in_fan_out else whole
