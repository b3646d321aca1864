"""Answers by recorded steps and by few passes equal transformers' own, row by row and in batches, in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from ilora.data.examples import Batch, Example, collate
from ilora.kernels.attention import GROUPED
from ilora.model import adapters
from ilora.model.decoding import Decoding
from ilora.model.engine import Engine
from ilora.model.gpu import record_answers
from ilora.model.ranking import likelihoods
from ilora.settings import AdapterConfig
from tests.helpers import with_random_adapter
from tests.kernels.helpers import Again

PAD = 0
Around = Callable[[Engine], AbstractContextManager[Any]]


def with_two_adapters(tiny_model: Path) -> Engine:
    model = with_random_adapter(tiny_model, dropout=0.3).eval()
    adapters.add(model, "other", like="fast", seed=3)
    for parameter in adapters.parameters(model, "other").values():
        torch.nn.init.normal_(parameter, std=0.3)
    model.get_base_model().set_attn_implementation(GROUPED)
    return Engine(model, Accelerator(), pad=PAD)


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    return with_two_adapters(tiny_model)


def prompts(count: int = 9, longest: int = 12, *, device: str = "cpu") -> Batch:
    source = torch.Generator().manual_seed(count)
    lengths = [longest, *torch.randint(1, longest + 1, (count - 1,), generator=source).tolist()]
    rows = [torch.randint(4, 200, (length,), generator=source).tolist() for length in lengths]
    return collate([Example("one", str(number), row, []) for number, row in enumerate(rows)], pad=PAD, device=device)


def greedy(new: int, *ends: int, **more: Any) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=new, eos_token_id=list(ends), pad_token_id=PAD, **more)


def recorded(engine: Engine, **options: Any) -> tuple[Again, Decoding]:
    recorder = Again()
    record_answers(engine, lambda: recorder)
    assert engine.decoding is not None
    for name, value in options.items():
        setattr(engine.decoding, name, value)
    return recorder, engine.decoding


def soft(batch: Batch) -> Tensor:
    made = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(2))
    return made.to(batch.input_ids.device).expand(len(batch.examples), -1, -1)


def own_soft(batch: Batch) -> Tensor:
    made = torch.randn(len(batch.examples), 2, 32, generator=torch.Generator().manual_seed(2))
    return made.to(batch.input_ids.device)


CASES: dict[str, Around] = {
    "one adapter": lambda _: nullcontext(),
    "no adapter": lambda engine: adapters.active(engine.model, None),
    "a sum of adapters": lambda engine: adapters.active(engine.model, ["fast", "other"]),
    "merged": lambda engine: adapters.merged(engine.model, "other"),
    "a soft prompt": lambda engine: engine.prefixed(soft),
    "a soft prompt for each row": lambda engine: engine.prefixed(own_soft),
    "an adapter for each row": lambda engine: engine.routed(lambda batch: ["fast", "other", "__base__"] * 3),
}


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
def test_generation_and_ranking_are_the_same(case: str, engine: Engine) -> None:
    choices = [[[5], [6, 7, 8], [9, 10 + row], [11, 12, 13 + row, 14]] for row in range(9)]
    batch, free = prompts(), greedy(9, 399)
    with CASES[case](engine):
        expected, likely = engine.generate(batch, free), likelihoods(engine, batch, choices)
        alone = [engine.generate(batch.part([row]), free)[0] for row in range(9)] if "each" not in case else expected
        ends = expected[3, 4].item(), expected[0, 1].item()  # several ends, at several columns
        stopped = engine.generate(batch, greedy(9, *ends))
        recorder, _ = recorded(engine)
        for _ in range(2):
            assert torch.equal(engine.generate(batch, free), expected)
            assert torch.equal(engine.generate(batch, greedy(9, *ends)), stopped)
            torch.testing.assert_close(likelihoods(engine, batch, choices), likely, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(one, row) for one, row in zip(alone, expected, strict=True))
    assert len({tuple(row) for row in expected.tolist()}) > 5  # rows can be told apart
    assert not torch.equal(stopped, expected[:, : stopped.shape[1]])
    assert (recorder.replayed > 0) != (case == "an adapter for each row")


@torch.inference_mode()
@pytest.mark.parametrize("new", [1, 2, 40])
def test_rows_that_have_ended_leave(new: int, engine: Engine) -> None:
    batch = prompts(70)
    free = engine.generate(batch, greedy(new, 399))
    ends = {token for row in free[1:].tolist() for token in row[:9]} - set(free[0].tolist())
    expected = engine.generate(batch, greedy(new, *ends))
    recorder, decoding = recorded(engine, worth=4)
    assert torch.equal(engine.generate(batch, greedy(new, *ends)), expected)
    assert torch.equal(engine.generate(batch, greedy(new, *ends)), expected)  # as was recorded
    assert recorder.recorded == {1: 0, 2: 1, 40: 2}[new]
    assert expected.shape[1] == new
    decoding.forget()
    assert torch.equal(engine.generate(batch, greedy(new, *ends)), expected)


@torch.inference_mode()
def test_no_step_is_taken_when_all_have_ended(engine: Engine) -> None:
    batch = prompts(5)
    first = engine.generate(batch, greedy(1, 399))
    recorder, _ = recorded(engine)
    made = engine.generate(batch, greedy(30, *first.flatten().tolist()))
    assert torch.equal(made, first)
    assert recorder.replayed == 0


@torch.inference_mode()
def test_shapes_share_their_memory_and_leave_nothing_behind(engine: Engine) -> None:
    """Larger, smaller and larger again, other weights between them: nothing of an earlier batch is seen."""
    batches = [prompts(3, 5), prompts(40, 30), prompts(4, 7), prompts(40, 30)]
    expected = [engine.generate(batch, greedy(6, 399)) for batch in batches]
    recorder, _ = recorded(engine)
    for batch, answer in zip(batches, expected, strict=True):
        assert torch.equal(engine.generate(batch, greedy(6, 399)), answer)
    for parameter in adapters.parameters(engine.model, "fast").values():
        parameter.add_(0.2)
    again, before = engine.generate(batches[1], greedy(6, 399)), recorder.recorded
    engine.decoding = None
    assert torch.equal(engine.generate(batches[1], greedy(6, 399)), again)
    assert not torch.equal(again, expected[1])
    assert recorder.recorded == before  # weights that move in place need no new recording


@torch.inference_mode()
def test_another_scaling_and_other_tensors_are_seen(engine: Engine) -> None:
    batch = prompts()
    recorder, _ = recorded(engine)
    found = [engine.generate(batch, greedy(6, 399))]
    for _, layer in adapters.adapted(engine.model):
        layer.scaling["fast"] *= -1
    found.append(engine.generate(batch, greedy(6, 399)))
    for parameter in adapters.parameters(engine.model, "fast").values():
        parameter.data = parameter.data.flip(0).clone()
    found.append(engine.generate(batch, greedy(6, 399)))
    assert recorder.recorded == 3
    engine.decoding = None
    assert torch.equal(engine.generate(batch, greedy(6, 399)), found[2])
    assert not torch.equal(found[0], found[1])


@torch.inference_mode()
def test_what_is_not_greedy_is_left_to_transformers(engine: Engine) -> None:
    batch, settings = prompts(), greedy(8, 399, repetition_penalty=1.7)
    expected = engine.generate(batch, settings)
    recorder, _ = recorded(engine)
    assert torch.equal(engine.generate(batch, settings), expected)
    assert recorder.recorded == 0


def test_large_memory_goes_back_when_training_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = prompts()
    recorder, _ = recorded(engine)
    made = engine.generate(batch, greedy(4, 399))
    engine.forward(batch)
    engine.generate(batch, greedy(4, 399))
    assert recorder.recorded == 1
    monkeypatch.setattr("ilora.model.decoding.KEPT", 1)
    with torch.no_grad():
        engine.forward(batch)  # of an evaluation
    engine.generate(batch, greedy(4, 399))
    assert recorder.recorded == 1
    engine.forward(batch)
    assert torch.equal(engine.generate(batch, greedy(4, 399)), made)
    assert recorder.recorded == 2


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "smollm3"])
def test_every_kind_of_model_that_is_packed(kind: str) -> None:
    """With a tied head, and with prompts that leave just the answer's tokens."""
    torch.manual_seed(0)
    sizes = AutoConfig.for_model(
        kind, vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=None, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(sizes, attn_implementation=GROUPED)
    model = adapters.attach(base, AdapterConfig(r=4, alpha=8), name="fast", seed=1).eval()
    for parameter in adapters.parameters(model, "fast").values():
        parameter.normal_(std=0.2)
    engine, batch = Engine(model, Accelerator(), pad=PAD), prompts(5, 64 - 8)
    expected = engine.generate(batch, greedy(8, 2))
    recorder, _ = recorded(engine)
    assert torch.equal(engine.generate(batch, greedy(8, 2)), expected)
    assert recorder.replayed == 7


@torch.inference_mode()
def test_many_choices_go_in_several_passes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [[[5 + row, 6, 7], [8], [9, 10], [11, 12], [13]] for row in range(9)]
    expected = likelihoods(engine, prompts(), choices)
    recorded(engine)
    passes: list[int] = []
    engine.core.register_forward_hook(lambda *_: passes.append(1))
    for numbers, count in ((2**29, 2), (9 * 400 * 2, 4), (1, 6)):
        monkeypatch.setattr("ilora.model.ranking.NUMBERS", numbers)
        passes.clear()
        torch.testing.assert_close(likelihoods(engine, prompts(), choices), expected, rtol=1e-5, atol=1e-5)
        assert len(passes) <= count


def test_rows_at_once_are_bounded_by_tokens_and_memory(engine: Engine) -> None:
    _, decoding = recorded(engine)
    assert decoding.rows_at_once(64) == 512
    assert decoding.rows_at_once(1024) == 128
    assert decoding.rows_at_once(2**20) == 1
