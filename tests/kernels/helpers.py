"""A small random Llama, how near two results are, and a recorder for a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

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
