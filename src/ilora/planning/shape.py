"""The sizes of a model and its adapter, from its configuration alone: built on no device, without a weight."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM

from ilora.errors import InputError
from ilora.model import adapters
from ilora.model.load import model_config
from ilora.model.names import local_folder
from ilora.settings import AdapterConfig, ModelConfig

_BYTES = {"bfloat16": 2, "float32": 4}
_FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)  # NF4 with double quantization: a byte for 64 weights, 4 for 256 of those
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Shape:
    """Numbers of parameters, exact; bytes of the base as it lies in memory.

    parameters: of the base, shared ones once. active: of those, what a token passes through (of experts the chosen
        ones; the input embedding aside). trained: of one adapter.
    bytes: of the base. layers: bytes of each decoder layer.
    matrices: active parameters of each layer's matrices; norms: values that each layer's norms read for a token.
    inputs: values of each layer that its adapters read for a token. first: the first layer with an adapter; below it
        there is no backward pass.
    hidden, vocabulary, heads: widths (heads: of all query heads together). element: bytes of a value.
    stored: bytes of the weights in safetensors files, where they lie on this machine.
    """

    parameters: int
    active: int
    trained: int
    bytes: int
    layers: tuple[int, ...]
    matrices: tuple[int, ...]
    norms: tuple[int, ...]
    inputs: tuple[int, ...]
    first: int
    hidden: int
    vocabulary: int
    heads: int
    element: int
    stored: int | None

    @property
    def root(self) -> int:
        """Bytes outside the layers: embedding, last norm, output head."""
        return self.bytes - sum(self.layers)


def read_shape(model: ModelConfig, adapter: AdapterConfig) -> Shape:
    """The sizes of a configured model and adapter. Raises InputError where there is no such model, or none of text."""
    settings = model_config(model)
    try:
        with torch.device("meta"):
            base: Any = AutoModelForCausalLM.from_config(
                settings, dtype=getattr(torch, model.dtype), trust_remote_code=model.trust_remote_code
            )
    except (ValueError, TypeError) as error:
        raise InputError(f"model '{model.name}': {str(error).strip().splitlines()[0]}") from error
    base.requires_grad_(False)
    layers, text = _layers(base), base.config.get_text_config()
    active = {id(weight): _active(weight, text) for weight in base.parameters()}
    sizes = {id(weight): _bytes(weight, model) for weight in base.parameters()}
    embedding, head = base.get_input_embeddings().weight, base.get_output_embeddings()
    for weight in () if head is None else (embedding, head.weight):  # bitsandbytes leaves these as they are
        sizes[id(weight)] = weight.numel() * _BYTES[model.dtype]
    counts = {id(weight): weight.numel() for weight in base.parameters()}
    tied = head is None or head.weight is embedding
    found = Shape(
        parameters=sum(counts.values()),
        active=sum(active.values()) - (0 if tied else embedding.numel()),
        trained=0,
        bytes=sum(sizes.values()),
        layers=tuple(sum(sizes[id(weight)] for weight in layer.parameters()) for layer in layers),
        matrices=tuple(sum(active[id(w)] for w in layer.parameters() if w.ndim > 1) for layer in layers),
        norms=tuple(sum(w.numel() for w in layer.parameters() if w.shape == (text.hidden_size,)) for layer in layers),
        inputs=(),
        first=0,
        hidden=text.hidden_size,
        vocabulary=embedding.shape[0],
        heads=text.num_attention_heads * _head_size(text),
        element=_BYTES[model.dtype],
        stored=_stored(model.name),
    )
    return _with_adapter(found, base, layers, adapter)


def _with_adapter(found: Shape, base: nn.Module, layers: list[nn.Module], config: AdapterConfig) -> Shape:
    """The adapter is put into the base, whose layers these are."""
    wrapped = adapters.attach(base, config, name="fast", seed=0)
    trained = adapters.parameters(wrapped, "fast").values()
    inputs = tuple(map(_adapter_inputs, layers))
    first = next((number for number, values in enumerate(inputs) if values), len(layers))
    return replace(found, trained=sum(weight.numel() for weight in trained), inputs=inputs, first=first)


def _adapter_inputs(layer: nn.Module) -> int:
    """Values of a token that the adapters of a layer read; those of one part and of one width read the same."""
    parts = {
        (name.rpartition(".")[0], module.in_features)
        for name, module in layer.named_modules()
        if isinstance(module, LoraLayer)
    }
    return sum(width for _, width in parts)


def _layers(base: Any) -> list[nn.Module]:
    """The decoder's layers: its longest list of modules."""
    lists = [list(module) for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _active(weight: nn.Parameter, config: Any) -> int:
    """How many of a weight's values a token passes through: of experts, those that are chosen."""
    count = next((found for name in _EXPERTS if (found := getattr(config, name, None))), None)
    if weight.ndim == 3 and count == weight.shape[0]:
        return weight.numel() // int(count) * int(config.num_experts_per_tok)
    return weight.numel()


def _bytes(weight: nn.Parameter, model: ModelConfig) -> int:
    """Bytes in memory. Quantized are matrices: bitsandbytes knows no experts in one piece."""
    if weight.ndim == 2 and model.quantization == "4bit":
        return round(weight.numel() * _FOUR_BITS)
    if weight.ndim == 2 and model.quantization == "8bit":
        return weight.numel() + 4 * weight.shape[0]
    return weight.numel() * _BYTES[model.dtype]


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _stored(name: str) -> int | None:
    """Bytes of the tensors in a local folder's safetensors files, by their headers."""
    folder = local_folder(name)
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    return sum(map(tensor_bytes, files)) if files else None


def tensor_bytes(file: Path) -> int:
    """Bytes of all tensors of a safetensors file, of which only the header is read. Raises InputError."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        return sum(
            entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items() if name[0] != "_"
        )
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise InputError(f"{file}: not a safetensors file: {error}") from error
