"""Adapters with known weights, and a landscape on the tiny model."""

from __future__ import annotations

import pytest
import torch

from ilora.connectivity.landscape import Landscape
from ilora.connectivity.space import Adapter
from ilora.model.adapters import LowRank
from ilora.stream import load_tasks
from tests.helpers import MakeConfig

LAYERS = [f"model.layers.{number}.self_attn.{name}" for number in range(2) for name in ("q_proj", "v_proj")]
SIZES = {"q_proj": (32, 32), "v_proj": (16, 32)}  # (out, in) of the tiny model


def random_adapter(label: str, seed: int, *, rank: int = 4, scale: float = 2.0, size: float = 0.2) -> Adapter:
    """Random A and B for q_proj and v_proj of both layers of the tiny model."""
    source = torch.Generator().manual_seed(seed)
    updates = {}
    for layer in LAYERS:
        out, inner = SIZES[layer.rpartition(".")[2]]
        down, up = (size * torch.randn(shape, generator=source) for shape in ((rank, inner), (out, rank)))
        updates[layer] = LowRank(down, up, scale)
    settings = {"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"], "r": rank, "lora_alpha": scale * rank}
    return Adapter(label, updates, "tiny", settings)


def update(adapter: Adapter, layer: str) -> torch.Tensor:
    """ΔW of a layer, formed: (out, in), float64."""
    one = adapter.updates[layer]
    return one.scale * one.up.double() @ one.down.double()


@pytest.fixture(scope="session")
def landscape(make_config: MakeConfig) -> Landscape:
    """The tiny model with a slot, and the test rows of two tasks."""
    config = make_config("evaluation.batch_size=3")
    return Landscape(config, load_tasks(config.data)[:2], LAYERS, split="test")
