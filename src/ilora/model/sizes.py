"""The sizes of a model with its adapter that decide what a pass keeps: read from its modules, not from its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora.layer import LoraLayer
from torch import nn

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_MIXED = ("o_proj", "out_proj", "dense", "c_proj", "wo")  # attention's last matrix, by its name in known models


@dataclass(frozen=True)
class LayerSizes:
    """Of one decoder layer.

    matrices: parameters of its frozen matrices that a token passes through: of experts, those of the chosen ones.
    norms: values that its norms read for a token.
    inputs: values that its adapters read for a token, each counted once; attention's own result is not among them.
    copies: the same, once for each adapted matrix that reads them. ranks: of its adapters, in all.
    mixed: the matrix behind attention has an adapter.
    """

    matrices: int
    norms: int
    inputs: int
    copies: int
    ranks: int
    mixed: bool


@dataclass(frozen=True)
class Sizes:
    """Of a model with its adapter.

    first: the first layer with an adapter; below it there is no backward pass.
    hidden, vocabulary: widths. queries, keys: widths of all heads together. heads: their number.
    element: bytes of a value. dropout: whether what an adapter reads is thinned out.
    """

    layers: tuple[LayerSizes, ...]
    first: int
    hidden: int
    vocabulary: int
    queries: int
    keys: int
    heads: int
    element: int
    dropout: bool


def sizes_of(model: Any, *, element: int, dropout: bool) -> Sizes:
    """The sizes of a causal language model whose layers carry the adapter; it may be on the `meta` device.

    A layer without attention, as of a recurrent model, keeps more than its sizes here say: its states are not counted.
    element: bytes of a value that its layers compute with.
    """
    text = model.config.get_text_config()
    head, heads = head_size(text), int(getattr(text, "num_attention_heads", 0))
    queries, keys = head * heads, head * int(getattr(text, "num_key_value_heads", None) or heads)
    layers = tuple(_layer(layer, text, queries, keys) for layer in decoder_layers(model))
    return Sizes(
        layers=layers,
        first=next((number for number, layer in enumerate(layers) if layer.copies), len(layers)),
        hidden=text.hidden_size,
        vocabulary=model.get_input_embeddings().weight.shape[0],
        queries=queries,
        keys=keys,
        heads=heads,
        element=element,
        dropout=dropout,
    )


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder's layers: its longest list of modules."""
    lists = [list(module) for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def head_size(config: Any) -> int:
    """Features of one attention head; 0: the model has none."""
    heads = getattr(config, "num_attention_heads", 0)
    return int(getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0))


def active_values(weight: nn.Parameter, config: Any) -> int:
    """How many of a weight's values a token passes through: of experts, those that are chosen."""
    count = next((found for name in _EXPERTS if (found := getattr(config, name, None))), None)
    if weight.ndim == 3 and count == weight.shape[0]:
        return weight.numel() // int(count) * int(config.num_experts_per_tok)
    return weight.numel()


def _layer(layer: nn.Module, text: Any, queries: int, keys: int) -> LayerSizes:
    adapted = {name: module for name, module in layer.named_modules() if isinstance(module, LoraLayer)}
    read, copies, mixed = set(), 0, False
    for name, module in adapted.items():
        part, _, own = name.rpartition(".")
        copies += module.in_features
        if "att" in part and own in _MIXED:
            mixed = True
        else:
            read.add((part, module.in_features))
    return LayerSizes(
        matrices=sum(_matrices(layer, text)),
        norms=sum(_norms(layer, text, queries, keys)),
        inputs=sum(width for _, width in read),
        copies=copies,
        ranks=sum(rank for module in adapted.values() for rank in list(module.r.values())[:1]),
        mixed=mixed,
    )


def _matrices(layer: nn.Module, text: Any) -> Iterator[int]:
    """Active parameters of each frozen matrix; a quantized one lies in memory in another shape."""
    for name, module in layer.named_modules():
        if "lora_" in name or isinstance(module, LoraLayer):
            continue
        for weight in module.parameters(recurse=False):
            if hasattr(module, "in_features") and weight.ndim > 1:
                yield int(module.in_features) * int(module.out_features)
            elif weight.ndim > 1:
                yield active_values(weight, text)


def _norms(layer: nn.Module, text: Any, queries: int, keys: int) -> Iterator[int]:
    """Values that each norm reads for a token: of the hidden state, or of all heads one by one."""
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if "norm" in type(module).__name__.lower() and weight is not None:
            of_heads = weight.numel() == head_size(text) != text.hidden_size
            yield (keys if name.rpartition(".")[2].startswith("k") else queries) if of_heads else weight.numel()
