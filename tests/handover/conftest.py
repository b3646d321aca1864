"""A finished run to hand over, made once, and adapters on tiny models without a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from ilora import run
from ilora.handover.source import Source
from ilora.model.identity import BaseModel
from ilora.settings import ModelConfig
from tests.helpers import MakeConfig

MakeSource = Callable[..., Source]


@pytest.fixture(scope="session")
def finished(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks whose answers are words, and which are scored after each one."""
    tasks = "data.tasks=[{name: one, metric: edit}, {name: two, metric: edit}]"
    config = make_config(tasks, "training.epochs=6", "training.learning_rate=0.02")
    return run(config, tmp_path_factory.mktemp("handover") / "run", quiet=True).path


@pytest.fixture
def make_source(make_config: MakeConfig, tmp_path: Path) -> MakeSource:
    """A model's folder with an adapter of PEFT for it, as if a run had made it."""

    def make(model: PreTrainedModel, *, settings: dict[str, Any], shard: str = "1GB") -> Source:
        torch.manual_seed(1)
        model.save_pretrained(tmp_path / "base", max_shard_size=shard)
        base = BaseModel.of(model, ModelConfig(name=str(tmp_path / "base")))
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        base.write(tmp_path / "adapter")
        dtype = str(model.dtype).removeprefix("torch.")
        config = make_config(f"model.name={tmp_path / 'base'}", f"model.dtype={dtype}")
        return Source(tmp_path / "adapter", config, {}, stage=1, variant="fast")

    return make
