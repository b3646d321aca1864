"""LwF: who the teacher is, and the distillation term against its formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora.data.examples import Example, Totals, collate
from ilora.methods.lwf import LwF, distillation
from ilora.model import adapters
from ilora.settings import AdapterConfig
from tests.helpers import MakeConfig, trained, view

ROWS = [
    Example("two", "two/train/0", [5, 6, 7, 8], [9, 1]),
    Example("two", "two/train/1", [10, 11], [12, 30, 31, 1]),
    Example("two", "two/train/2", [13, 14, 15, 16, 17], [1]),
]


@pytest.fixture
def method(tiny_model: Path) -> LwF:
    """LwF in its second task, after a few steps: teacher and student differ."""
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    model = adapters.attach(base, AdapterConfig(r=4, alpha=8, dropout=0.0), name="fast", seed=1)
    model.train()
    run = view(model, pad=1, task_index=2)
    made = LwF(run, LwF.Config(name="lwf", strength=0.7, temperature=1.5))
    torch.manual_seed(3)
    for _ in range(2):
        made.begin_task()
        for parameter in made.trainable:
            parameter.data.normal_(std=0.2)
    return made


def flat(model: PeftModel, name: str) -> Tensor:
    return torch.cat([value.detach().flatten() for value in adapters.parameters(model, name).values()])


# -- the term --------------------------------------------------------------------------------------------------


def by_hand(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """τ² Σ_tokens Σ_v p_v (log p_v - log q_v), p the teacher's and q the student's, in float64."""
    p = (teacher.double() / temperature).exp()
    q = (student.double() / temperature).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return temperature**2 * (p * (p.log() - q.log())).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_distillation_by_hand(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(6, 11), 2 * torch.randn(6, 11)
    found = distillation(student, teacher, temperature=temperature)
    assert float(found) == pytest.approx(float(by_hand(student, teacher, temperature)), rel=1e-5)
    torch_says = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher / temperature),
        torch.distributions.Categorical(logits=student / temperature),
    )
    torch.testing.assert_close(found, temperature**2 * torch_says.sum(), rtol=1e-5, atol=0)
    assert float(distillation(student, student, temperature=temperature)) == 0.0
    assert float(distillation(student + 3.0, student, temperature=temperature)) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gradient_of_distillation(temperature: float) -> None:
    """τ (softmax(z / τ) - softmax(z_teacher / τ)), and finite differences of the formula find the same."""
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7)
    (gradient,) = torch.autograd.grad(distillation(student, teacher, temperature=temperature), student)
    student = student.detach()
    closed = temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1))
    torch.testing.assert_close(gradient, closed, rtol=1e-4, atol=1e-6)
    slopes = torch.zeros(21, dtype=torch.float64)
    for n in range(21):
        nudge = torch.zeros(21, dtype=torch.float64)
        nudge[n] = 1e-5
        above, below = (by_hand(student + sign * nudge.view(3, 7), teacher, temperature) for sign in (1, -1))
        slopes[n] = (above - below) / 2e-5
    torch.testing.assert_close(gradient.double(), slopes.view(3, 7), rtol=1e-4, atol=1e-5)


def term_of(method: LwF, examples: list[Example], *, micro: int = 8) -> float:
    method.run.terms.clear()
    for start in range(0, len(examples), micro):
        method.loss(collate(examples[start : start + micro], pad=1), Totals.of(examples))
    return float(method.run.terms["distillation"])


def term_by_hand(method: LwF, examples: list[Example]) -> float:
    """Row by row without padding, with PEFT's own switch; the answer's tokens alone count."""
    model, total = method.engine.model, 0.0
    for example in examples:
        logits = []
        for name in ("fast", "teacher"):
            model.set_adapter(name)
            with torch.no_grad():
                logits.append(
                    model(input_ids=torch.tensor([example.prompt + example.answer])).logits[
                        0, len(example.prompt) - 1 : -1
                    ]
                )
        assert logits[0].shape[0] == len(example.answer)
        total += float(by_hand(*logits, temperature=1.5))
    model.set_adapter("fast")
    return total / sum(len(example.answer) for example in examples)


@pytest.mark.parametrize("micro", [8, 2, 1])
def test_term_equals_plain_forwards_of_the_two_adapters(method: LwF, micro: int) -> None:
    expected = term_by_hand(method, ROWS)
    assert expected > 1e-3
    assert term_of(method, ROWS, micro=micro) == pytest.approx(expected, rel=1e-4)


def test_padding_does_not_count(method: LwF) -> None:
    """A row with a long prompt and one with a long answer pad all others, and add their own share only."""
    long_rows = [Example("two", "p", list(range(5, 45)), [9, 1]), Example("two", "a", [5], [*range(50, 62), 1])]
    assert term_of(method, ROWS + long_rows) == pytest.approx(term_by_hand(method, ROWS + long_rows), rel=1e-4)


def test_teacher_computes_without_dropout(method: LwF) -> None:
    """And the student with it: with the same weights, what is left of the term is the student's dropout."""
    model, dropout = method.engine.model, torch.nn.Dropout(0.0)
    for module in model.modules():
        for name in {"fast", "teacher"} & set(getattr(module, "lora_dropout", {})):
            module.lora_dropout[name] = dropout
    adapters.copy(model, "teacher", "fast")
    assert term_of(method, ROWS) == 0.0
    dropout.p = 0.5
    targets = []
    forward = method.engine.forward

    def watching(*args: object, **options: object) -> object:
        output = forward(*args, **options)  # type: ignore[arg-type]
        if not output.logits.requires_grad:
            targets.append(output.logits)
        return output

    method.engine.forward = watching  # type: ignore[method-assign, assignment]
    first, second = term_of(method, ROWS), term_of(method, ROWS)
    assert first > 0
    assert first != second
    assert torch.equal(*targets)


@pytest.mark.parametrize("strength", [0.7, 50.0])
def test_loss_and_its_gradient(method: LwF, strength: float) -> None:
    """Cross-entropy + strength · term; finite differences agree, and the teacher gets no gradient."""
    method.config = LwF.Config(name="lwf", strength=strength)
    batch, totals = collate(ROWS, pad=1), Totals.of(ROWS)

    def loss() -> Tensor:
        method.run.terms.clear()
        return method.loss(batch, totals)

    value = loss()
    terms = method.run.terms
    assert float(value.detach()) == pytest.approx(float(terms["ce"]) + strength * float(terms["distillation"]))
    value.backward()
    model = method.engine.model
    for parameter in adapters.parameters(model, "teacher").values():
        assert parameter.grad is None
        assert not parameter.requires_grad
    parameter = max(method.trainable, key=lambda item: float(item.grad.abs().max()))  # type: ignore[union-attr]
    assert parameter.grad is not None
    index, values, step = int(parameter.grad.abs().argmax()), [], 1e-2
    for sign in (1, -1):
        with torch.no_grad():
            parameter.view(-1)[index] += sign * step
            values.append(float(loss()))
            parameter.view(-1)[index] -= sign * step
    slope = (values[0] - values[1]) / (2 * step)
    assert float(parameter.grad.view(-1)[index]) == pytest.approx(slope, rel=2e-2)


# -- the teacher -----------------------------------------------------------------------------------------------


def test_the_teacher_is_the_model_before_the_task(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a task's beginning to its end, bit for bit; there is none in the first task."""
    begun: dict[int, tuple[Tensor, Tensor]] = {}
    ended: dict[int, tuple[Tensor, Tensor]] = {}
    begin_task, end_task = LwF.begin_task, LwF.end_task

    def both(method: LwF) -> tuple[Tensor, Tensor]:
        model = method.engine.model
        found = "teacher" in adapters.names(model)
        assert found == (method.position.task_index > 1)
        return flat(model, "fast"), flat(model, "teacher" if found else "fast")

    def watching_begin(self: LwF) -> None:
        begin_task(self)
        begun[self.position.task_index] = both(self)

    def watching_end(self: LwF) -> None:
        end_task(self)
        ended[self.position.task_index] = both(self)

    monkeypatch.setattr(LwF, "begin_task", watching_begin)
    monkeypatch.setattr(LwF, "end_task", watching_end)
    trained(make_config("adapter.dropout=0", method={"name": "lwf"}), tmp_path / "run")
    for index in (2, 3):
        before, teacher = begun[index]
        assert torch.equal(before, ended[index - 1][0])
        assert torch.equal(teacher, before)
        after, teacher = ended[index]
        assert torch.equal(teacher, before)
        assert not torch.equal(after, before)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("distillation" not in line["terms"] for line in lines if line["task_index"] == 1)
    for index in (2, 3):
        first, *later = [line["terms"]["distillation"] for line in lines if line["task_index"] == index]
        assert first == 0.0  # student = teacher
        assert len(later) == 5
        assert min(later) > 0.0
