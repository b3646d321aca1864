"""The optimizer step against plain transformers and hand-made numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from ilora.data.examples import Batch, Example, Totals
from ilora.errors import IloraError
from ilora.methods import METHODS, Method
from ilora.model import adapters
from ilora.model.fitting import halve
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig, TrainingConfig
from ilora.training.divergence import DivergenceError
from ilora.training.loop import Plan, StepReport, optimizer_step
from ilora.training.optim import make_optimizer, schedule
from tests.helpers import move, train_with, view

PAD = 1


def example(number: int, prompt: int, answer: int, *, replayed: bool = False) -> Example:
    """A row of random tokens with these lengths; the answer ends with end-of-text."""
    source = torch.Generator().manual_seed(number)
    ids = torch.randint(2, 300, (prompt + answer - 1,), generator=source).tolist()
    return Example("one", f"one/train/{number}", ids[:prompt], [*ids[prompt:], 1], replayed=replayed)


# Seven rows of different lengths: any micro-batch size leaves a ragged last one.
ROWS = [example(n, p, a) for n, (p, a) in enumerate([(3, 2), (9, 1), (1, 6), (5, 3), (12, 4), (2, 1), (7, 2)])]


def make(
    folder: Path, method: str = "sequential", *, dropout: float = 0.0, target: str = "v_proj", **settings: Any
) -> Method:
    """A method on the tiny model, its adapter away from zero, at step 1 of 10 of its first task."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    wrapped = adapters.attach(
        base, AdapterConfig(r=4, alpha=8, dropout=dropout, target_modules=[target]), name="fast", seed=0
    )
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters(wrapped, "fast").values():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.2)
    memory = ReplayMemory(settings.get("memory_size", 0), seed=0)
    run = view(wrapped.train(), pad=PAD, memory=memory, task="one", task_index=1, current_tasks=frozenset({"one"}))
    made = METHODS[method](run, METHODS[method].Config(name=method, **settings))
    move(made, task_step=1, task_steps=10, step=1)
    made.begin_task()
    return made


def step(
    method: Method,
    rows: Sequence[Example] = ROWS,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    **settings: Any,
) -> StepReport:
    """One optimizer step; without clipping and warm-up, unless told otherwise."""
    config = TrainingConfig(**{"max_grad_norm": None, "warmup_ratio": 0.0} | settings)
    train_with(method, **{"max_grad_norm": None, "warmup_ratio": 0.0} | settings)
    optimizer = optimizer or make_optimizer(method.trainable, config)
    return optimizer_step(method, optimizer, list(rows))


def weights(method: Method) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in adapters.state(method.engine.model).items()}


def gradients(method: Method) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in method.trainable if parameter.grad is not None]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def plain_loss(method: Method, rows: Sequence[Example]) -> Tensor:
    """transformers' own loss on the rows, padded on the right: the mean over all answer tokens."""
    length = max(map(len, rows))
    ids, labels = torch.full((len(rows), length), PAD), torch.full((len(rows), length), -100)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row.prompt + row.answer)
        labels[number, len(row.prompt) : len(row)] = torch.tensor(row.answer)
    mask = (torch.arange(length) < torch.tensor([[len(row)] for row in rows])).long()
    loss: Tensor = method.engine.model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


def plain_gradients(method: Method, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, method.trainable))


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_each_row_once_an_epoch_and_a_smaller_last_batch() -> None:
    plan = Plan(seed=0, task="one", rows=10, batch=4, epochs=3)
    batches = list(plan.batches())
    assert (plan.steps_per_epoch, plan.steps) == (3, 9)
    assert [number for number, _, _ in batches] == list(range(1, 10))
    assert [epoch for _, epoch, _ in batches] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [len(rows) for _, _, rows in batches] == [4, 4, 2] * 3
    orders = [[row for _, at, rows in batches if at == epoch for row in rows] for epoch in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (3, 3), (4, 4), (9, 9), (10, 9)])
def test_at_most_so_many_steps_are_the_first_ones(most: int, expected: int) -> None:
    whole = Plan(seed=0, task="one", rows=10, batch=4, epochs=3)
    plan = replace(whole, most=most)
    assert plan.steps == expected
    assert list(plan.batches()) == list(whole.batches())[:expected]
    assert [plan.epoch(number) for number, _, _ in plan.batches()] == [epoch for _, epoch, _ in plan.batches()]


@pytest.mark.parametrize("most", [None, 5])
@pytest.mark.parametrize("first", range(1, 11))
def test_a_resume_is_a_slice_of_the_plan(first: int, most: int | None) -> None:
    plan = Plan(seed=3, task="one", rows=10, batch=4, epochs=3, most=most)
    assert list(plan.batches(first)) == list(plan.batches())[first - 1 :]


def test_the_order_depends_on_seed_and_task_alone() -> None:
    plan = Plan(seed=0, task="one", rows=10, batch=4, epochs=1)
    torch.manual_seed(5)
    assert list(plan.batches()) == list(replace(plan).batches())
    orders = {str(list(p.batches())) for p in (plan, replace(plan, seed=1), replace(plan, task="two"))}
    assert len(orders) == 3


# -- loss and gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 100])
def test_a_step_is_that_of_plain_transformers(tiny_model: Path, micro_batch_size: int) -> None:
    method = make(tiny_model)
    expected = plain_loss(method, ROWS)
    wanted = plain_gradients(method, expected)
    for parameter in method.trainable:
        parameter.grad = torch.ones_like(parameter)  # left over: must not count
    report = step(method, micro_batch_size=micro_batch_size)
    assert report.loss == pytest.approx(expected.item(), rel=1e-5)
    assert report.terms == {"ce": pytest.approx(expected.item(), rel=1e-5)}
    torch.testing.assert_close(gradients(method), wanted, rtol=1e-4, atol=1e-6)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in wanted))
    assert report.grad_norm == pytest.approx(norm, rel=1e-4)
    assert report.tokens == 3 + 2 + 9 + 1 + 1 + 6 + 5 + 3 + 12 + 4 + 2 + 1 + 7 + 2


def test_padding_does_not_shift_absolute_positions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    sizes.resid_pdrop = sizes.embd_pdrop = sizes.attn_pdrop = 0.0
    GPT2LMHeadModel(sizes).save_pretrained(tmp_path)
    method = make(tmp_path, target="c_attn")
    expected = plain_loss(method, ROWS)
    wanted = plain_gradients(method, expected)
    assert step(method, micro_batch_size=4).loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradients(method), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [2, 7])
def test_the_mean_over_rows(tiny_model: Path, micro_batch_size: int) -> None:
    method = make(tiny_model)
    expected = torch.stack([plain_loss(method, [row]) for row in ROWS]).mean()
    wanted = plain_gradients(method, expected)
    assert abs((expected - plain_loss(method, ROWS)).item()) > 1e-3  # not the mean over tokens
    report = step(method, micro_batch_size=micro_batch_size, loss_average="rows")
    assert report.loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradients(method), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 100])
def test_replayed_rows_weigh_half_however_they_are_split(tiny_model: Path, micro_batch_size: int) -> None:
    method = make(tiny_model)
    replayed = [replace(row, replayed=True) for row in ROWS[4:]]
    now, old = plain_loss(method, ROWS[:4]), plain_loss(method, ROWS[4:])
    wanted = plain_gradients(method, 0.5 * now + 0.5 * old)
    report = step(method, [*ROWS[:4], *replayed], micro_batch_size=micro_batch_size)
    assert report.terms == {
        "ce": pytest.approx(now.item(), rel=1e-5),
        "ce_replayed": pytest.approx(old.item(), rel=1e-5),
    }
    torch.testing.assert_close(gradients(method), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 100])
def test_a_penalty_counts_once(tiny_model: Path, micro_batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(tiny_model)
    before = [parameter.detach().clone() for parameter in method.trainable]
    data = plain_loss(method, ROWS)
    wanted = [gradient + weight for gradient, weight in zip(plain_gradients(method, data), before, strict=True)]
    squares = 0.5 * sum(float(weight.square().sum()) for weight in before)
    monkeypatch.setattr(method, "penalty", lambda: 0.5 * sum(p.square().sum() for p in method.trainable))
    report = step(method, micro_batch_size=micro_batch_size)
    assert report.terms["penalty"] == pytest.approx(squares, rel=1e-5)
    assert report.loss == pytest.approx(data.item() + squares, rel=1e-5)
    torch.testing.assert_close(gradients(method), wanted, rtol=1e-4, atol=1e-6)


def test_clipping(tiny_model: Path) -> None:
    free = make(tiny_model)
    report = step(free)
    limit = report.grad_norm / 4
    clipped, loose = make(tiny_model), make(tiny_model)
    assert step(clipped, max_grad_norm=limit).grad_norm == pytest.approx(report.grad_norm)
    torch.testing.assert_close(gradients(clipped), [gradient / 4 for gradient in gradients(free)], rtol=1e-3, atol=0)
    step(loose, max_grad_norm=2 * report.grad_norm)
    torch.testing.assert_close(gradients(loose), gradients(free), rtol=0, atol=0)


def test_dropout_depends_on_the_step_and_not_on_the_random_state(tiny_model: Path) -> None:
    results = []
    for noise, number in ((1, 5), (2, 5), (1, 6)):
        method = make(tiny_model, dropout=0.5)
        move(method, step=number)
        torch.manual_seed(noise)
        results.append(step(method, micro_batch_size=3).loss)
    assert results[0] == results[1] != results[2]
    assert step(make(tiny_model)).loss not in results  # without dropout


# -- the optimizer -----------------------------------------------------------------------------------------------------


def test_the_first_step_of_adamw(tiny_model: Path) -> None:
    """From zero moments, AdamW moves every weight by lr · g / (|g| + ε)."""
    method = make(tiny_model)
    before = [parameter.detach().clone() for parameter in method.trainable]
    report = step(method, learning_rate=0.01)
    assert report.learning_rate == 0.01
    for weight, parameter, gradient in zip(before, method.trainable, gradients(method), strict=True):
        torch.testing.assert_close(parameter.detach(), weight - 0.01 * gradient / (gradient.abs() + 1e-8))


def test_a_step_that_is_launched_before_its_figures_are_read_is_the_same(tiny_model: Path) -> None:
    found = []
    for fused in (False, True):
        method = make(tiny_model, "ilora", memory_size=4)
        optimizer = torch.optim.AdamW(method.trainable, fused=fused)
        for number in range(3):
            move(method, task_step=number + 1, step=number + 1)
            step(method, optimizer=optimizer, learning_rate=0.01, max_grad_norm=0.5)
        found.append(weights(method))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weight_decay_only_where_it_is_set(tiny_model: Path, decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(tiny_model)
    before = weights(method)
    loss = method.loss
    monkeypatch.setattr(method, "loss", lambda batch, totals: 0.0 * loss(batch, totals))
    step(method, learning_rate=0.1, weight_decay=decay)
    for key, value in weights(method).items():
        torch.testing.assert_close(value, before[key] * (1 - 0.1 * decay))


def test_the_rate_of_the_step_is_the_one_that_is_used(tiny_model: Path) -> None:
    still, moved = make(tiny_model), make(tiny_model)
    report = step(still, learning_rate=0.02, warmup_ratio=1.0)  # step 1 of 10
    assert report.learning_rate == pytest.approx(0.002)
    step(moved, learning_rate=0.002)
    assert same(weights(still), weights(moved))


CURVES = {
    "constant": [1.0] * 6,
    "linear": [1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6],
    "cosine": [1.0, (2 + 3**0.5) / 4, 0.75, 0.5, 0.25, (2 - 3**0.5) / 4],
}


@pytest.mark.parametrize("curve", CURVES)
def test_schedule_by_hand(curve: Any) -> None:
    config = TrainingConfig(schedule=curve, warmup_ratio=0.25)
    assert [schedule(number, 8, config) for number in range(1, 9)] == pytest.approx([0.5, 1.0, *CURVES[curve]])
    cold = config.model_copy(update={"warmup_ratio": 0.0})
    assert [schedule(number, 6, cold) for number in range(1, 7)] == pytest.approx(CURVES[curve])
    warm = config.model_copy(update={"warmup_ratio": 1.0})
    assert [schedule(number, 4, warm) for number in range(1, 5)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert schedule(1, 1, config) == 1.0  # a task of one step


def test_a_method_may_have_a_learning_rate_of_its_own(tiny_model: Path) -> None:
    method = make(tiny_model, learning_rate=0.02)
    assert step(method, learning_rate=0.5).learning_rate == 0.02
    assert step(make(tiny_model), learning_rate=0.5).learning_rate == 0.5


# -- lost losses -------------------------------------------------------------------------------------------------------


def not_a_number(method: Method, monkeypatch: pytest.MonkeyPatch) -> str:
    loss = method.loss
    monkeypatch.setattr(method, "loss", lambda batch, totals: loss(batch, totals) * math.nan)
    return r"the loss is not finite \(nan\) at task 'one', step 3 of 10 \(step 23 of the run, "


def infinite_gradient(method: Method, monkeypatch: pytest.MonkeyPatch) -> str:
    method.trainable[-1].register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), math.inf))
    return r"the gradient is not finite .* at task 'one', step 3 of 10"


def infinite_penalty(method: Method, monkeypatch: pytest.MonkeyPatch) -> str:
    parameter = method.trainable[0]
    monkeypatch.setattr(method, "penalty", lambda: (parameter.sum() / 0.0).abs())
    return r"the loss is not finite \(inf\)"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("break_it", [not_a_number, infinite_gradient, infinite_penalty])
def test_divergence_leaves_weights_and_optimizer_alone(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, break_it: Any, fused: bool
) -> None:
    """fused: as on a GPU, where the step is launched before its figures are read."""
    method = make(tiny_model, "ilora", memory_size=4)
    optimizer = torch.optim.AdamW(method.trainable, fused=fused)
    step(method, optimizer=optimizer)
    before, moments = weights(method), str(optimizer.state_dict()["state"])
    move(method, task_step=3, step=23)
    message = break_it(method, monkeypatch)
    with pytest.raises(DivergenceError, match=message):
        step(method, optimizer=optimizer, micro_batch_size=3, max_grad_norm=1.0)
    assert same(weights(method), before)
    assert str(optimizer.state_dict()["state"]) == moments


# -- memory for time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sequential", "er", "ilora", "derpp", "lwf", "ewc", "gem", "l2p", "progressive_prompts", "migu", "seekr"]
)
def test_gradient_checkpointing_changes_nothing_but_the_work(tiny_model: Path, name: str) -> None:
    """The backward pass computes again with the adapter, the soft prompt and the dropout of the forward pass."""
    results, forwards = [], []
    for checkpointing in (False, True):
        replays = "memory_size" in METHODS[name].Config.model_fields
        method = make(tiny_model, name, dropout=0.3, **({"memory_size": 8} if replays else {}))
        method.memory.offer([replace(row, task="zero") for row in ROWS])
        if checkpointing:
            method.engine.core.gradient_checkpointing_enable({"use_reentrant": False})
        calls: list[int] = []
        method.engine.core.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        optimizer = make_optimizer(method.trainable, TrainingConfig())
        for number in (1, 2, 3):
            move(method, step=number, task_step=number)
            report = step(method, optimizer=optimizer, micro_batch_size=3, learning_rate=0.01)
        assert name != "ilora" or report.terms["consistency"] > 0
        results.append(weights(method))
        forwards.append(len(calls))
    assert forwards[1] > forwards[0]  # it did recompute
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-5, atol=1e-6)


# -- memory ------------------------------------------------------------------------------------------------------------


def short_of_memory(method: Method[Any], tokens: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on a pass over more tokens fails, padding counted; the sizes in rows that went through."""
    went: list[int] = []
    loss = method.loss

    def failing(batch: Batch, totals: Totals) -> torch.Tensor:
        if batch.input_ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
        went.append(len(batch.examples))
        return loss(batch, totals)

    monkeypatch.setattr(method, "loss", failing)
    return went


@pytest.mark.parametrize("size", [100, "auto"])
def test_out_of_memory_the_step_is_taken_in_smaller_parts(
    tiny_model: Path, size: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(tiny_model)
    expected = step(whole, micro_batch_size=100)
    method = make(tiny_model)
    longest = max(map(len, ROWS))
    went = short_of_memory(method, 3 * longest, monkeypatch)
    report = step(method, micro_batch_size=size)
    assert report.loss == pytest.approx(expected.loss, rel=1e-5)
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert report.terms == pytest.approx(expected.terms, rel=1e-5)
    engine = method.engine
    if size == "auto":
        assert engine.micro_batch_tokens is not None
        assert engine.micro_batch_tokens // longest <= 3
    else:
        assert engine.micro_batch_size in (1, 2, 3)
    went.clear()
    step(method, micro_batch_size=engine.micro_batch_size)
    assert sum(went) == len(ROWS)  # the next step begins with parts that fit


def test_where_one_row_does_not_fit_the_message_says_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(tiny_model)
    short_of_memory(method, 1, monkeypatch)
    with pytest.raises(IloraError, match=r"single rows of up to \d+ tokens .*gradient_checkpointing"):
        step(method, micro_batch_size=4)


def test_tokens_are_counted_with_their_padding(tiny_model: Path) -> None:
    engine = make(tiny_model).engine
    engine.micro_batch_size, engine.micro_batch_tokens = "auto", 20
    rows = [Example("one", f"{size}", list(range(2, 1 + size)), [1]) for size in (12, 9, 8, 5, 4, 4, 3)]
    assert [[len(row) for row in part] for part in engine.split(rows)] == [[12], [9, 8], [5, 4, 4, 3]]
    engine.micro_batch_tokens = None
    assert len(list(engine.split(rows))) == 1


def test_halving_ends_whatever_the_longest_row(tiny_model: Path) -> None:
    """One row that is longer than all the others together is no part that could be halved."""
    engine = make(tiny_model).engine
    rows = [Example("one", "long", [2] * 5000, [1]), *(Example("one", f"{n}", [2] * 100, [1]) for n in range(10))]
    engine.micro_batch_size = "auto"
    for _ in range(20):
        if not halve(engine, rows):
            break
    assert [len(part) for part in engine.split(rows)] == [1] * 11


def test_a_step_that_is_taken_again_counts_its_rows_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(tiny_model)
    short_of_memory(method, 2 * max(map(len, ROWS)), monkeypatch)
    step(method, micro_batch_size=100)
    assert method.engine.passes == {"forward": len(ROWS), "backward": len(ROWS)}
