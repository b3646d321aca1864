"""SEEKR: the value of heads, their choice, both distillations and the loss, by transformers' own attention weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora import run
from ilora.data.examples import Example, Totals, collate
from ilora.methods.seekr import SEEKR, attention_gap
from ilora.model import adapters
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig
from tests.helpers import MakeConfig, begin, difference, snapshot, train, view

CURRENT = [Example("three", "three/train/0", [5, 6, 7, 8], [9, 1])]
OLD = [
    Example("one", "one/train/0", [5, 6, 7, 8, 20], [9, 1], replayed=True),
    Example("two", "two/train/0", [10, 11], [12, 30, 31, 1], replayed=True),
    Example("one", "one/train/1", [13], [1], replayed=True),
]
HEADS = {"one": [[0, 1, 3], [1, 0]], "two": [[1, 2]]}


@pytest.fixture
def method(tiny_model: Path) -> SEEKR:
    """In the third task: an adapter in training and two teachers, all different."""
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    model = adapters.attach(base, AdapterConfig(r=4, alpha=8, dropout=0.0), name="fast", seed=1)
    model.train()
    memory = ReplayMemory(10, seed=0)
    memory.offer([replace(row, replayed=False) for row in OLD])
    position = {"task_index": 3, "task": "three", "current_tasks": frozenset({"three"})}
    made = SEEKR(view(model, pad=1, memory=memory, **position), SEEKR.Config(name="seekr", strength=20))
    torch.manual_seed(3)
    for number, task in ((1, "one"), (2, "two"), (3, "")):
        for parameter in made.trainable:
            parameter.data.normal_(std=0.3)
        if task:
            adapters.keep_copy(model, "fast", f"teacher-{number:04d}")
            made.teachers[task], made.heads[task] = f"teacher-{number:04d}", HEADS[task]
    return made


def passed(method: SEEKR, name: str | None, row: Example) -> tuple[Tensor, list[Tensor]]:
    """The answer's logits (tokens, vocabulary) and each layer's attention weights (heads, length, length)."""
    model: PeftModel = method.engine.model
    model.get_base_model().set_attn_implementation("eager")
    ids = torch.tensor([row.prompt + row.answer])
    with adapters.active(model, name):
        output = model(input_ids=ids, output_attentions=True)
    return output.logits[0, len(row.prompt) - 1 : -1], list(output.attentions)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Over the last dimension, in float64; 0 · log 0 = 0."""
    seen = teacher > 0
    p, q = (torch.where(seen, part.double(), 1.0) for part in (teacher, student))
    return torch.where(seen, p * (p.log() - q.log()), 0.0).sum(-1)


# -- which heads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "teacher-0001"])
def test_value_is_change_times_sensitivity(method: SEEKR, before: str | None) -> None:
    rows = [replace(row, replayed=False) for row in OLD]
    change, slope = torch.zeros(2, 4), torch.zeros(2, 4)
    for row in rows:
        logits, new = passed(method, "fast", row)
        with torch.no_grad():
            _, old = passed(method, before, row)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer))
        gradients = torch.autograd.grad(loss, new)
        for layer in range(2):
            change[layer] += (new[layer] - old[layer]).detach()[0].square().mean((1, 2)) / len(rows)
            slope[layer] += gradients[layer][0].square().mean((1, 2)) / len(rows)
    expected = change * slope / slope.sum(1, keepdim=True)
    torch.testing.assert_close(method.value(rows, before=before), expected, rtol=1e-3, atol=1e-9)
    assert float(expected.min()) > 0


@pytest.mark.parametrize(
    ("layers", "heads", "expected"),
    [
        (1 / 3, 0.25, [[1, 0, 1, 3]]),  # three heads, of the best layer alone
        (2 / 3, 0.25, [[1, 0, 3], [2, 2]]),
        (1.0, 0.25, [[0, 1], [1, 3], [2, 2]]),
        (1 / 3, 1.0, [[1, 0, 1, 2, 3]]),
        (1.0, 0.0, []),
    ],
)
def test_the_best_heads_of_the_best_layers(
    method: SEEKR, layers: float, heads: float, expected: list[list[int]]
) -> None:
    value = torch.tensor([[0.0, 6.0, 0.0, 0.0], [4.0, 3.0, 2.0, 9.0], [0.0, 1.0, 7.0, 0.0]])
    method.config = SEEKR.Config(name="seekr", layer_budget=layers, head_budget=heads)
    assert method.choose(value) == expected


# -- the terms -----------------------------------------------------------------------------------------------------


def test_attention_gap_by_hand() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    ours, theirs = ([(2 * torch.randn(2, 4, 3, 3)).softmax(-1) for _ in range(2)] for _ in range(2))
    expected = 0.0
    for row, queries in ((0, [1, 2]), (1, [0, 1, 2])):
        for layer, *heads in HEADS["one"]:
            gaps = [
                float(kl(theirs[layer][row, head, query], ours[layer][row, head, query]))
                for head in heads
                for query in queries
            ]
            expected += sum(gaps) / len(gaps) / 2
    found = attention_gap(ours, theirs, heads=HEADS["one"], mask=mask)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert float(attention_gap(ours, ours, heads=HEADS["one"], mask=mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(attention_gap(ours, theirs, heads=[], mask=mask)) == 0.0


def loss_by_hand(method: SEEKR) -> Tensor:
    """Row by row without padding."""
    config, cross, tokens, attention = method.config, 0.0, 0.0, 0.0
    for row in OLD:
        logits, ours = passed(method, "fast", row)
        with torch.no_grad():
            target, theirs = passed(method, method.teachers[row.task], row)
        cross = cross + torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="sum")
        tokens = tokens + kl(target.softmax(-1), logits.softmax(-1)).sum()
        heads = method.heads[row.task]
        gaps = [kl(theirs[layer][0, head], ours[layer][0, head]).mean() for layer, *of in heads for head in of]
        each = [1 / len(of) / len(heads) for _, *of in heads for _ in of]
        attention = attention + sum(gap * weight for gap, weight in zip(gaps, each, strict=True))
    labels = sum(len(row.answer) for row in OLD)
    (row,) = CURRENT
    now = torch.nn.functional.cross_entropy(passed(method, "fast", row)[0], torch.tensor(row.answer))
    old = ((1 - config.logit_share) * cross + config.logit_share * tokens) / labels
    return 0.5 * now + 0.5 * (old + config.strength * attention / len(OLD))


@pytest.mark.parametrize("micro_batch_size", [8, 2, 1])
def test_loss_and_its_gradient(method: SEEKR, micro_batch_size: int) -> None:
    expected = loss_by_hand(method)
    wanted = torch.autograd.grad(expected, method.trainable)
    rows, value = CURRENT + OLD, 0.0
    for start in range(0, len(rows), micro_batch_size):
        share = method.loss(collate(rows[start : start + micro_batch_size], pad=1), Totals.of(rows))
        share.backward()
        value += float(share.detach())
    assert value == pytest.approx(float(expected.detach()), rel=1e-4)
    assert float(method.run.terms["attention"]) > 1e-3
    for parameter, gradient in zip(method.trainable, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=2e-3, atol=1e-5)


def test_rows_without_a_teacher_are_plain_replay(method: SEEKR) -> None:
    batch, totals = collate(CURRENT + OLD, pad=1), Totals.of(CURRENT + OLD)
    method.teachers.clear()
    found = float(method.loss(batch, totals).detach())
    method.config = SEEKR.Config(name="seekr", strength=0, logit_share=0)
    assert found == pytest.approx(float(method.loss(batch, totals).detach()), rel=1e-5)


def test_the_chosen_heads_come_back_to_where_they_looked(method: SEEKR) -> None:
    """The attention term, followed downhill."""
    method.config = SEEKR.Config(name="seekr", strength=1e6)
    rows, gaps = [row for row in OLD if row.task == "one"], []
    for _ in range(12):
        method.run.terms.clear()
        loss = method.loss(collate(rows, pad=1), Totals.of(rows)) / 1e6
        gaps.append(float(method.run.terms["attention"]))
        gradients = torch.autograd.grad(loss, method.trainable)
        with torch.no_grad():
            for parameter, gradient in zip(method.trainable, gradients, strict=True):
                parameter -= 6.0 * gradient
    assert gaps[-1] < 0.4 * gaps[0]


# -- over a run ----------------------------------------------------------------------------------------------------


def test_each_task_leaves_its_teacher_and_its_heads(make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config("training.epochs=1", method={"name": "seekr", "memory_size": 12}), tmp_path / "run")
    method, model, ends = session.method, session.method.engine.model, {}
    assert isinstance(method, SEEKR)
    for number, phase in enumerate(train(session), 1):
        ends[phase.name] = snapshot(model, "fast")
        assert method.teachers[phase.name] == f"teacher-{number:04d}"
        assert method.importance is not None
        assert method.heads[phase.name] == method.choose(method.importance)
        assert sum(len(heads) - 1 for heads in method.heads[phase.name]) == 1  # an eighth of two layers of four heads
    for name, weights in ends.items():
        assert difference(snapshot(model, method.teachers[name]), weights) == 0.0


def test_in_the_first_step_of_a_task_its_teacher_is_the_model_itself(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        "adapter.dropout=0", "data.tasks=[one, two]", "training.epochs=1", method={"name": "seekr", "memory_size": 12}
    )
    folder = run(config, tmp_path / "run", quiet=True).path
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all("attention" not in line["terms"] for line in lines if line["task_index"] == 1)
    first, *later = [line["terms"] for line in lines if line["task_index"] == 2]
    assert abs(first["attention"]) < 1e-8
    assert abs(first["distillation"]) < 1e-6
    assert all(terms["attention"] > 1e-8 and terms["distillation"] > 1e-6 for terms in later)
