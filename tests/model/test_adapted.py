"""What is asked of the layers with an adapter, against hooks on plain transformers and sums by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from ilora.data.examples import Example
from ilora.kernels.attention import GROUPED
from ilora.model import adapters
from ilora.model.adapted import B_OF, input_moments, layers, weights
from ilora.settings import AdapterConfig
from tests.helpers import plain, view

ROWS = [Example("one", f"{n}", list(range(5, 9 + 3 * n)), [9, 1]) for n in range(5)]


@pytest.fixture
def model(tiny_model: Path) -> PeftModel:
    """With an adapter that changes something, and dropout that would be seen."""
    made = adapters.attach(plain(tiny_model), AdapterConfig(r=4, alpha=8, dropout=0.5), name="fast", seed=0)
    torch.manual_seed(0)
    for key, value in adapters.parameters(made, "fast").items():
        if "lora_B" in key:
            value.data.normal_(std=0.3)
    return made.train()


def by_hand(tiny_model: Path, model: PeftModel) -> dict[str, Tensor]:
    """Row by row, without padding, through base weights to which the adapter was added."""
    base, found = plain(tiny_model), {}
    with torch.no_grad():
        for path, layer in layers(model).items():
            name = path.removeprefix("base_model.model.")
            base.get_submodule(name).weight += layer.get_delta_weight("fast")
            found[path] = torch.zeros(32, 32)

            def see(_: object, inputs: tuple[Tensor], path: str = path) -> None:
                found[path] += inputs[0][0].T @ inputs[0][0]

            base.get_submodule(name).register_forward_pre_hook(see)
        for row in ROWS:
            base(input_ids=torch.tensor([row.prompt + row.answer]))
    return found


@pytest.mark.parametrize("attention", ["sdpa", GROUPED])
def test_moments_are_sums_over_real_tokens(tiny_model: Path, model: PeftModel, attention: str) -> None:
    """Padding does not count, a beginning that rows share counts in each of them, and hooks do not stay."""
    expected = by_hand(tiny_model, model)
    run = view(model, pad=3)
    model.set_attn_implementation(attention)
    for size in (1, 2, 5):
        run.engine.micro_batch_size = size
        found = input_moments(run.engine, ROWS)
        assert found.keys() == expected.keys()
        for path, moment in found.items():
            torch.testing.assert_close(moment, expected[path], rtol=1e-4, atol=1e-4)
    assert run.engine.passes["forward"] == 3 * len(ROWS)
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers(model).values())


def test_weights_are_those_with_the_adapters_added(model: PeftModel) -> None:
    adapters.keep_copy(model, "fast", "task-0001")
    for path, weight in weights(model, ["task-0001", "fast"]):
        layer = layers(model)[path]
        down, up = layer.lora_A["fast"].weight, layer.lora_B["fast"].weight
        torch.testing.assert_close(weight, layer.get_base_layer().weight + 2 * 8 / 4 * up @ down)


def test_a_transposed_layer_is_turned() -> None:
    """GPT-2's layers hold (inputs, outputs)."""
    sizes = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16)
    base = GPT2LMHeadModel(sizes).requires_grad_(False)
    model = adapters.attach(base, AdapterConfig(r=2, target_modules=["c_attn"]), name="fast", seed=0)
    ((path, weight),) = weights(model, ["fast"])
    assert weight.shape == (24, 8)
    torch.testing.assert_close(weight, layers(model)[path].get_base_layer().weight.T)  # B is zero
    assert adapters.parameters(model, "fast")[B_OF.format(path)].shape == (24, 2)
