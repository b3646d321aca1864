"""A small random Llama, and how near two results are."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

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
