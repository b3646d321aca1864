"""The adapter added into the base model's weights: an ordinary model folder, made one tensor at a time.

The base's safetensors files are copied, and each changed weight is written over in the copy. So nothing but a single
layer is ever in memory, and everything that the adapter does not change stays bit for bit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import save_file
from torch import Tensor

from ilora.errors import InputError
from ilora.handover.shards import INDEX, SINGLE, Checkpoint, Shard
from ilora.handover.source import Source
from ilora.model.dtype import dtype_of
from ilora.model.identity import joined_sha256, tensor_sha256, weights_sha256
from ilora.model.load import load_model, resolve
from ilora.model.skeleton import Skeleton, open_skeleton
from ilora.settings import ModelConfig

_BESIDE = (  # what a model's folder holds beside its weights
    "config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "*.model", "*.tiktoken", "preprocessor_config.json", "processor_config.json", "*.py",
)  # fmt: skip
_FIRST, _HEAD = "model-base.safetensors", "model-head.safetensors"  # where a tied head gets weights of its own


def write_merged(source: Source, folder: Path) -> None:
    """Fill `folder` with the merged model: weights of the base's own types, config.json and tokenizer.

    Raises InputError where the base is quantized, is another one than the adapter was trained on, or has no
    safetensors files.
    """
    if source.config.model.quantization != "none":
        raise InputError(
            f"--as merged: the adapter was trained on weights in {source.config.model.quantization}; added to others "
            "it would be another model, and quantized ones cannot take it without a loss. Use --as peft"
        )
    place = base_folder(source.model)
    skeleton = open_skeleton(source.model, source.adapter)
    if getattr(skeleton.config, "quantization_config", None):
        raise InputError(
            f"--as merged: {place}: its weights are quantized, so nothing can be added to them; use --as peft"
        )
    weights = Checkpoint(place)
    _refuse_other_weights(source, skeleton, weights)
    _copy(weights, folder)
    for layer in skeleton.layers:
        stored = weights.name_of(f"{layer}.weight", skeleton.prefix)
        if layer == skeleton.tied_head:
            original = stored or weights.name_of(f"{skeleton.embedding}.weight", skeleton.prefix)
            head = skeleton.merged(layer, _read(weights, original, layer))
            _untie(folder, f"{layer}.weight", head, stored=stored, weights=weights)
        else:
            merged = skeleton.merged(layer, _read(weights, stored, layer))
            Shard(folder / weights.shard_of(str(stored)).path.name).overwrite(str(stored), merged)


def _copy(weights: Checkpoint, folder: Path) -> None:
    """All files of a model that a loader reads."""
    files = [*(shard.path for shard in weights.shards), *weights.folder.glob(INDEX)]
    for pattern in _BESIDE:
        files += weights.folder.glob(pattern)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _read(weights: Checkpoint, stored: str | None, layer: str) -> Tensor:
    if stored is None:
        raise InputError(f"{weights.folder}: its files have no weight for the layer {layer}; use --as peft")
    return weights.shard_of(stored).read(stored)


def base_folder(model: ModelConfig) -> Path:
    """The folder with the base model's files; those of a hub id are fetched where the cache lacks them."""
    place = resolve(model.name)
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(
            snapshot_download(
                place,
                revision=model.revision,
                allow_patterns=[*_BESIDE, "model*.safetensors", INDEX],
                ignore_patterns=["*/*"],
            )
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"model '{model.name}': {str(error).strip().splitlines()[0]}") from error


def _refuse_other_weights(source: Source, skeleton: Skeleton, weights: Checkpoint) -> None:
    """Raises InputError where these are not the weights that the adapter was trained on.

    The hash is that of the model as it was loaded. It is computed from the files, one tensor at a time. Where that is
    not the same (transformers changes names or types of some files as it loads them), the model itself decides.
    """
    expected = source.base.weights_sha256
    if _sha256(source.model, skeleton, weights) == expected:
        return
    model, _ = load_model(source.model, max_length=1, device=torch.device("cpu"))
    found = weights_sha256(model)
    if found != expected:
        raise InputError(
            f"model '{source.model.name}': its weights ({found[:12]}…) are not those that the adapter was trained on "
            f"({expected[:12]}…)"
        )


def _sha256(model: ModelConfig, skeleton: Skeleton, weights: Checkpoint) -> str | None:
    """The hash of the files' weights, in the type that the run computes with; None where they are not all there."""
    dtype, digests = dtype_of(model), {}
    for name in skeleton.parameters:
        stored = weights.name_of(name, skeleton.prefix)
        if stored is None:
            return None
        digests[name] = tensor_sha256(weights.shard_of(stored).read(stored).to(dtype))
    return joined_sha256(digests)


def _untie(folder: Path, name: str, head: Tensor, *, stored: str | None, weights: Checkpoint) -> None:
    """Give the output head weights of its own: the embeddings, which it shared them with, must stay as they are."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if stored is not None:
        Shard(folder / weights.shard_of(stored).path.name).overwrite(stored, head)
        return
    files = {shard.path.name: shard.names for shard in weights.shards}
    if SINGLE in files:  # a lone file of this name is taken for the whole model
        files[_FIRST] = files.pop(SINGLE)
        (folder / SINGLE).rename(folder / _FIRST)
    save_file({name: head}, folder / _HEAD, metadata={"format": "pt"})
    places = {tensor: file for file, names in files.items() for tensor in names} | {name: _HEAD}
    size = sum((folder / file).stat().st_size for file in {*files, _HEAD})
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
