"""EWC against its formulas: the Fisher row by row, the penalty and its gradient, and what many quadratics add up to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora import run
from ilora.data.examples import Batch, Example
from ilora.methods.ewc import EWC
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.passes import Output
from ilora.settings import AdapterConfig, TrainingConfig
from tests.helpers import SMALL, MakeConfig, view

PROMPTS = [[5, 6, 7, 8], [10, 11], [13, 14, 15, 16, 17, 18], [19], [20, 21, 22]]
ANSWERS = [[9, 1], [12, 30, 31, 1], [1], [25, 1], [40, 41, 1]]
ROWS = [Example("one", f"one/train/{n}", *pair) for n, pair in enumerate(zip(PROMPTS, ANSWERS, strict=True))]


@pytest.fixture
def method(tiny_model: Path) -> EWC:
    """EWC in training mode, with dropout that would be seen, at weights where no gradient is zero."""
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    model = adapters.attach(base, AdapterConfig(r=4, alpha=8, dropout=0.5), name="fast", seed=1)
    model.train()
    run = view(model, pad=1, task="one", rows=ROWS)
    made = EWC(run, EWC.Config(name="ewc"))
    torch.manual_seed(3)
    for parameter in made.trainable:
        parameter.data.normal_(std=0.2)
    return made


def with_settings(method: EWC, **settings: object) -> EWC:
    return EWC(method.run, EWC.Config(name="ewc", **settings))


def fisher_by_hand(method: EWC, rows: list[Example]) -> list[Tensor]:
    """The mean over rows of the squared gradient of log p(answer | prompt), by transformers and PEFT alone."""
    model = method.engine.model.eval()
    total = [torch.zeros_like(weight) for weight in method.trainable]
    for example in rows:
        ids = torch.tensor([example.prompt + example.answer])
        predicted = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1].log_softmax(-1)
        likelihood = torch.stack([step[token] for step, token in zip(predicted, example.answer, strict=True)]).sum()
        for square, gradient in zip(total, torch.autograd.grad(likelihood, method.trainable), strict=True):
            square += gradient**2 / len(rows)
    model.train()
    return total


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.max()))


# -- the Fisher information ------------------------------------------------------------------------------------


def test_fisher_equals_squared_gradients_of_single_rows(method: EWC) -> None:
    found = method.fisher()
    assert all(float(importance.max()) > 0 for importance in found)
    assert_same(found, fisher_by_hand(method, ROWS))
    assert all(weight.grad is None for weight in method.trainable)


@pytest.mark.parametrize(("micro", "whole"), [(1, 1), (2, 16), (8, 3)])
def test_fisher_does_not_depend_on_batch_sizes(method: EWC, micro: int, whole: int) -> None:
    before = method.fisher()
    method.run.training = TrainingConfig(micro_batch_size=micro, global_batch_size=whole)
    for ours, theirs in zip(method.fisher(), before, strict=True):
        assert torch.equal(ours, theirs)


def test_fisher_rows_are_the_same_again(method: EWC, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    forward = Engine.forward

    def watching(self: Engine, batch: Batch, **options: bool) -> Output:
        seen.extend(example.id for example in batch.examples)
        return forward(self, batch, **options)  # type: ignore[arg-type]

    def rows_of(**settings: object) -> list[str]:
        seen.clear()
        with_settings(method, **settings).fisher()
        return list(seen)

    monkeypatch.setattr(Engine, "forward", watching)
    few = rows_of(fisher_rows=3)
    assert len(set(few)) == len(few) == 3
    assert rows_of(fisher_rows=3) == few
    assert sorted(rows_of(fisher_rows=99)) == [example.id for example in ROWS]
    chosen = [example for example in ROWS if example.id in few]
    assert_same(with_settings(method, fisher_rows=3).fisher(), fisher_by_hand(method, chosen))


# -- the penalty -----------------------------------------------------------------------------------------------


def in_double(method: EWC, seed: int = 5) -> EWC:
    """Weights in float64, and one task behind it with random importance and anchor."""
    torch.manual_seed(seed)
    for weight in method.trainable:
        weight.data = weight.data.double()
    method.importance = [torch.rand_like(weight.data) for weight in method.trainable]
    method.anchor = [torch.randn_like(weight.data) for weight in method.trainable]
    return method


def value(method: EWC) -> float:
    penalty = method.penalty()
    assert penalty is not None
    return penalty.item()


def test_penalty_and_its_gradient(method: EWC) -> None:
    """strength / 2 · Σ F (θ - θ*)², with the gradient strength · F · (θ - θ*), which finite differences find too."""
    method = in_double(with_settings(method, strength=7.0))
    parts = list(zip(method.importance, method.trainable, method.anchor, strict=True))
    by_hand = sum(float((f * (weight.detach() - anchor) ** 2).sum()) for f, weight, anchor in parts) * 7.0 / 2
    assert value(method) == pytest.approx(by_hand, rel=1e-12)
    penalty = method.penalty()
    assert penalty is not None
    gradients = torch.autograd.grad(penalty, method.trainable)
    for gradient, (importance, weight, anchor) in zip(gradients, parts, strict=True):
        torch.testing.assert_close(gradient, 7.0 * importance * (weight.detach() - anchor))
        values, step = [], 1e-3
        for sign in (1, -1):
            weight.data.view(-1)[11] += sign * step
            values.append(value(method))
            weight.data.view(-1)[11] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)  # exact for a quadratic, but for rounding
        assert float(gradient.view(-1)[11]) == pytest.approx(slope, rel=1e-6)


def test_no_penalty_before_the_second_task_and_zero_at_its_start(method: EWC) -> None:
    assert method.penalty() is None
    method.end_task()
    assert value(method) == 0.0
    method.trainable[0].data += 0.1
    assert value(method) > 0.0


# -- several tasks ---------------------------------------------------------------------------------------------


def end_tasks(method: EWC, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Three tasks with random importance, some of it exactly 0; returns each task's importance and weights."""
    tasks = []
    for _ in range(3):
        new = [torch.rand_like(weight.data) * (torch.rand_like(weight.data) > 0.5) for weight in method.trainable]
        for weight in method.trainable:
            weight.data.normal_()
        tasks.append((new, [weight.detach().clone() for weight in method.trainable]))
        monkeypatch.setattr(method, "fisher", lambda new=new: [importance.clone() for importance in new])
        method.end_task()
    return tasks


def test_merged_quadratic_has_the_gradient_of_the_sum(method: EWC, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its value differs by a constant from Σ_k strength / 2 · Σ_i F_k,i (θ_i - θ*_k,i)²."""
    method = with_settings(method, strength=3.0, fisher="per_task")
    in_double(method).importance = []
    tasks = end_tasks(method, monkeypatch)
    nowhere = torch.cat([sum(parts).flatten() == 0 for parts in zip(*(new for new, _ in tasks), strict=True)])  # type: ignore[arg-type]
    assert 0 < int(nowhere.sum()) < len(nowhere)  # some weights matter to no task
    constants = []
    for _ in range(3):
        for weight in method.trainable:
            weight.data.normal_()
        separate = torch.stack(
            [
                1.5 * (importance * (weight - anchor) ** 2).sum()
                for new, anchors in tasks
                for importance, weight, anchor in zip(new, method.trainable, anchors, strict=True)
            ]
        ).sum()
        merged = method.penalty()
        assert merged is not None
        found, wanted = (torch.autograd.grad(penalty, method.trainable) for penalty in (merged, separate))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        constants.append(separate.item() - merged.item())
    assert constants == pytest.approx([constants[0]] * 3, rel=1e-9)
    assert constants[0] > 1.0


def test_online_has_one_anchor_and_forgets_importance(method: EWC, monkeypatch: pytest.MonkeyPatch) -> None:
    method = with_settings(method, fisher="online", decay=0.8)
    in_double(method).importance = []
    (first, _), (second, _), (third, newest) = end_tasks(method, monkeypatch)
    for got, one, two, three in zip(method.importance, first, second, third, strict=True):
        torch.testing.assert_close(got, 0.64 * one + 0.8 * two + three)
    for anchor, weight in zip(method.anchor, newest, strict=True):
        assert torch.equal(anchor, weight)


@pytest.mark.parametrize("fisher", ["per_task", "online"])
def test_state_round_trip(method: EWC, fisher: str) -> None:
    method = with_settings(method, fisher=fisher)
    other = with_settings(method, fisher=fisher)
    other.load_state_dict(method.state_dict())
    assert other.penalty() is None
    method.end_task()
    other.load_state_dict({key: tensor.clone() for key, tensor in method.state_dict().items()})
    for each in (method, other):
        torch.manual_seed(8)
        for weight in each.trainable:
            weight.data.normal_(std=0.3)
        each.end_task()  # goes on from the state
        each.trainable[0].data += 0.1
    assert value(other) == value(method) > 0
    state, again = method.state_dict(), other.state_dict()
    assert {key.partition(".")[0] for key in state} == {"importance", "anchor"}
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)


# -- a run -----------------------------------------------------------------------------------------------------


def test_a_huge_strength_holds_the_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    """The first task is sequential training; in the second one the weights hardly move."""
    drift, first = {}, {}
    for name, strength in (("sequential", None), ("ewc", 1e8)):
        settings = {"name": name} | ({} if strength is None else {"strength": strength})
        config = make_config(*SMALL, "data.tasks=[one, two]", "training.epochs=8", method=settings)
        result = run(config, tmp_path / name, quiet=True)
        one, two = (
            load_file(result.path / "adapters" / label / "fast" / "adapter_model.safetensors")
            for label in ("01-one", "02-two")
        )
        first[name] = one
        drift[name] = float(torch.cat([(two[key] - one[key]).flatten() for key in one]).norm())
    assert all(torch.equal(first["ewc"][key], first["sequential"][key]) for key in first["ewc"])
    assert drift["ewc"] < 0.3 * drift["sequential"]
    lines = [json.loads(line) for line in (tmp_path / "ewc" / "metrics.jsonl").read_text().splitlines()]
    assert all("penalty" not in line["terms"] for line in lines if line["task_index"] == 1)
    second = [line["terms"]["penalty"] for line in lines if line["task_index"] == 2]
    assert second[0] == 0.0
    assert min(second[1:]) > 0.0
