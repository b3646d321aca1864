"""Which layers of a model get an adapter."""

from __future__ import annotations

import re

from torch import nn
from transformers.pytorch_utils import Conv1D

from ilora.errors import InputError
from ilora.registry import did_you_mean
from ilora.settings import AdapterConfig

# Query and value projections, as architectures name them; the first whose names a model has is taken.
_QUERY_AND_VALUE = (
    ["q_proj", "v_proj"],
    ["query_key_value"],
    ["qkv_proj"],
    ["c_attn"],
    ["Wqkv"],
    ["q_b_proj", "kv_b_proj"],
    ["q_proj", "kv_b_proj"],
    ["in_proj", "x_proj"],
    ["in_proj"],
)


def target_modules(model: nn.Module, wanted: list[str] | str) -> list[str] | str:
    """The names of the layers that get an adapter. Raises InputError for a name that no layer has."""
    if wanted == "all-linear":
        return "all-linear"
    linear = linear_layers(model)
    if wanted == "auto":
        return next((names for names in _QUERY_AND_VALUE if set(names) <= set(linear)), "all-linear")
    for name in wanted:
        parts = [part for key, part in model.named_modules() if key == name or key.endswith(f".{name}")]
        if parts and not all(isinstance(part, nn.Linear | Conv1D) for part in parts):
            raise InputError(
                f"adapter.target_modules: '{name}' is no linear layer ({type(parts[0]).__name__}); "
                f"this model's linear layers are {', '.join(linear)}"
            )
        if not parts:
            raise InputError(
                f"adapter.target_modules: no layer is called '{name}'{did_you_mean(name, linear)}; "
                f"this model's linear layers are {', '.join(linear)}; 'all-linear' takes them all"
            )
    return list(wanted)


def beside_the_text(model: nn.Module) -> list[str]:
    """The linear layers outside the text decoder and its head: those of a model of images and text are never used."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()  # type: ignore[operator]
    inside = {id(part) for part in (*decoder.modules(), head)}
    found = [(key, part) for key, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)]
    return [key for key, part in found if id(part) not in inside]


def refuse_unknown(model: nn.Module, config: AdapterConfig, targets: list[str] | str) -> None:
    """Raises InputError for a layer in the adapter's other settings that gets no adapter. targets: those that do."""
    linear = [key for key, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)]
    paths = [
        key for key in linear if targets == "all-linear" or any(f".{key}".endswith(f".{name}") for name in targets)
    ]
    for setting in ("exclude_modules", "rank_pattern", "alpha_pattern"):
        for name in getattr(config, setting):
            try:
                found = any(re.fullmatch(rf"(.*\.)?({name})", path) for path in paths)
            except re.error as error:
                raise InputError(f"adapter.{setting}: '{name}' is no pattern of layer names: {error}") from None
            if not found:
                raise InputError(
                    f"adapter.{setting}: no layer with an adapter is called '{name}'; the layers with one are "
                    f"{', '.join(sorted({path.rpartition('.')[2] for path in paths}))}"
                )
    there = _layer_count(model)
    for number in config.layers_to_transform or ():
        if not 0 <= number < there:
            raise InputError(f"adapter.layers_to_transform: {number}, but this model's layers are 0 to {there - 1}")


def last_layers(model: nn.Module, count: int | None) -> list[int] | None:
    """The numbers of the last `count` layers; None: all."""
    there = _layer_count(model)
    if count is None or count == there:
        return None
    if count > there:
        raise InputError(f"adapter.layers: {count}, but this model has {there} layers")
    return list(range(there - count, there))


def _layer_count(model: nn.Module) -> int:
    return int(model.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr,operator]


def linear_layers(model: nn.Module, *, head: bool = True) -> list[str]:
    """Their names within a layer; head: the output head's, too."""
    without = None if head else model.get_output_embeddings()  # type: ignore[operator]
    linear = [
        key for key, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D) and part is not without
    ]
    return sorted({key.rpartition(".")[2] for key in linear})
