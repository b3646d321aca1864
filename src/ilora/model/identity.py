"""Which base model an adapter belongs to: its name, revision and a hash of its weights; a hash of a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.model.names import ALIASES, absolute
from ilora.model.sharding import sharding_of
from ilora.settings import ModelConfig

FILE = "base_model.json"  # beside adapter_config.json, which has no place for a hash


@dataclass(frozen=True)
class BaseModel:
    """A base model.

    name: a hub id, or the absolute path of a folder; never a place in a cache.
    revision: the commit of a model on the hub, where it is known.
    alias: the short name that it was loaded by. An alias may stand for a copy of the hub's model with other weights.
    weights_sha256: of the frozen weights as they are computed with (dtype and quantization included).
    """

    name: str
    revision: str | None
    alias: str | None
    weights_sha256: str

    @staticmethod
    def of(model: nn.Module, config: ModelConfig) -> BaseModel:
        """Identify a loaded model, before it has an adapter."""
        alias = config.name if config.name in ALIASES else None
        name = ALIASES[alias].hub_id if alias else absolute(config.name)
        found = getattr(model.config, "_commit_hash", None)  # what transformers notes of a model from the hub
        revision = config.revision or (found if isinstance(found, str) else None)
        return BaseModel(name, revision, alias, weights_sha256(model))

    @staticmethod
    def read(folder: Path) -> BaseModel:
        """From an adapter's folder. Raises InputError where it has none, or one that is damaged."""
        file = folder / FILE
        try:
            return BaseModel(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise InputError(
                f"{folder}: no {FILE} in it, which says to which base model the adapter belongs; an older version of "
                f"ilora made it, or another program. Copy the {FILE} of an adapter that this version trained on "
                "the same base model (adapters/<phase>/<variant>/ of any such run) into the folder"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{file}: says which base model the adapter belongs to, and cannot be read: {error}"
            ) from None

    def write(self, folder: Path) -> None:
        """Into an adapter's folder."""
        write_atomic(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names and bytes of all weights, shared ones once (1.7 GB/s on two cores)."""
    sharding = sharding_of(model)
    if sharding is not None:
        return joined_sha256(sharding.of_whole_weights(tensor_sha256))
    named = dict(model.named_parameters())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing holds no lock
        return joined_sha256(dict(zip(named, pool.map(tensor_sha256, named.values()), strict=True)))


def joined_sha256(digests: Mapping[str, str]) -> str:
    """The hash of all weights, from each one's (`tensor_sha256`) by name."""
    found = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        found.update(f"{name} {digest}\n".encode())
    return found.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 over what a tokenizer makes of a text: vocabulary, rules, special tokens, chat template.

    One without a fast form does not tell its rules: its class stands for them.
    """
    if getattr(tokenizer, "is_fast", False):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}  # of the last call
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    whole = [rules, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 over type, shape and bytes."""
    plain: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(memoryview(plain))
    return found.hexdigest()
