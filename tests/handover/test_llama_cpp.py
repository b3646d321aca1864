"""llama.cpp itself answers with the exported adapter as PEFT does; where llama-cpp-python is installed."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from ilora.handover.gguf import FILE, reorder_rows, write_gguf
from tests.handover.conftest import MakeSource
from tests.handover.test_merged import llama

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def write_base(model: PreTrainedModel, file: Path) -> None:
    """The tiny Llama as a GGUF model without a vocabulary."""
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, value in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
        weight = reorder_rows(value, heads) if heads else value
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "rank_pattern": {"v_proj": 2}}])
def test_equal_greedy_answers(settings: dict[str, object], make_source: MakeSource, tmp_path: Path) -> None:
    base = llama()
    write_base(base, tmp_path / "base.gguf")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
    source = make_source(base, settings={"target_modules": targets, **settings})
    write_gguf(source, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    prompt = [3, 14, 15, 9, 2, 6]

    def theirs(lora: Path | None) -> list[int]:
        model = llama_cpp.Llama(
            str(tmp_path / "base.gguf"),
            lora_path=lora and str(lora),
            n_ctx=64,
            n_threads=1,
            logits_all=False,
            verbose=False,
        )
        made = []
        for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            made.append(token)
            if len(made) == 12:
                return made
        return made

    def ours(model: PreTrainedModel) -> list[int]:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=-1
        )
        return out[0, len(prompt) :].tolist()

    without = ours(plain)
    assert theirs(None) == without
    adapted = ours(PeftModel.from_pretrained(plain, source.adapter).eval())
    assert adapted != without
    assert theirs(tmp_path / FILE) == adapted
