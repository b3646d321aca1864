"""The GGUF adapter, read back: llama.cpp's names, scale and order of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from ilora import InputError
from ilora.handover.gguf import FILE, reorder_rows, write_gguf
from ilora.model.skeleton import open_skeleton
from tests.handover.conftest import MakeSource
from tests.handover.test_merged import gpt2, llama


def read_back(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}


def qwen3() -> PreTrainedModel:
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=64, num_hidden_layers=2, head_dim=8, **size))


def test_llama(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(llama(), settings={"target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]})
    write_gguf(source, tmp_path)
    fields, tensors = read_back(tmp_path / FILE)
    assert fields["general.type"] == "adapter"
    assert (fields["adapter.type"], fields["adapter.lora.alpha"]) == ("lora", 8.0)
    assert fields["general.architecture"] == "llama"
    parts = ("attn_q", "attn_k", "attn_v", "ffn_down")
    assert tensors.keys() == {f"blk.{n}.{part}.weight.lora_{s}" for n in (0, 1) for part in parts for s in "ab"}
    skeleton = open_skeleton(source.model, source.adapter)
    for ours, theirs, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2), ("attn_v", "v_proj", None)):
        update = skeleton.update(f"model.layers.1.self_attn.{theirs}")
        up = update.up if heads is None else reorder_rows(update.up, heads)
        assert torch.equal(tensors[f"blk.1.{ours}.weight.lora_a"], update.down)
        assert torch.equal(tensors[f"blk.1.{ours}.weight.lora_b"], up)


def test_qwen_keeps_its_rows(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(qwen3(), settings={"target_modules": ["q_proj", "k_proj"]})
    write_gguf(source, tmp_path)
    fields, tensors = read_back(tmp_path / FILE)
    assert fields["general.architecture"] == "qwen3"
    update = open_skeleton(source.model, source.adapter).update("model.layers.0.self_attn.q_proj")
    assert torch.equal(tensors["blk.0.attn_q.weight.lora_b"], update.up)


@pytest.mark.parametrize(
    "settings",
    [{"use_rslora": True}, {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}],
)
def test_each_layer_keeps_its_own_scale(settings: dict[str, Any], make_source: MakeSource, tmp_path: Path) -> None:
    """llama.cpp scales every layer by the one alpha over the layer's rank."""
    source = make_source(llama(), settings={"target_modules": ["v_proj", "o_proj"], **settings})
    write_gguf(source, tmp_path)
    fields, tensors = read_back(tmp_path / FILE)
    skeleton = open_skeleton(source.model, source.adapter)
    for layer in (0, 1):
        update = skeleton.update(f"model.layers.{layer}.self_attn.v_proj")
        down, up = (tensors[f"blk.{layer}.attn_v.weight.lora_{side}"] for side in "ab")
        theirs = fields["adapter.lora.alpha"] / len(down) * up @ down
        torch.testing.assert_close(theirs, update.scale * update.up @ update.down)


def test_the_order_of_rows_is_that_of_rotated_pairs() -> None:
    """Queries and keys whose rows are reordered, and turned in pairs, attend as those turned in halves do."""
    assert reorder_rows(torch.arange(8.0)[:, None], 1).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    torch.manual_seed(0)
    heads, size = 2, 6
    query, key = torch.randn(heads * size, 5), torch.randn(heads * size, 5)
    x, y = torch.randn(5), torch.randn(5)
    angles = torch.tensor([0.3, 0.7, 1.9])

    def halves(vector: Tensor, position: int) -> Tensor:
        first, second = vector.view(heads, 2, -1).unbind(1)
        cos, sin = (position * angles).cos(), (position * angles).sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=1)

    def pairs(vector: Tensor, position: int) -> Tensor:
        first, second = vector.view(heads, -1, 2).unbind(2)
        cos, sin = (position * angles).cos(), (position * angles).sin()
        return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=2).flatten(1)

    expected = (halves(query @ x, 7) * halves(key @ y, 3)).sum(1)
    moved = (pairs(reorder_rows(query, heads) @ x, 7) * pairs(reorder_rows(key, heads) @ y, 3)).sum(1)
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        (gpt2(), {"target_modules": ["c_attn"], "fan_in_fan_out": True}, "gpt2"),
        (llama(), {"target_modules": ["q_proj"], "use_dora": True}, "DoRA"),
        (llama(tied=True), {"target_modules": ["lm_head"]}, "lm_head"),
    ],
)
def test_what_llama_cpp_does_not_take_is_refused(
    model: PreTrainedModel, settings: dict[str, Any], says: str, make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(type(model)(model.config), settings=settings)
    with pytest.raises(InputError, match=says):
        write_gguf(source, tmp_path)
    assert not (tmp_path / FILE).exists()
