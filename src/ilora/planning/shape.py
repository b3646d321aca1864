"""The sizes of a model and its adapter, from its configuration alone: built on no device, without a weight."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ilora.errors import InputError
from ilora.model import adapters
from ilora.model.dtype import dtype_of
from ilora.model.load import model_config
from ilora.model.names import local_folder
from ilora.model.sizes import Sizes, active_values, decoder_layers, sizes_of
from ilora.settings import AdapterConfig, ModelConfig

_BYTES = {"bfloat16": 2, "float32": 4}
_FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)  # NF4 with double quantization: a byte for 64 weights, 4 for 256 of those


@dataclass(frozen=True)
class Shape:
    """Numbers of parameters, exact; bytes of the base as it lies in memory.

    parameters: of the base, shared ones once. active: of those, what a token passes through (of experts the chosen
        ones; the input embedding aside). trained: of one adapter.
    bytes: of the base. layers: bytes of each decoder layer.
    sizes: what decides how much a pass keeps, by layer.
    stored: bytes of the weights in safetensors files, where they lie on this machine.
    """

    parameters: int
    active: int
    trained: int
    bytes: int
    layers: tuple[int, ...]
    sizes: Sizes
    stored: int | None

    @property
    def root(self) -> int:
        """Bytes outside the layers: embedding, last norm, output head."""
        return self.bytes - sum(self.layers)


def read_shape(model: ModelConfig, adapter: AdapterConfig) -> Shape:
    """The sizes of a configured model and adapter, where the device computes in bfloat16 (`model.dtype: auto`).

    Raises InputError where there is no such model, or none of text.
    """
    model = model if model.dtype != "auto" else model.model_copy(update={"dtype": "bfloat16"})
    settings = model_config(model)
    try:
        with torch.device("meta"):
            base: Any = AutoModelForCausalLM.from_config(
                settings, dtype=dtype_of(model), trust_remote_code=model.trust_remote_code
            )
    except (ValueError, TypeError) as error:
        raise InputError(f"model '{model.name}': {str(error).strip().splitlines()[0]}") from error
    base.requires_grad_(False)
    layers, text = decoder_layers(base), base.config.get_text_config()
    active = {id(weight): active_values(weight, text) for weight in base.parameters()}
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
        sizes=sizes_of(base, element=_BYTES[model.dtype], dropout=False),
        stored=_stored(model.name),
    )
    return _with_adapter(found, base, adapter, _BYTES[model.dtype])


def _with_adapter(found: Shape, base: nn.Module, config: AdapterConfig, element: int) -> Shape:
    """The adapter is put into the base."""
    wrapped = adapters.attach(base, config, name="fast", seed=0)
    trained = adapters.parameters(wrapped, "fast").values()
    sizes = sizes_of(base, element=element, dropout=config.dropout > 0)
    return replace(found, trained=sum(weight.numel() for weight in trained), sizes=sizes)


def _bytes(weight: nn.Parameter, model: ModelConfig) -> int:
    """Bytes in memory. Quantized are matrices: bitsandbytes knows no experts in one piece."""
    if weight.ndim == 2 and model.quantization == "4bit":
        return round(weight.numel() * _FOUR_BITS)
    if weight.ndim == 2 and model.quantization == "8bit":
        return weight.numel() + 4 * weight.shape[0]
    return weight.numel() * _BYTES[model.dtype]


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
