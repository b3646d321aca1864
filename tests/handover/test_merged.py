"""Merged weights: those of PEFT's merge_and_unload, with a single tensor in memory at a time."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ilora import InputError
from ilora.handover.merged import write_merged
from ilora.handover.shards import INDEX, SINGLE, Shard
from tests.handover.conftest import MakeSource


def llama(*, tied: bool = False, dtype: torch.dtype = torch.float32, vocabulary: int = 64) -> PreTrainedModel:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=2, tie_word_embeddings=tied, **size)
    return LlamaForCausalLM(config).to(dtype)


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32))


CASES: dict[str, tuple[PreTrainedModel, dict[str, Any]]] = {
    "plain": (llama(), {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": (llama(), {"target_modules": ["q_proj"], "use_rslora": True}),
    "dora": (llama(), {"target_modules": ["k_proj", "up_proj"], "use_dora": True}),
    "patterns": (
        llama(),
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
        },
    ),
    "transposed": (gpt2(), {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "transposed dora": (gpt2(), {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "tied head": (llama(tied=True), {"target_modules": ["q_proj", "lm_head"]}),
    "own head": (llama(), {"target_modules": ["lm_head"]}),
}


@pytest.mark.parametrize("shard", ["1GB", "10KB"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_as_peft(case: str, shard: str, make_source: MakeSource, tmp_path: Path) -> None:
    model, settings = CASES[case]
    source = make_source(type(model)(model.config), settings=settings, shard=shard)
    (tmp_path / "merged").mkdir()
    write_merged(source, tmp_path / "merged")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    # A tied head has to be untied before PEFT merges, or it would change the embeddings, too.
    untie = {"tie_word_embeddings": False} if case == "tied head" else {}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **untie)
    if untie:
        base.lm_head.weight = torch.nn.Parameter(base.model.embed_tokens.weight.detach().clone())
    theirs = PeftModel.from_pretrained(base, source.adapter).merge_and_unload()
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert max(float((value - expected[key]).abs().max()) for key, value in ours.state_dict().items()) <= 1e-6
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert float((ours(ids).logits - theirs(ids).logits).abs().max()) <= 1e-5


def test_what_the_adapter_leaves_alone_stays_bit_for_bit(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(llama(dtype=torch.bfloat16), settings={"target_modules": ["q_proj"]}, shard="10KB")
    (tmp_path / "merged").mkdir()
    write_merged(source, tmp_path / "merged")
    before, after = (
        {
            key: value
            for file in sorted((tmp_path / name).glob("*.safetensors"))
            for key, value in load_file(file).items()
        }
        for name in ("base", "merged")
    )
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    assert (tmp_path / "merged" / INDEX).read_bytes() == (tmp_path / "base" / INDEX).read_bytes()
    parts = load_file(source.adapter / "adapter_model.safetensors")
    layer = "model.layers.1.self_attn.q_proj"
    down, up = (parts[f"base_model.model.{layer}.lora_{side}.weight"].float() for side in "AB")
    exact = (before[f"{layer}.weight"].float() + 2.0 * up @ down).to(torch.bfloat16)
    assert torch.equal(after[f"{layer}.weight"], exact)


def test_one_tensor_is_in_memory_at_a_time(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(llama(), settings={"target_modules": "all-linear"})
    (tmp_path / "merged").mkdir()
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most, count, read = 0, 0, Shard.read

    def watched(self: Shard, name: str) -> Tensor:
        nonlocal most, count
        tensor = read(self, name)
        alive.add(tensor)
        most, count = max(most, len(alive)), count + 1
        return tensor

    monkeypatch.setattr(Shard, "read", watched)
    write_merged(source, tmp_path / "merged")
    assert count > 20
    assert most <= 2  # the last one is let go when the next one comes


def test_a_checkpoint_without_the_prefix(make_source: MakeSource, tmp_path: Path) -> None:
    """As GPT-2's own: `h.0.attn.c_attn.weight`, where the model says `transformer.h.0...`."""
    source = make_source(gpt2(), settings={"target_modules": ["c_attn"], "fan_in_fan_out": True})
    file = tmp_path / "base" / SINGLE
    save_file({k.removeprefix("transformer."): v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    (tmp_path / "merged").mkdir()
    write_merged(source, tmp_path / "merged")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), source.adapter)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert float((ours(ids).logits - theirs(ids).logits).abs().max()) <= 1e-5


def test_other_weights_are_refused(make_source: MakeSource, tiny_model: Path, tmp_path: Path) -> None:
    source = make_source(llama(vocabulary=400), settings={"target_modules": ["q_proj"]})
    file = tmp_path / "base" / SINGLE
    save_file({key: 1.01 * value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    for tokens in tiny_model.glob("tokenizer*"):
        (tmp_path / "base" / tokens.name).write_bytes(tokens.read_bytes())
    (tmp_path / "merged").mkdir()
    with pytest.raises(InputError, match=r"its weights .* are not those that the adapter was trained on"):
        write_merged(source, tmp_path / "merged")


def test_what_cannot_be_merged_is_refused(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(llama(), settings={"target_modules": ["q_proj"]})
    target = tmp_path / "merged"
    target.mkdir()
    model = source.config.model.model_copy(update={"quantization": "4bit"})
    with pytest.raises(InputError, match="4bit"):
        write_merged(replace(source, config=source.config.model_copy(update={"model": model})), target)
    (tmp_path / "base" / SINGLE).rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(InputError, match=SINGLE):
        write_merged(source, target)
    (tmp_path / "base" / "pytorch_model.bin").rename(tmp_path / "base" / SINGLE)
    settings = source.adapter / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"target_modules": ["q_proj", "v_proj"]}))
    with pytest.raises(InputError, match="v_proj"):
        write_merged(source, target)
    assert not list(target.iterdir())
