"""A base model without its weights, but with an adapter: layers can be merged one at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ilora.errors import InputError
from ilora.model.adapters import LowRank
from ilora.model.load import model_config
from ilora.settings import ModelConfig

_NAME = "default"


@dataclass(frozen=True)
class Skeleton:
    """What of model and adapter is known without the base's weights.

    config: the base's. settings: the adapter's LoraConfig.
    layers: PEFT's layers by module name in the base model, their base weights are zeros without memory.
    parameters: names of the base's weights; shared ones once.
    prefix: of the names of the base's inner weights, which some checkpoints leave out.
    embedding: name of the layer of input embeddings. tied_head: name of the output head that shares its weights.
    """

    config: Any
    settings: Any
    layers: dict[str, LoraLayer]
    parameters: list[str]
    prefix: str
    embedding: str
    tied_head: str | None

    def update(self, layer: str) -> LowRank:
        """The layer's low-rank update. A DoRA layer has a magnitude beside it."""
        found = self.layers[layer]
        return LowRank(found.lora_A[_NAME].weight, found.lora_B[_NAME].weight, float(found.scaling[_NAME]))

    @torch.no_grad()
    def merged(self, layer: str, weight: Tensor) -> Tensor:
        """The layer's weight with the adapter in it, of the type of `weight`; computed in float32, by PEFT.

        Raises InputError where weight and adapter do not fit together, or the sum is not finite.
        """
        found = self.layers[layer]
        base, empty = found.get_base_layer(), found.get_base_layer().weight
        if weight.shape != empty.shape:
            raise InputError(f"{layer}: its weight is {tuple(weight.shape)}, where {tuple(empty.shape)} is expected")
        base.weight = nn.Parameter(weight.float(), requires_grad=False)
        try:
            found.merge(safe_merge=True)
            merged: Tensor = base.weight.detach().to(weight.dtype)
            return merged
        except ValueError as error:
            raise InputError(f"{layer}: cannot be merged: {error}") from error
        finally:
            base.weight = empty
            found.merged_adapters.clear()


def open_skeleton(config: ModelConfig, adapter: Path) -> Skeleton:
    """Build the base model on no device, and read the adapter's folder into it.

    Raises InputError where it is no LoRA, or belongs to another base model.
    """
    settings = model_config(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = names[id(head)] if head is not None and head.weight is embedding.weight else None
    parameters = [name for name, _ in model.named_parameters()]
    _weightless(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are not there, and of a tied head, which we untie
            wrapped = PeftModel.from_pretrained(model, str(adapter), adapter_name=_NAME, torch_device="cpu")
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise InputError(f"{adapter}: does not fit its base model: {str(error).splitlines()[0]}") from error
    found = wrapped.peft_config[_NAME]
    if found.peft_type != "LORA":
        raise InputError(f"{adapter}: its peft_type is {found.peft_type.value}; only LORA can be merged or converted")
    layers = {names[id(m.get_base_layer())]: m for m in wrapped.modules() if isinstance(m, LoraLayer)}
    _refuse_other_layers(adapter, layers)
    return Skeleton(settings, found, layers, parameters, model.base_model_prefix, names[id(embedding)], tied)


def _refuse_other_layers(adapter: Path, layers: Iterable[str]) -> None:
    """Raises InputError where the adapter's file has no weights for a layer, or some for layers that are not there."""
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        stored = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in file.keys()}  # noqa: SIM118
    if odd := sorted(stored.symmetric_difference(layers)):
        raise InputError(f"{adapter}: it does not fit its base model: {odd[0]} is in one of them alone")


def _weightless(model: nn.Module) -> None:
    """Put a single zero in place of every weight, seen as one of the weight's shape: PEFT follows a weight's device."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                zero = nn.Parameter(torch.zeros(()).expand(weight.shape), requires_grad=False)
                module._parameters[name] = made.setdefault(id(weight), zero)
