"""Rows packed without padding against the same rows padded: outputs, hidden states and gradients."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from ilora.data.examples import IGNORED, Batch, Example, collate
from ilora.kernels.attention import GROUPED
from ilora.kernels.losses import token_losses
from ilora.kernels.packing import Gather, Packing, Spread
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.ranking import likelihoods
from ilora.settings import AdapterConfig
from tests.kernels.helpers import CLOSE, apart, llama

ROWS = [([5, 6, 7, 8, 9], [10, 1]), ([11], [12, 13, 1]), ([14, 15, 16], [1])]


def batch(rows: list[tuple[list[int], list[int]]] = ROWS) -> Batch:
    return collate([Example("one", str(n), prompt, answer) for n, (prompt, answer) in enumerate(rows)], pad=0)


def engine(attention: str, dtype: torch.dtype = torch.float32) -> Engine:
    """The same weights whatever the attention; an adapter far from zero."""
    config = AdapterConfig(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj", "down_proj"])
    model = adapters.attach(llama(dtype, attention), config, name="fast", seed=0).train()
    torch.manual_seed(2)
    for parameter in adapters.parameters(model, "fast").values():
        parameter.data = torch.randn_like(parameter) * 0.3
    return Engine(model, Accelerator(), pad=0)


SHARED = [([5, 6, 7, 8], [10, 1]), ([5, 6, 7, 9, 9], [10, 1]), ([5, 6, 7, 9], [10, 1]), ([6, 5], [1]), ([5, 6], [1])]


def count_tokens(engine: Engine) -> list[int]:
    """Tokens that go through the first feed-forward layer, call by call."""
    seen: list[int] = []
    engine.core.model.layers[0].mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0][..., 0].numel()))
    return seen


def outcome(
    engine: Engine, hidden: Literal["last", "all"], prefix: Tensor | None, rows: Batch | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, hidden states at real tokens, the adapter's gradients of both."""
    rows = rows or batch()
    soft = None if prefix is None else (lambda b: prefix.expand(len(b.examples), -1, -1))
    with engine.prefixed(soft):
        output = engine.forward(rows, hidden=hidden)
        alone = engine.states(rows, layers=hidden)
    losses = token_losses(output.logits[:, :-1], rows.targets)
    real = rows.attention_mask.bool()
    states = torch.cat([layer[real] for layer in output.hidden])
    assert apart(torch.cat([layer[real] for layer in alone]), states) < 1e-6
    total = losses.sum() + (states.float() ** 2).mean()
    gradients = torch.autograd.grad(total, list(adapters.parameters(engine.model, "fast").values()))
    return losses.detach(), states.detach(), torch.cat([value.flatten() for value in gradients])


def compared(
    rows: Batch, hidden: Literal["last", "all"], dtype: torch.dtype, soft: bool
) -> tuple[list[int], list[int]]:
    """Packed and padded must give the same; how many tokens went through each."""
    torch.manual_seed(5)
    prefix = torch.randn(1, 2, 32).to(dtype) if soft else None
    packed, padded = engine(GROUPED, dtype), engine("eager", dtype)
    counts = count_tokens(packed), count_tokens(padded)
    ours, theirs = outcome(packed, hidden, prefix, rows), outcome(padded, hidden, prefix, rows)
    for mine, reference in zip(ours, theirs, strict=True):
        assert apart(mine, reference) < CLOSE[dtype]
    return counts


@pytest.mark.parametrize("hidden", ["last", "all"])
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("soft", [False, True])
def test_packed_rows_are_the_padded_ones(hidden: Literal["last", "all"], dtype: torch.dtype, soft: bool) -> None:
    tokens, all_places = compared(batch(), hidden, dtype, soft)
    real = sum(len(prompt) + len(answer) for prompt, answer in ROWS) + 2 * len(ROWS) * soft
    assert set(tokens) == {real - 2 * (len(ROWS) - 1) * soft}  # the soft prompt once
    assert set(all_places) == {len(ROWS) * (7 + 2 * soft)}


@pytest.mark.parametrize("hidden", ["last", "all"])
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("soft", [False, True])
def test_what_rows_begin_with_is_computed_once(hidden: Literal["last", "all"], dtype: torch.dtype, soft: bool) -> None:
    tokens, _ = compared(batch(SHARED), hidden, dtype, soft)
    assert set(tokens) == {3 + 3 + 2 + 2 + 2 + 3 + 1 + 2 * soft}  # the common 5 6 7, then what each row has of its own


def test_with_dropout_or_soft_prompts_of_their_own_rows_share_nothing() -> None:
    made = engine(GROUPED)
    everything = sum(len(prompt) + len(answer) for prompt, answer in SHARED)
    made.model.peft_config["fast"].lora_dropout = 0.1
    tokens = count_tokens(made)
    made.forward(batch(SHARED))
    made.forward(batch(SHARED), dropout=False)
    with made.prefixed(lambda rows: torch.zeros(len(rows.examples), 1, 32)):
        made.forward(batch(SHARED))
    made.model.eval()
    with made.prefixed(lambda rows: torch.zeros(len(rows.examples), 1, 32)):
        made.forward(batch(SHARED))
    with made.prefixed(lambda rows: torch.zeros(1, 1, 32).expand(len(rows.examples), -1, -1)):
        made.forward(batch(SHARED))  # one soft prompt for all
    own = everything + len(SHARED)
    assert tokens == [everything, 16, own, own, 17]


def test_ranking_reads_what_prompts_begin_with_once() -> None:
    packed, padded = engine(GROUPED), engine("eager")
    tokens = count_tokens(packed)
    rows = batch([(prompt, []) for prompt, _ in SHARED])
    choices = [[[10, 11, 1], [12, 1], [13, 1]]] * len(SHARED)
    with torch.inference_mode():
        ours, theirs = likelihoods(packed, rows, choices), likelihoods(padded, rows, choices)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert tokens[0] == 3 + 1 + 2 + 2  # 9 9 and 9 share their first


def test_with_gradient_checkpointing_too() -> None:
    results = []
    for checkpointing in (False, True):
        made = engine(GROUPED)
        if checkpointing:
            made.core.gradient_checkpointing_enable({"use_reentrant": False})
        results.append(outcome(made, "last", None))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_rows_of_one_length_and_routed_rows_stay_as_they_are() -> None:
    made = engine(GROUPED)
    tokens = count_tokens(made)
    made.forward(collate([Example("one", "0", [5, 6], [1]), Example("one", "1", [7, 8], [1])], pad=0))
    made.model.eval()
    with made.routed(lambda rows: ["fast"] * len(rows.examples)):
        made.forward(batch())
    assert tokens == [6, 21]


def test_shared_beginnings_by_hand() -> None:
    mask, ids = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1]]), torch.tensor([[9, 5, 6], [5, 6, 6], [5, 7, 6]])
    found = Packing.of(mask, ids)
    assert found.taken.tolist() == [1, 2, 5, 7, 8]
    assert found.token_at.tolist() == [0, 0, 1, 0, 1, 2, 0, 3, 4]
    assert found.again.tolist() == [3, 4, 6]
    assert found.pack(ids[..., None]).flatten().tolist() == [5, 6, 6, 7, 6]
    assert found.spread(found.pack(ids[..., None]))[..., 0].tolist() == [[0, 5, 6], [5, 6, 6], [5, 7, 6]]


def packing() -> Packing:
    return Packing.of(torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]]))


def test_pack_spread_and_columns_by_hand() -> None:
    found = packing()
    padded = torch.arange(9.0).view(3, 3, 1)
    assert found.pack(padded).flatten().tolist() == [2, 3, 4, 5, 7, 8]
    assert found.spread(found.pack(padded))[..., 0].tolist() == [[0, 0, 2], [3, 4, 5], [0, 7, 8]]
    assert found.columns(2).tolist() == [0, 0, 2, 3, 4, 5]  # the first is padding


def test_the_mask_is_causal_and_leaves_padding_out() -> None:
    seen = packing().attention_mask(torch.float32)[:, 0] == 0
    assert seen[0].tolist() == [[False, False, False], [False, False, False], [False, False, True]]
    assert seen[1].tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert seen[2].tolist() == [[False, False, False], [False, True, False], [False, True, True]]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("step", ["spread and weigh", "gather"])
def test_gradients_are_those_of_finite_differences(step: str, shared: bool) -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
    found = Packing.of(mask, torch.tensor([[0, 0, 5], [5, 6, 7], [0, 5, 6]]) if shared else None)
    assert len(found.taken) == (3 if shared else 6)

    def weighed(packed: Tensor) -> Any:  # what padding holds is masked before anyone looks
        return Spread.apply(packed, found) * mask[:, None, :, None]

    if step == "gather":
        inputs = torch.randn(3, 3, 2, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda padded: Gather.apply(padded, found), (inputs,))
    else:
        inputs = torch.randn(1, 2, len(found.taken), 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(weighed, (inputs,))


def test_labels_beyond_a_short_row_are_ignored() -> None:
    rows = batch()
    assert (rows.targets == IGNORED).sum() == 3  # answers of 2, 3 and 1 tokens in 3 columns
