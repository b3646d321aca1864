"""What a method may want to know of the layers that carry an adapter: their inputs' directions, and their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor

from ilora.data.examples import Example
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.fitting import fitted
from ilora.model.observing import observed
from ilora.model.sharding import whole_of

A_OF, B_OF = "{}.lora_A.weight", "{}.lora_B.weight"  # an adapter's factors, by the layer's path


def layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The linear layers with an adapter, by path: `A_OF.format(path)` is a key of `adapters.parameters`."""
    known = adapters.parameters(model, "fast")
    return {path: layer for path, layer in adapters.adapted(model) if A_OF.format(path) in known}


@torch.no_grad()
def input_moments(engine: Engine, rows: Sequence[Example]) -> dict[str, Tensor]:
    """Σ x xᵀ over all real tokens x of the rows, of what each layer with an adapter is given; over all processes.

    By the layer's path, (inputs, inputs) in float32: of one layer with 4,096 inputs, 64 MiB. Computed with the active
    adapters and without dropout. The rows count as passed through the model.
    """
    found = layers(engine.model)
    moments = {path: torch.zeros(layer.in_features, layer.in_features) for path, layer in found.items()}
    moments = {path: moment.to(engine.device) for path, moment in moments.items()}

    def anew() -> None:
        for moment in moments.values():
            moment.zero_()
        for batch in engine.micro_batches(rows):
            with observed(engine, add):
                engine.states(batch, dropout=False)

    def add(path: str, x: Tensor, _: Tensor, counts: Tensor) -> None:
        if path in moments:
            tokens, times = x[counts > 0].float(), counts[counts > 0, None]
            moments[path].addmm_((tokens * times).T, tokens)

    fitted(engine, engine.mine(rows), anew)
    for moment in moments.values():  # one message each: all together would be held twice
        engine.all_reduce([moment])
    return moments


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


def scalings(model: PeftModel, names: Sequence[str]) -> tuple[float, ...]:
    """By what every layer multiplies the updates of these adapters."""
    found = [layer.scaling for _, layer in adapters.adapted(model)]
    return tuple(float(scaling[name]) for name in names for scaling in found if name in scaling)
