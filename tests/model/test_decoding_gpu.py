"""Answers on a card: recorded steps and few passes against transformers' own way there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilora.data.examples import Batch
from ilora.kernels.graphs import CudaRecorder
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.gpu import record_answers, record_passes
from ilora.model.ranking import likelihoods
from tests.kernels.helpers import Again
from tests.model.test_decoding import CASES, greedy, prompts, with_two_adapters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    made = with_two_adapters(tiny_model)
    made.model.to("cuda")
    return made


def on_card(count: int = 9, longest: int = 12) -> Batch:
    return prompts(count, longest, device="cuda")


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
def test_generation_and_ranking_are_the_same_in_float32(case: str, engine: Engine) -> None:
    choices = [[[5], [6, 7, 8], [9, 10 + row], [11, 12, 13 + row, 14]] for row in range(9)]
    batch, free = on_card(), greedy(9, 399)
    with CASES[case](engine):
        expected, likely = engine.generate(batch, free), likelihoods(engine, batch, choices)
        settings = greedy(9, int(expected[3, 4]), int(expected[0, 1]))
        stopped = engine.generate(batch, settings)
        record_answers(engine, CudaRecorder)
        for _ in range(2):
            assert engine.generate(batch, free).tolist() == expected.tolist()
            assert engine.generate(batch, settings).tolist() == stopped.tolist()
            torch.testing.assert_close(likelihoods(engine, batch, choices), likely, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_rows_that_have_ended_leave(engine: Engine) -> None:
    batch = on_card(70)
    free = engine.generate(batch, greedy(40, 399))
    ends = {token for row in free[1:].tolist() for token in row[:9]} - set(free[0].tolist())
    expected = engine.generate(batch, greedy(40, *ends))
    record_answers(engine, CudaRecorder)
    assert engine.decoding is not None
    engine.decoding.worth = 4
    for _ in range(3):
        for _ in range(2):
            assert engine.generate(batch, greedy(40, *ends)).tolist() == expected.tolist()
        engine.decoding.forget()


@pytest.mark.parametrize("longest", [12, 600])  # above 512 tokens attention goes another way
def test_replaying_gives_the_bits_of_launching_in_bfloat16(longest: int, engine: Engine) -> None:
    """The prompts are packed, through flash attention."""
    engine.model.bfloat16()
    engine.core.config.max_position_embeddings = 2048  # type: ignore[union-attr]
    found = []
    for recorder in (Again, CudaRecorder, CudaRecorder):
        record_answers(engine, recorder)
        with torch.inference_mode():
            found.append(engine.generate(on_card(20, longest), greedy(12, 399)).tolist())
    assert found[1] == found[2]
    assert found[0] == found[1]


def test_training_and_answers_take_turns(engine: Engine) -> None:
    """Answers between a training pass and its backward pass leave it whole, and memory may be given back."""
    batch, weights = on_card(12), list(adapters.parameters(engine.model, "fast").values())
    gradient = torch.autograd.grad(engine.forward(batch).logits.square().sum(), weights)
    with torch.inference_mode():
        expected = engine.generate(batch, greedy(6, 399)).tolist()
        states = engine.states(batch)[0]
    record_passes(engine, CudaRecorder())
    record_answers(engine, CudaRecorder)
    assert engine.decoding is not None
    for turn in range(4):
        loss = engine.forward(batch).logits.square().sum()
        with torch.inference_mode():
            assert engine.generate(batch, greedy(6, 399)).tolist() == expected
            found = engine.states(batch)[0]
            torch.testing.assert_close(found, states * batch.attention_mask[..., None], rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(torch.autograd.grad(loss, weights), gradient, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
        if turn % 2:
            engine.decoding.forget()
