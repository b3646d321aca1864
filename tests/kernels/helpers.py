"""A small random Llama, how near two results are, and a recorder for a CPU."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ilora.kernels.attention import attend_in_rows, attend_in_rows_backward
from ilora.kernels.graphs import Compute

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # the second: a few roundings of 2^-8


def llama(dtype: torch.dtype = torch.float32, attention: str = "eager") -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(sizes).to(dtype).requires_grad_(False)


def rows() -> dict[str, Tensor]:
    """Three left-padded rows."""
    torch.manual_seed(1)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = mask[2, :1] = 0
    return {
        "input_ids": torch.randint(0, 50, (3, 9)),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference as a share of the largest value."""
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


class Again:
    """Computes again on the same tensors: what a CUDA graph does, with the same hold on memory."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def warm_up(self, compute: Callable[[], object]) -> None:
        compute()

    def record(self, compute: Compute) -> tuple[Callable[[], None], list[Tensor]]:
        self.recorded += 1
        results = compute()

        def replay() -> None:
            self.replayed += 1
            for place, result in zip(results, compute(), strict=True):
                place.detach().copy_(result)

        return replay, results


def flash_on_a_cpu(patch: pytest.MonkeyPatch) -> None:
    """Have rows go through attention as they do on a GPU in half precision, in any dtype, computed row by row."""
    names = ("kernels.attention", "model.passes", "model.load", "model.together", "training.room")
    # All are imported before one is patched: one imported later would keep the patched function for good.
    for module in [import_module(f"ilora.{name}") for name in names]:
        patch.setattr(module, "flash_serves", lambda *_: True)
    attend_in_rows.register_kernel("cpu")(_row_by_row)
    attend_in_rows_backward.register_kernel("cpu")(_row_by_row_backward)


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scaling: float
) -> tuple[Tensor, Tensor]:
    assert max(starts.diff().tolist()) <= longest
    rows = _rows_of(starts, query, key, value)
    mixed = torch.cat([(_weights(q, k, scaling) @ v).transpose(0, 1) for q, k, v in rows])
    return mixed, query.new_zeros(query.shape[1], query.shape[0], dtype=torch.float32)


def _row_by_row_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor, norms: Tensor, starts: Tensor, longest: int,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    del mixed, norms, longest
    found = []
    for q, k, v, g in _rows_of(starts, query, key, value, grad):
        weights, of_weights = _weights(q, k, scaling), g @ v.transpose(1, 2)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scaling
        parts = of_scores @ k, of_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ g
        found.append([part.transpose(0, 1) for part in parts])
    of_query, *others = (torch.cat(parts) for parts in zip(*found, strict=True))
    of_key, of_value = (part.unflatten(1, (key.shape[1], -1)).sum(2) for part in others)
    return of_query, of_key, of_value


def _rows_of(starts: Tensor, *packed: Tensor) -> list[list[Tensor]]:
    """Of each row with tokens the tensors as (heads, length, size); groups are repeated for their heads."""
    heads = packed[0].shape[1]
    cut = [part.repeat_interleave(heads // part.shape[1], 1).split(starts.diff().tolist()) for part in packed]
    return [[part.transpose(0, 1) for part in row] for row in zip(*cut, strict=True) if len(row[0])]


def _weights(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    later = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).triu(1)
    return (query @ key.transpose(1, 2) * scaling).masked_fill(later, float("-inf")).softmax(-1)
