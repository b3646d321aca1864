"""Attention for short sequences: what transformers calls eager, without its copies.

The keys and values of a group are shared by its heads instead of being repeated, scaling and mask go into the matrix
product, and the softmax keeps the model's dtype (it computes in float32 inside either way).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ilora.kernels.packing import Gather, Packing, Spread

GROUPED = "grouped"  # the name under which transformers knows it
# A stack of like layers between an embedding and a norm; attention without caps, sinks or biases of its own.
PLAIN = {"llama", "mistral", "qwen2", "qwen3", "smollm3"}


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query: (rows, heads, length, size); key, value: (rows, groups, past + length, size); mask: added to scores.

    packing: the tensors hold all rows as one long row, and the mask is the one for separate rows.
    Returns (rows, length, heads, size), and None for the attention weights.
    """
    del kwargs
    if packing is not None:
        query, key, value = (Spread.apply(part, packing) for part in (query, key, value))  # type: ignore[no-untyped-call]
        mixed, _ = grouped_attention(module, query, key, value, attention_mask, scaling, dropout)
        return Gather.apply(mixed, packing), None  # type: ignore[no-untyped-call]
    rows, heads, length, size = query.shape
    groups, past = key.shape[1:3]
    folded = query.reshape(rows * groups, heads // groups * length, size)
    keys = key.reshape(rows * groups, past, size).transpose(1, 2)
    if attention_mask is None:
        scores = torch.bmm(folded, keys) * scaling
    else:
        mask = attention_mask.expand(rows, heads, length, past).reshape(rows * groups, -1, past)
        scores = torch.baddbmm(mask, folded, keys, alpha=scaling)
    weights = nn.functional.dropout(scores.softmax(-1), p=dropout, training=module.training)
    mixed = torch.bmm(weights, value.reshape(rows * groups, past, size))
    return mixed.view(rows, heads, length, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
