"""I-LoRA against its formulas: the moving average, the hidden-state gap, and what each ablation must equal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora import run
from ilora.data.examples import Batch, Example, Totals, collate
from ilora.errors import InputError
from ilora.methods.ilora import ILoRA, hidden_gap
from ilora.model import adapters
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig
from tests.helpers import SMALL, MakeConfig, after_each_step, move, trained, view

CURRENT = [Example("two", "a", [5, 6, 7, 8], [9, 1]), Example("two", "b", [10, 11], [12, 1])]
REPLAYED = [
    Example("one", "c", [13, 14, 15], [16, 1], replayed=True),
    Example("one", "d", [17], [18, 1], replayed=True),
]


@pytest.fixture
def method(tiny_model: Path) -> ILoRA:
    """I-LoRA with two adapters that differ."""
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    model = adapters.attach(base, AdapterConfig(r=4, alpha=8, dropout=0.0), name="fast", seed=1)
    run = view(model, pad=1, memory=ReplayMemory(10, seed=0))
    made = ILoRA(run, ILoRA.Config(name="ilora", ema_decay=0.9))
    made.begin_task()
    torch.manual_seed(3)
    for parameter in [*adapters.parameters(model, "fast").values(), *adapters.parameters(model, "slow").values()]:
        parameter.data.normal_(std=0.2)
    return made


def with_settings(method: ILoRA, **settings: object) -> ILoRA:
    return ILoRA(method.run, ILoRA.Config(name="ilora", **settings))


def flat(model: PeftModel, name: str) -> Tensor:
    return torch.cat([value.detach().flatten() for value in adapters.parameters(model, name).values()])


# -- the moving average ----------------------------------------------------------------------------------------


def test_ema_after_n_steps_equals_its_closed_form(method: ILoRA) -> None:
    """slow_n = λ^n slow_0 + (1 - λ) Σ λ^(n-k) fast_k."""
    model, decay, steps = method.engine.model, 0.9, 7
    expected = decay**steps * flat(model, "slow")
    for step in range(1, steps + 1):
        for parameter in adapters.parameters(model, "fast").values():
            parameter.data.normal_()
        expected = expected + (1 - decay) * decay ** (steps - step) * flat(model, "fast")
        method.after_step()
    torch.testing.assert_close(flat(model, "slow"), expected)


def test_ema_moves_a_and_b_not_their_product(method: ILoRA) -> None:
    model = method.engine.model
    before = {key: value.detach().clone() for key, value in adapters.parameters(model, "slow").items()}
    fast = adapters.parameters(model, "fast")
    method.after_step()
    for key, value in adapters.parameters(model, "slow").items():
        torch.testing.assert_close(value.detach(), 0.9 * before[key] + 0.1 * fast[key].detach())


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({"ema_decay": 0.98}, 1, 0.98),
        ({"ema_half_life_steps": 10}, 1, 0.5**0.1),
        ({"ema_half_life_share": 0.25}, 1, 0.5 ** (1 / (0.25 * 40))),
        ({"ema_decay": 0.98, "ema_warmup": True}, 1, 0.5),
        ({"ema_decay": 0.98, "ema_warmup": True}, 3, 0.75),
        ({"ema_decay": 0.98, "ema_warmup": True}, 1000, 0.98),
    ],
)
def test_decay(method: ILoRA, settings: dict[str, object], step: int, expected: float) -> None:
    move(method, step=step, task_steps=40)
    assert with_settings(method, **settings).decay() == pytest.approx(expected)


def test_the_half_life_halves(method: ILoRA) -> None:
    move(method, task_steps=40)
    assert with_settings(method, ema_half_life_share=0.25).decay() ** 10 == pytest.approx(0.5)


def test_slow_starts_as_a_copy_and_differs_after_training(make_config: MakeConfig, tmp_path: Path) -> None:
    still = run(make_config(*SMALL, "method.ema_decay=1"), tmp_path / "still", quiet=True)
    moving = run(make_config(*SMALL, "method.ema_decay=0.9"), tmp_path / "moving", quiet=True)
    following = run(make_config(*SMALL, "method.ema_decay=0"), tmp_path / "following", quiet=True)

    def tensors(folder: Path, name: str) -> Tensor:
        file = load_file(folder / "adapters" / "03-three" / name / "adapter_model.safetensors")
        return torch.cat([value.flatten() for value in file.values()])

    initial = load_file(still.path / "adapters" / "01-one" / "slow" / "adapter_model.safetensors")
    assert all(float(value.abs().max()) == 0 for key, value in initial.items() if "lora_B" in key)
    assert float((tensors(moving.path, "slow") - tensors(still.path, "slow")).abs().max()) > 1e-4
    assert float((tensors(moving.path, "slow") - tensors(moving.path, "fast")).abs().max()) > 1e-4
    assert torch.equal(tensors(following.path, "slow"), tensors(following.path, "fast"))


def test_next_task_from_slow(method: ILoRA) -> None:
    with_settings(method, next_task_from="slow").begin_task()
    assert torch.equal(flat(method.engine.model, "fast"), flat(method.engine.model, "slow"))


def test_one_decay_setting_only(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="give one of ema_decay"):
        make_config(method={"name": "ilora", "ema_decay": 0.9, "ema_half_life_steps": 3})


# -- the consistency term --------------------------------------------------------------------------------------


def test_gap_by_hand() -> None:
    fast = [torch.tensor([[[1.0, 2.0], [9.0, 9.0]]])]  # one row, two positions, two features
    slow = (torch.tensor([[[3.0, 1.0], [0.0, 0.0]]]),)
    mask = torch.tensor([[1, 0]])
    assert float(hidden_gap(fast, slow, mask=mask, tokens=1)) == pytest.approx((2**2 + 1**2) / 2)
    assert float(hidden_gap(fast, slow, mask=mask, tokens=1, one_sided=True)) == pytest.approx(2**2 / 2)
    assert float(hidden_gap(fast * 2, slow * 2, mask=mask, tokens=1)) == pytest.approx((2**2 + 1**2) / 2)


def gap_of(method: ILoRA, examples: list[Example]) -> float:
    method.run.terms.clear()
    method.loss(collate(examples, pad=0), Totals.of(examples))
    return float(method.run.terms["consistency"])


@pytest.mark.parametrize("layers", ["last", "all"])
def test_gap_ignores_padding_and_current_rows(method: ILoRA, layers: str) -> None:
    method = with_settings(method, consistency_layers=layers)
    alone = gap_of(method, REPLAYED)
    long_row = Example("two", "long", list(range(5, 35)), [9, 1])  # pads every other row by 27
    assert alone > 1e-3
    assert gap_of(method, [*REPLAYED, long_row]) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_gap_equals_plain_forwards_of_the_two_adapters(method: ILoRA, layers: str) -> None:
    """Row by row, without padding, with PEFT's own switch."""
    model = method.engine.model
    squares, count = 0.0, 0
    for example in REPLAYED:
        ids = torch.tensor([example.prompt + example.answer])
        states = []
        for name in ("fast", "slow"):
            model.set_adapter(name)
            with torch.no_grad():
                states.append(model(input_ids=ids, output_hidden_states=True).hidden_states)
        chosen = range(1, len(states[0])) if layers == "all" else [-1]
        squares += sum(float((states[0][k] - states[1][k]).square().sum()) for k in chosen) / len(chosen)
        count += states[0][-1].numel()
    model.set_adapter("fast")
    assert gap_of(with_settings(method, consistency_layers=layers), REPLAYED) == pytest.approx(
        squares / count, rel=1e-4
    )


@pytest.mark.parametrize("layers", ["last", "all"])
def test_states_are_those_of_forward(method: ILoRA, layers: Literal["last", "all"]) -> None:
    batch = collate(REPLAYED, pad=1)
    with torch.no_grad():
        whole = method.engine.forward(batch, hidden=layers).hidden
        alone = method.engine.states(batch, layers=layers)
        trimmed = method.engine.states(collate(REPLAYED[1:], pad=1), layers=layers)
    assert len(alone) == len(whole) == (2 if layers == "all" else 1)
    for first, second, third in zip(whole, alone, trimmed, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(first[1:, -len(REPLAYED[1]) :], third, rtol=1e-5, atol=1e-5)


def test_gap_pulls_the_fast_adapter_only(method: ILoRA) -> None:
    """Its gradient is that of finite differences in the fast weights, and the slow ones get none."""
    examples = CURRENT + REPLAYED
    batch, totals = collate(examples, pad=0), Totals.of(examples)
    method = with_settings(method, strength=3.0)
    loss = method.loss(batch, totals)
    loss.backward()
    model = method.engine.model
    assert all(parameter.grad is None for parameter in adapters.parameters(model, "slow").values())
    parameter = max(adapters.parameters(model, "fast").values(), key=lambda item: float(item.grad.abs().max()))
    index = int(parameter.grad.abs().argmax())
    slope = finite_difference(method, batch, totals, parameter, index)
    assert float(parameter.grad.flatten()[index]) == pytest.approx(slope, rel=2e-2)


def finite_difference(method: ILoRA, batch: Batch, totals: Totals, parameter: Tensor, index: int) -> float:
    values, step = [], 1e-2
    for sign in (1, -1):
        with torch.no_grad():
            parameter.view(-1)[index] += sign * step
            values.append(float(method.loss(batch, totals)))
            parameter.view(-1)[index] -= sign * step
    return (values[0] - values[1]) / (2 * step)


def test_loss_is_half_current_half_replayed_plus_gap(method: ILoRA) -> None:
    def plain(examples: list[Example]) -> float:
        sums, labels = 0.0, 0
        for example in examples:
            ids = torch.tensor([example.prompt + example.answer])
            target = ids.clone()
            target[0, : len(example.prompt)] = -100
            with torch.no_grad():
                sums += float(method.engine.model(input_ids=ids, labels=target).loss) * len(example.answer)
            labels += len(example.answer)
        return sums / labels

    examples = CURRENT + REPLAYED
    method = with_settings(method, strength=0.7)
    loss = float(method.loss(collate(examples, pad=0), Totals.of(examples)))
    expected = 0.5 * plain(CURRENT) + 0.5 * plain(REPLAYED) + 0.7 * gap_of(method, REPLAYED)
    assert loss == pytest.approx(expected, rel=1e-4)
    method = with_settings(method, strength=0.7, replayed_loss=False)
    loss = float(method.loss(collate(examples, pad=0), Totals.of(examples)))
    assert loss == pytest.approx(plain(CURRENT) + 0.7 * gap_of(method, REPLAYED), rel=1e-4)


def test_first_task_is_cross_entropy_alone(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[str]]] = []
    after_each_step(monkeypatch, lambda method: seen.append((method.position.task_index, set(method.run.terms))))
    trained(make_config(*SMALL), tmp_path / "run")
    assert {frozenset(terms) for task, terms in seen if task == 1} == {frozenset({"ce"})}
    assert {frozenset(terms) for task, terms in seen if task > 1} == {frozenset({"ce", "ce_replayed", "consistency"})}


def test_strength_zero_leaves_er_whatever_the_decay(make_config: MakeConfig, tmp_path: Path) -> None:
    neutral = [
        trained(make_config(*SMALL, "method.strength=0", f"method.ema_decay={decay}"), tmp_path / str(decay))
        for decay in (0.0, 0.5, 1.0)
    ]
    er = trained(make_config(*SMALL, method={"name": "er", "memory_size": 20}), tmp_path / "er")
    assert er
    for left in neutral:
        assert all(torch.equal(left[key], value) for key, value in er.items())


def test_consistency_changes_training(make_config: MakeConfig, tmp_path: Path) -> None:
    off, on = (
        run(make_config(*SMALL, f"method.strength={strength}"), tmp_path / str(strength), quiet=True)
        for strength in (0, 5)
    )
    first, second = (
        load_file(result.path / "adapters" / "03-three" / "fast" / "adapter_model.safetensors") for result in (off, on)
    )
    assert max(float((first[key] - second[key]).abs().max()) for key in first) > 1e-4
    assert math.isfinite(on.results["variants"]["slow"]["summary"]["OP"])
