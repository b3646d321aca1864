"""SDFT: answers that are drawn by the student's own probabilities, what the teacher reads, and the divergence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from ilora.data.examples import Example, Totals
from ilora.methods.sdft import SDFT, Drawn, reverse_divergence
from ilora.model import adapters
from ilora.model.writing import until
from tests.helpers import move, snapshot, view, with_random_adapter

ROWS = [
    Example("one", "one/train/0", [0, 5, 6, 7, 8], [9, 30, 31, 1]),
    Example("one", "one/train/1", [10, 11], [12, 1]),
    Example("one", "one/train/2", [13, 14, 15], [16, 17, 1]),
]


def method(tiny_model: Path, *, dropout: float = 0.0, **settings: object) -> SDFT:
    """In its first task, the student a few steps away from the teacher."""
    run = view(with_random_adapter(tiny_model, dropout=dropout), pad=1, rows=ROWS, task="one", task_index=1, step=1)
    made = SDFT(run, SDFT.Config(name="sdft", **settings))
    made.begin_task()
    torch.manual_seed(4)
    for parameter in made.trainable:
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made


# -- the answers -------------------------------------------------------------------------------------------------------


def test_noise_draws_each_token_as_often_as_it_is_likely() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, float("-inf")])
    drawn = Drawn(range(4000))(torch.empty(0), logits.expand(4000, -1)).argmax(1)
    counts = torch.bincount(drawn, minlength=5)
    assert counts[4] == 0
    expected = 4000 * logits[:4].softmax(0)
    assert stats.chisquare(counts[:4], expected.double() / expected.double().sum() * 4000).pvalue > 0.01


def test_a_row_draws_its_own_numbers() -> None:
    scores = torch.randn(3, 50)
    together, alone = Drawn([1, 2, 3]), Drawn([2])
    for _ in range(3):
        torch.testing.assert_close(together(torch.empty(0), scores)[1:2], alone(torch.empty(0), scores[1:2]))


def test_answers_are_the_students_by_token_by_token_sampling(tiny_model: Path) -> None:
    """As drawn by hand with transformers' own forward pass, one row and one token at a time, without dropout."""
    made = method(tiny_model, dropout=0.3)
    found = made.extend_batch(ROWS)
    assert made.engine.model.training
    model = made.engine.model.eval()
    for row, answered in zip(ROWS, found, strict=True):
        noise, ids = Drawn([made.position.key("answer", 1, row.id)]), list(row.prompt)
        with torch.no_grad():
            while len(ids) < len(row.prompt) + 4 and ids[len(row.prompt) :][-1:] != [1]:
                logits = model(input_ids=torch.tensor([ids])).logits[:, -1]
                ids.append(int(noise(torch.empty(0), logits).argmax()))
        assert (answered.id, answered.prompt, answered.answer) == (row.id, row.prompt, ids[len(row.prompt) :])
    model.train()


def test_answers_depend_on_the_step_and_not_on_the_micro_batch(tiny_model: Path) -> None:
    made = method(tiny_model)
    first = made.extend_batch(ROWS)
    made.engine.micro_batch_size = 1
    assert made.extend_batch(ROWS) == first
    move(made, step=2)
    assert made.extend_batch(ROWS) != first


def test_answers_end_as_demonstrations_do(tiny_model: Path) -> None:
    assert until([4, 7, 1, 1], [1]) == [4, 7, 1]
    assert until([4, 7], [1]) == [4, 7]
    made = method(tiny_model, max_new_tokens=2)
    assert {len(row.answer) for row in made.extend_batch(ROWS)} <= {1, 2}


# -- what is learnt ----------------------------------------------------------------------------------------------------


def by_hand(made: SDFT, prompt: list[int], answer: list[int], adapter: str) -> Tensor:
    """log p at each of the answer's tokens, (tokens, vocabulary), by transformers alone."""
    with adapters.active(made.engine.model, adapter):
        logits = made.engine.model(input_ids=torch.tensor([prompt + answer])).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(1)


@pytest.mark.parametrize("size", [8, 1])
def test_loss_and_gradient_by_hand(size: int, tiny_model: Path) -> None:
    made = method(tiny_model)
    made.engine.micro_batch_size = size
    rows = made.extend_batch(ROWS)
    totals = Totals.of(rows)
    loss = torch.stack([made.loss(batch, totals) for batch in made.engine.micro_batches(rows)]).sum()
    gradient = torch.autograd.grad(loss, made.trainable)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row, answered in zip(ROWS, rows, strict=True):
        again = row.prompt[1:] if row.prompt[0] == 0 else row.prompt  # begin-of-text stands once
        with torch.no_grad():
            theirs = by_hand(made, row.prompt + row.answer + again, answered.answer, "teacher")
        ours = by_hand(made, row.prompt, answered.answer, "fast")
        total = total + (ours.exp() * (ours - theirs)).sum()
        tokens += len(answered.answer)
    assert float(loss.detach()) == pytest.approx(float(total.detach()) / tokens, rel=1e-4)
    assert float(loss.detach()) > 1e-3
    for found, expected in zip(gradient, torch.autograd.grad(total / tokens, made.trainable), strict=True):
        torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-6)


def test_the_divergence_is_that_from_the_students_side() -> None:
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(6, 11), 2 * torch.randn(6, 11)
    p, q = (torch.distributions.Categorical(logits=part) for part in (student, teacher))
    torch.testing.assert_close(reverse_divergence(student, teacher), torch.distributions.kl_divergence(p, q).sum())


def test_a_prompt_that_is_too_long_twice_keeps_the_question(tiny_model: Path) -> None:
    long = Example("one", "one/train/3", list(range(2, 32)) * 4, [9, 1])  # 120 tokens of 256
    longer = Example("one", "one/train/4", list(range(2, 32)) * 8, [9, 1])  # 240
    made = method(tiny_model)
    made.extend_batch([long, longer])
    assert made.taught[long.id] == long.prompt + long.answer + long.prompt
    assert len(made.taught[longer.id]) == 254
    assert made.taught[longer.id][-242:] == longer.answer + longer.prompt


def test_the_teacher_follows_and_starts_each_task_as_the_student(tiny_model: Path) -> None:
    made = method(tiny_model, teacher_rate=0.25)
    model = made.engine.model
    teacher, fast = snapshot(model, "teacher"), snapshot(model, "fast")
    made.after_step()
    for key, value in snapshot(model, "teacher").items():
        torch.testing.assert_close(value, 0.75 * teacher[key] + 0.25 * fast[key])
    made.begin_task()
    for key, value in snapshot(model, "teacher").items():
        assert torch.equal(value, fast[key])


def test_the_student_learns_to_answer_as_if_it_had_been_shown_how(tiny_model: Path) -> None:
    """With the same rows again and again, the divergence from the teacher falls, and no demonstration is trained on."""
    made = method(tiny_model, teacher_rate=0.0)
    optimizer, losses = torch.optim.Adam(made.trainable, lr=0.05), []
    for number in range(1, 16):
        move(made, step=number)
        rows = made.extend_batch(ROWS)
        (batch,) = made.engine.micro_batches(rows)
        optimizer.zero_grad()
        loss = made.loss(batch, Totals.of(rows))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.3 * sum(losses[:3])
