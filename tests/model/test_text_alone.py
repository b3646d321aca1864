"""Models that also read images: text goes through them, or they are refused with their type."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from ilora import InputError, run
from tests.helpers import FEW_SCORES, MakeConfig

TEXT: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def saved(model: Any, tiny_model: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    for file in tiny_model.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def test_adapters_are_in_the_text_decoder_alone(make_config: MakeConfig, tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=399)
    folder = saved(Gemma3ForConditionalGeneration(config), tiny_model, tmp_path / "model")
    overrides = (f"model.name={folder}", "training.epochs=1", "data.tasks=[one, two]", *FEW_SCORES)
    result = run(make_config(*overrides), tmp_path / "run", quiet=True)
    assert result.adapter is not None
    tensors = load_file(result.adapter / "adapter_model.safetensors")
    assert all("language_model" in key for key in tensors)
    assert all(bool(value.any()) for value in tensors.values())  # each was trained


def test_a_model_that_is_not_known_for_text_is_refused_with_its_type(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path
) -> None:
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION), image_token_index=399
    )
    folder = saved(LlavaForConditionalGeneration(config), tiny_model, tmp_path / "model")
    with pytest.raises(InputError, match="its type is llava"):
        run(make_config(f"model.name={folder}"), tmp_path / "run", quiet=True)
