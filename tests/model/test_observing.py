"""Looking into a forward pass: what adapted layers read and make, and attention weights, against transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ilora.data.examples import Example, collate
from ilora.errors import InputError
from ilora.kernels.attention import GROUPED
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.gpu import record_passes
from ilora.model.observing import attention_observed, observed, refuse_unseen_attention
from tests.helpers import view, with_random_adapter
from tests.kernels.helpers import Again

ROWS = [
    Example("one", "0", [5, 6, 7, 8], [9, 1]),
    Example("one", "1", [5, 6, 11], [12, 30, 1]),  # begins like the first one
    Example("one", "2", [13], [1]),
]


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    return view(with_random_adapter(tiny_model, dropout=0.0), pad=1).engine


def sums(engine: Engine) -> dict[str, Tensor]:
    """Of |x| and |y| over all tokens of the batch, by layer."""
    found: dict[str, Tensor] = {}

    def look(name: str, x: Tensor, y: Tensor, counts: Tensor) -> None:
        assert name not in found
        found[name] = torch.cat([(part.abs() * counts[:, None]).sum(0) for part in (x, y)])

    with observed(engine, look):
        engine.forward(collate(ROWS, pad=1))
    return found


def sums_by_hand(engine: Engine) -> dict[str, Tensor]:
    """Row by row without padding, by hooks of our own."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, layer in engine.model.named_modules():
        if hasattr(layer, "lora_A"):

            def hook(_: object, given: tuple[Tensor, ...], made: Tensor, name: str = name) -> None:
                part = torch.cat([given[0][0].abs().sum(0), made[0].abs().sum(0)]).detach()
                found[name] = found[name] + part if name in found else part

            handles.append(layer.register_forward_hook(hook))
    for row in ROWS:
        engine.model(input_ids=torch.tensor([row.prompt + row.answer]))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("how", ["padded", "packed", "recorded"])
def test_every_token_of_the_batch_counts_once(engine: Engine, how: str) -> None:
    """Not padding, nor filling; a beginning that two rows share counts for both. Recorded passes are seen, too."""
    expected = sums_by_hand(engine)
    if how != "padded":
        engine.core.set_attn_implementation(GROUPED)
    recorder = Again()
    if how == "recorded":
        record_passes(engine, recorder)
        for _ in range(3):
            engine.forward(collate(ROWS, pad=1))
        assert recorder.replayed == 2
    found = sums(engine)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert recorder.replayed == (2 if how == "recorded" else 0)
    engine.forward(collate(ROWS, pad=1))  # nobody looks any more
    assert recorder.replayed == (3 if how == "recorded" else 0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", GROUPED])
def test_attention_weights_are_those_of_transformers(engine: Engine, implementation: str) -> None:
    batch = collate(ROWS, pad=1)
    engine.core.set_attn_implementation("eager")
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    expected = engine.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, output_attentions=True
    )
    engine.core.set_attn_implementation(implementation)
    engine.core.gradient_checkpointing_enable({"use_reentrant": False})
    with attention_observed(engine) as maps:
        output = engine.forward(batch)
    torch.testing.assert_close(output.logits, expected.logits[:, -batch.keep :], rtol=1e-4, atol=1e-5)
    assert len(maps) == len(expected.attentions) == 2
    real = batch.attention_mask[:, None, :, None]
    for ours, theirs in zip(maps, expected.attentions, strict=True):
        torch.testing.assert_close(ours * real, theirs * real, rtol=1e-4, atol=1e-6)
    gradients = [
        torch.autograd.grad(part[-1].square().sum(), list(adapters.parameters(engine.model, "fast").values())[:2])
        for part in (maps, expected.attentions)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    assert engine.core.config._attn_implementation == implementation
    assert all(layer.gradient_checkpointing for layer in engine.core.get_decoder().layers)


def test_models_whose_attention_is_not_known_are_refused(engine: Engine) -> None:
    refuse_unseen_attention(engine, method="mine")
    engine.core.config.model_type = "gemma2"
    with pytest.raises(InputError, match=r"'mine': .* type gemma2; it knows llama"):
        refuse_unseen_attention(engine, method="mine")
