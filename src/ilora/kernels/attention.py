"""Our own attention, which takes packed rows.

On a CPU, for short rows: what transformers calls eager, without its copies. The keys and values of a group are shared
by its heads instead of being repeated, scaling and mask go into the matrix product, and the softmax keeps the model's
dtype (it computes in float32 inside either way). On a GPU in half precision: torch's flash attention, which reads rows
of several lengths as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from ilora.kernels.packing import Gather, Packing, Spread

GROUPED = "grouped"  # the name under which transformers knows it
WATCHED = "watched"  # the name of attention whose weights somebody wants to see
LONG = 512  # tokens: above, the (length x length) weights cost more than they save
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
    if packing is not None and flash_serves(query.device, query.dtype) and packing.starts is not None:
        return attention_in_rows(query, key, value, packing.starts, packing.length, scaling), None
    if packing is not None:
        query, key, value = (Spread.apply(part, packing) for part in (query, key, value))  # type: ignore[no-untyped-call]
        mixed, _ = grouped_attention(module, query, key, value, attention_mask, scaling, dropout)
        return Gather.apply(mixed, packing), None  # type: ignore[no-untyped-call]
    rows, heads, length, size = query.shape
    groups, past = key.shape[1:3]
    if past > LONG and length > 1:  # the scores would take more memory than all the rest
        mixed, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling)
        return mixed, None
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


def attention_in_rows(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scaling: float
) -> Tensor:
    """`attend_in_rows` for one row of all tokens. query: (1, heads, tokens, size). Returns (1, tokens, heads, size)."""
    heads_last = (part[0].transpose(0, 1) for part in (query, key, value))
    mixed, _ = torch.ops.ilora.attend_in_rows(*heads_last, starts, longest, scaling)
    found: Tensor = mixed.unsqueeze(0)
    return found


def watched_attention(maps: list[Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """Attention as `grouped_attention`, unpacked, that appends its weights to `maps`: (rows, heads, length, past +
    length) in float32, one tensor a layer. It keeps all of them for the backward pass.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        del kwargs
        keys, values = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
        scores = query @ keys.transpose(2, 3) * scaling
        weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1, dtype=torch.float32)
        maps.append(weights)
        dropped = nn.functional.dropout(weights.to(value.dtype), p=dropout, training=module.training)
        return (dropped @ values).transpose(1, 2).contiguous(), None

    return attend


def flash_serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether rows of several lengths can go through torch's flash attention without padding."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


@torch.library.custom_op("ilora::attend_in_rows", mutates_args=(), device_types="cuda")
def attend_in_rows(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """Causal attention within each row of packed tokens, by torch's flash attention.

    query: (tokens, heads, size); key, value: (tokens, groups, size). starts: (rows + 1,) int32, the first token of each
    row, and the number of tokens. longest: tokens of a row, at most.
    Returns the mixed values (tokens, heads, size), and for the backward pass the logarithms of the scores' sums.
    """
    mixed, norms, *_ = torch.ops.aten._flash_attention_forward(
        query.contiguous(), key.contiguous(), value.contiguous(), starts, starts, longest, longest, 0.0, True, False,
        scale=scaling,
    )  # fmt: skip
    return mixed, norms


@attend_in_rows.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, ...]:
    norms = query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), norms


@torch.library.custom_op("ilora::attend_in_rows_backward", mutates_args=(), device_types="cuda")
def attend_in_rows_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor, norms: Tensor, starts: Tensor, longest: int,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of query, key and value: the same bits every time, as a resume needs them."""
    none = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of a dropout that there is not
    with _same_bits():
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            grad.contiguous(), query.contiguous(), key.contiguous(), value.contiguous(), mixed, norms, starts, starts,
            longest, longest, 0.0, True, none, none[:0], scale=scaling,
        )  # fmt: skip
    return found


@contextmanager
def _same_bits() -> Iterator[None]:
    """Without this, torch adds up flash attention's gradients in any order."""
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


@attend_in_rows_backward.register_fake
def _(_: Tensor, *of: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in of[:3])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, starts, ctx.longest, ctx.scaling = inputs
    ctx.save_for_backward(query, key, value, *output, starts)


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    found = torch.ops.ilora.attend_in_rows_backward(grad, *ctx.saved_tensors, ctx.longest, ctx.scaling)
    return (*found, None, None, None)


attend_in_rows.register_autograd(_gradients, setup_context=_keep)
AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
AttentionMaskInterface.register(WATCHED, eager_mask)
