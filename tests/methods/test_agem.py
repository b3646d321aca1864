"""A-GEM: its closed formula, the bound over a run, and the reference gradient against plain autograd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora.data.examples import Example
from ilora.methods.agem import AGEM
from ilora.model import adapters
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig, TrainingConfig
from tests.helpers import MakeConfig, trained, view


def rows(task: str, first: int) -> list[Example]:
    answers = [[9, 1], [12, 30, 31, 1], [1], [25, 1], [40, 41, 1]]
    return [
        Example(task, f"{task}/train/{n}", list(range(first + n, first + 3 * n + 1)), answer)
        for n, answer in enumerate(answers)
    ]


@pytest.fixture
def method(tiny_model: Path) -> AGEM:
    """A-GEM in its third task, in training mode with dropout that would be seen, with rows of all tasks in memory."""
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    model = adapters.attach(base, AdapterConfig(r=4, alpha=8, dropout=0.5), name="fast", seed=1)
    model.train()
    memory = ReplayMemory(20, seed=0)
    memory.offer(rows("one", 5) + rows("two", 60) + rows("three", 120))
    run = view(model, pad=1, memory=memory, task="three", task_index=3, step=9, current_tasks=frozenset({"three"}))
    made = AGEM(run, AGEM.Config(name="agem", memory_batch=6))
    torch.manual_seed(3)
    for parameter in made.trainable:
        parameter.data.normal_(std=0.2)
    return made


def gradient_by_hand(method: AGEM, examples: Sequence[Example], average: str = "tokens") -> Tensor:
    """Of the mean over answer tokens or over rows, row by row, by transformers and PEFT alone."""
    model = method.engine.model.eval()
    total = torch.zeros(sum(weight.numel() for weight in method.trainable))
    whole = sum(len(example.answer) for example in examples)
    for example in examples:
        ids = torch.tensor([example.prompt + example.answer])
        labels = torch.tensor([[-100] * len(example.prompt) + example.answer])
        loss = model(input_ids=ids, labels=labels).loss  # the row's mean
        share = loss / len(examples) if average == "rows" else loss * len(example.answer) / whole
        total += torch.cat([part.flatten() for part in torch.autograd.grad(share, method.trainable)])
    model.train()
    return total


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


# -- the formula -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "reference", "expected"),
    [
        pytest.param([1.0, 1.0], [-1.0, 0.0], [0.0, 1.0], id="violated"),
        pytest.param([1.0, 1.0], [-4.0, 0.0], [0.0, 1.0], id="longer"),
        pytest.param([1.0, 2.0], [-1.0, -1.0], [-0.5, 0.5], id="slanted"),
        pytest.param([2.0, 2.0], [-3.0, -3.0], [0.0, 0.0], id="opposite"),
        pytest.param([1.0, 1.0], [-1e-25, 0.0], [0.0, 1.0], id="its square underflows"),
        pytest.param([1.0, 1.0], [-1e25, 0.0], [0.0, 1.0], id="its square overflows"),
    ],
)
def test_projection_by_hand(method: AGEM, gradient: list[float], reference: list[float], expected: list[float]) -> None:
    """g - (g·g_ref / g_ref·g_ref) g_ref."""
    found = method.project(torch.tensor(gradient), torch.tensor([reference]))
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("reference", [[1.0, 0.0], [-1.0, 1.0], [2.0, -1.0], [0.0, 0.0]])
def test_no_violation_leaves_the_gradient(method: AGEM, reference: list[float]) -> None:
    gradient = torch.tensor([1.0, 1.0])
    assert method.project(gradient, torch.tensor([reference])) is gradient


def test_what_is_not_finite_stays_so(method: AGEM) -> None:
    """So that the loop refuses the step with its own message."""
    found = method.project(torch.tensor([1.0, 1.0]), torch.tensor([[torch.nan, 0.0]]))
    assert not bool(found.isfinite().all())


def test_bound_holds_over_a_run(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reference a step, from all earlier tasks; the gradient is turned where it opposes it, and only there."""
    steps: list[tuple[str, Tensor, Tensor, list[Tensor], set[str]]] = []
    references: list[Tensor] = []
    tasks: set[str] = set()
    before_step, reference, gradient = AGEM.before_step, AGEM.reference, AGEM.gradient

    def flat(method: AGEM) -> Tensor:
        return torch.cat([weight.grad.flatten() for weight in method.trainable if weight.grad is not None])

    def watching_steps(self: AGEM) -> None:
        references.clear()
        tasks.clear()
        before = flat(self)
        before_step(self)
        steps.append((self.position.task, before, flat(self), list(references), set(tasks)))

    def watching_references(self: AGEM, chosen: list[str]) -> Tensor:
        references.append(reference(self, chosen))
        return references[-1]

    def watching_rows(self: AGEM, examples: Sequence[Example]) -> Tensor:
        tasks.update(example.task for example in examples)
        return gradient(self, examples)

    monkeypatch.setattr(AGEM, "before_step", watching_steps)
    monkeypatch.setattr(AGEM, "reference", watching_references)
    monkeypatch.setattr(AGEM, "gradient", watching_rows)
    # A model that has learnt something: at its beginning, gradients of all tasks agree.
    settings = {"name": "agem", "memory_size": 30, "memory_batch": 30, "project": "gradient"}
    config = make_config("training.epochs=8", "training.learning_rate=0.03", method=settings)
    trained(config, tmp_path / "run")
    assert len(steps) == 3 * 24
    turned = 0
    for task, before, after, some, drawn in steps:
        assert drawn == {"one": set(), "two": {"one"}, "three": {"one", "two"}}[task]
        assert len(some) == (task != "one")
        if not some or before @ some[0] >= 0:
            assert torch.equal(before, after)
            continue
        turned += 1
        assert float(after @ some[0]) >= -1e-6 * float(before.norm() * some[0].norm())
        assert_same(after, before - (before @ some[0]) / (some[0] @ some[0]) * some[0])
        assert not torch.equal(before, after)
    assert 2 <= turned <= 46  # of 48: both branches were taken


# -- the reference gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["tokens", "rows"])
@pytest.mark.parametrize("micro", [1, 2, 8])
def test_gradient_equals_plain_autograd(method: AGEM, average: str, micro: int) -> None:
    """Whatever the micro-batch size, for rows marked as replayed or not; `.grad` is not touched."""
    method.run.training = TrainingConfig(loss_average=average, micro_batch_size=micro)
    for weight in method.trainable:
        weight.grad = torch.full_like(weight, 7.0)
    drawn = [*method.memory.draw(5, key="x"), *rows("new", 200)[:2]]
    assert {example.replayed for example in drawn} == {True, False}
    wanted = gradient_by_hand(method, drawn, average)
    assert_same(method.gradient(drawn), wanted)
    assert all(weight.grad is not None and bool((weight.grad == 7.0).all()) for weight in method.trainable)
    other = gradient_by_hand(method, drawn, "rows" if average == "tokens" else "tokens")
    assert float((other - wanted).norm()) > 0.01 * float(wanted.norm())  # the two settings differ here


def test_step_gradient_by_hand(method: AGEM, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.grad` after before_step, with the reference of the rows drawn, which are of the earlier tasks."""
    drawn: list[Example] = []
    gradient = AGEM.gradient

    def watching(self: AGEM, examples: Sequence[Example]) -> Tensor:
        drawn.extend(examples)
        return gradient(self, examples)

    monkeypatch.setattr(AGEM, "gradient", watching)
    step = torch.randn(sum(weight.numel() for weight in method.trainable)) * 0.01
    step -= gradient_by_hand(method, rows("one", 5) + rows("two", 60))
    for weight, part in zip(method.trainable, step.split([weight.numel() for weight in method.trainable]), strict=True):
        weight.grad = part.view_as(weight).clone()
    method.before_step()
    assert len({example.id for example in drawn}) == 6
    assert {example.task for example in drawn} == {"one", "two"}
    reference = gradient_by_hand(method, drawn)
    assert step @ reference < 0
    found = torch.cat([weight.grad.flatten() for weight in method.trainable if weight.grad is not None])
    assert_same(found, step - (step @ reference) / (reference @ reference) * reference)
