"""The adapter as a GGUF file, for llama.cpp and what is built on it, in the form of its own convert_lora_to_gguf.py.

llama.cpp's Llama has the rows of the query and key weights in another order, since its rotary positions turn pairs of
neighbours where transformers turns the two halves of a head. Only B has these rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from ilora.errors import InputError
from ilora.handover.source import Source
from ilora.model.adapters import LowRank
from ilora.model.skeleton import Skeleton, open_skeleton

FILE = "adapter.gguf"

# transformers' type of model: llama.cpp's name of it, and whether it has the rows of queries and keys in its own order.
ARCHITECTURES = {
    "llama": (gguf.MODEL_ARCH.LLAMA, True),
    "mistral": (gguf.MODEL_ARCH.LLAMA, True),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, False),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, False),
}


def write_gguf(source: Source, folder: Path) -> None:
    """Write `folder/adapter.gguf`, in float32. Raises InputError for a base model or an adapter without such a form."""
    skeleton = open_skeleton(source.model, source.adapter)
    kind = skeleton.config.model_type
    if kind not in ARCHITECTURES:
        raise InputError(
            f"--as gguf: the base model's type is {kind}; known are {', '.join(ARCHITECTURES)}. Use --as merged, and "
            "llama.cpp's convert_hf_to_gguf.py"
        )
    if skeleton.settings.use_dora:
        raise InputError("--as gguf: llama.cpp has no DoRA. Use --as merged, and llama.cpp's convert_hf_to_gguf.py")
    architecture, reordered = ARCHITECTURES[kind]
    alpha = float(skeleton.settings.lora_alpha)
    writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[architecture])
    _describe(writer, source, alpha)
    names = gguf.get_tensor_name_map(architecture, skeleton.config.num_hidden_layers)
    for layer in skeleton.layers:
        name = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if name is None or layer == skeleton.tied_head:
            raise InputError(
                f"--as gguf: llama.cpp takes no adapter for the layer {layer} of this model"
                f"{' (it shares its weights with the embeddings)' if name else ''}. Use --as merged"
            )
        update = skeleton.update(layer)
        up = _scaled(update, alpha)
        if reordered and (heads := _heads(layer, skeleton)):
            up = reorder_rows(up, heads)
        writer.add_tensor(f"{name}.lora_a", _array(update.down))
        writer.add_tensor(f"{name}.lora_b", _array(up))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def reorder_rows(weight: Tensor, heads: int) -> Tensor:
    """The rows of each head, (a₀ … aₙ, b₀ … bₙ) as transformers has its halves, as pairs (a₀, b₀, … aₙ, bₙ)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def _heads(layer: str, skeleton: Skeleton) -> int | None:
    """How many heads share the layer's rows, if their order matters."""
    part = layer.rpartition(".")[2]
    wanted = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(part)
    return None if wanted is None else int(getattr(skeleton.config, wanted))


def _scaled(update: LowRank, alpha: float) -> Tensor:
    """B for a reader that scales every layer by alpha / rank, whatever the layer's own scale is (rsLoRA, patterns)."""
    theirs = alpha / len(update.down)
    return update.up if update.scale == theirs else update.up * (update.scale / theirs)


def _array(tensor: Tensor) -> Any:
    return np.ascontiguousarray(tensor.detach().float().numpy())


def _describe(writer: gguf.GGUFWriter, source: Source, alpha: float) -> None:
    """The entries that a reader of adapters asks for, and which base model it belongs to."""
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(str(source.results.get("name") or "adapter"))
    base = source.base
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base.name.rpartition("/")[2])
    if source.base_on_hub:
        writer.add_base_model_organization(0, base.name.rpartition("/")[0])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base.name}")
    writer.add_string("ilora.base_model.weights_sha256", base.weights_sha256)
