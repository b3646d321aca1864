"""GEM: the nearest feasible gradient against independent solvers, and which rows bound which step."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora.data.examples import Example
from ilora.methods.gem import GEM, nearest
from ilora.model import adapters
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig
from tests.helpers import MakeConfig, move, trained, view

# -- the program -----------------------------------------------------------------------------------------------


def by_brute_force(gradient: Tensor, references: Tensor) -> Tensor:
    """The solution lies in the null space of the constraints that hold with equality: try all sets of them."""
    best = torch.zeros_like(gradient)  # always feasible
    scale = references.norm(dim=1) * gradient.norm()
    for count in range(len(references) + 1):
        for chosen in itertools.combinations(range(len(references)), count):
            active = references[list(chosen)]
            candidate = gradient - torch.linalg.pinv(active, rtol=1e-10) @ (active @ gradient)
            feasible = bool((references @ candidate >= -1e-10 * scale).all())
            if feasible and (candidate - gradient).norm() < (best - gradient).norm():
                best = candidate
    return best


def cases(seed: int) -> tuple[Tensor, Tensor]:
    """A gradient and 1 to 5 references in 2 to 8 dimensions, some of them in awkward positions to each other."""
    torch.manual_seed(seed)
    count, size = seed % 5 + 1, seed // 5 % 7 + 2
    references = torch.randn(count, size, dtype=torch.float64) * 10.0 ** torch.randint(-3, 4, (count, 1))
    for n in range(1, count):
        kind = int(torch.randint(8, ()))
        if kind < 4:  # a copy, parallel, opposite, or nothing at all
            references[n] = [1.0, 3.7, -2.3, 0.0][kind] * references[n - 1]
    return torch.randn(size, dtype=torch.float64), references


def test_nearest_equals_brute_force() -> None:
    moved = 0
    for seed in range(350):
        gradient, references = cases(seed)
        found = nearest(gradient, references)
        torch.testing.assert_close(found, by_brute_force(gradient, references), rtol=1e-7, atol=1e-9)
        products = references @ found
        assert bool((products >= -1e-9 * references.norm(dim=1) * gradient.norm()).all())
        moved += found is not gradient
    assert 200 < moved < 350


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        pytest.param([[2.0, 0.0]], [0.0, 4.0], id="one"),
        pytest.param([[2.0, 0.0], [2.0, 0.0]], [0.0, 4.0], id="duplicate"),
        pytest.param([[2.0, 0.0], [5.0, 0.0]], [0.0, 4.0], id="parallel"),
        pytest.param([[2.0, 0.0], [-1.0, 0.0]], [0.0, 4.0], id="opposite"),
        pytest.param([[0.0, 0.0], [2.0, 0.0]], [0.0, 4.0], id="zero"),
        pytest.param([[1.0, 0.0], [0.0, -1.0]], [0.0, 0.0], id="cornered"),
        pytest.param([[0.0, 0.0]], [-3.0, 4.0], id="nothing but zero"),
    ],
)
def test_nearest_by_hand(references: list[list[float]], expected: list[float]) -> None:
    found = nearest(torch.tensor([-3.0, 4.0]), torch.tensor(references))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_nearest_at_the_size_of_a_model() -> None:
    """In float32, with references that share a direction, at scales far apart: feasible, and still a descent."""
    for seed in range(5):
        torch.manual_seed(seed)
        shared = torch.randn(20_000)
        references = (shared + torch.randn(5, 20_000)) * torch.logspace(-6, 6, 5)[:, None]
        gradient = torch.randn(20_000) - 0.5 * shared
        found = nearest(gradient, references)
        assert found.dtype == torch.float32
        assert bool((references @ gradient < 0).all())
        assert bool((references @ found >= -1e-6 * references.norm(dim=1) * gradient.norm()).all())
        assert float(found @ gradient) == pytest.approx(float(found @ found), rel=1e-4)  # a projection on a cone


def test_no_violation_returns_the_gradient_itself() -> None:
    gradient = torch.tensor([1.0, 2.0])
    assert nearest(gradient, torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, -1.0]])) is gradient
    assert nearest(gradient, torch.tensor([[1.0, 0.0]]), margin=0.5) is gradient


def test_scale_of_a_reference_changes_nothing() -> None:
    for seed in range(50):
        gradient, references = cases(seed)
        scaled = references.clone()
        scaled[seed % len(references)] *= 1000
        for margin in (0.0, 0.3):
            before = nearest(gradient, references, margin=margin)
            torch.testing.assert_close(nearest(gradient, scaled, margin=margin), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("margin", "expected"), [(0.0, [0.0, 4.0]), (0.2, [0.0, 4.0]), (0.8, [1.0, 4.0])])
def test_margin_by_hand(margin: float, expected: list[float]) -> None:
    """With one unit reference u: g + v u, v = max(margin |g|, -g·u); here |g| = 5 and -g·u = 3."""
    found = nearest(torch.tensor([-3.0, 4.0]), torch.tensor([[2.0, 0.0]]), margin=margin)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_margin_is_the_lower_bound_of_the_dual() -> None:
    """Against bounded least squares, without the change of variable."""
    for seed in range(100):
        torch.manual_seed(seed)
        gradient, references = torch.randn(7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
        references[0] *= -torch.sign(references[0] @ gradient)  # at least one is violated
        unit = references / references.norm(dim=1, keepdim=True)
        margin = 0.1 * (seed % 5)
        lowest = margin * float(gradient.norm())
        dual = lsq_linear(unit.T.numpy(), -gradient.numpy(), bounds=(lowest, float("inf")), tol=1e-14).x
        expected = gradient + torch.from_numpy(dual) @ unit
        torch.testing.assert_close(nearest(gradient, references, margin=margin), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    """So that the loop refuses the step with its own message."""
    fine = torch.tensor([-1.0, 1.0])
    assert not bool(nearest(torch.tensor([-1.0, bad]), torch.tensor([[1.0, -1.0]])).isfinite().all())
    assert not bool(nearest(fine, torch.tensor([[1.0, 0.0], [bad, 0.0]])).isfinite().all())


# -- the method ------------------------------------------------------------------------------------------------


def rows(task: str, first: int) -> list[Example]:
    answers = [[9, 1], [12, 30, 31, 1], [1], [25, 1]]
    return [
        Example(task, f"{task}/train/{n}", list(range(first + n, first + 3 * n + 1)), answer)
        for n, answer in enumerate(answers)
    ]


@pytest.fixture
def method(tiny_model: Path) -> GEM:
    """GEM in its third task, with rows of all three in memory."""
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    model = adapters.attach(base, AdapterConfig(r=4, alpha=8, dropout=0.5), name="fast", seed=1)
    model.train()
    memory = ReplayMemory(20, seed=0)
    memory.offer(rows("one", 5) + rows("two", 60) + rows("three", 120))
    run = view(model, pad=1, memory=memory, task="three", task_index=3, step=9, current_tasks=frozenset({"three"}))
    made = GEM(run, GEM.Config(name="gem", memory_batch=3))
    torch.manual_seed(3)
    for parameter in made.trainable:
        parameter.data.normal_(std=0.2)
    return made


def gradient_by_hand(method: GEM, examples: Sequence[Example]) -> Tensor:
    """Of the mean over answer tokens, row by row, by transformers and PEFT alone."""
    model = method.engine.model.eval()
    total = torch.zeros(sum(weight.numel() for weight in method.trainable))
    for example in examples:
        ids = torch.tensor([example.prompt + example.answer])
        labels = torch.tensor([[-100] * len(example.prompt) + example.answer])
        loss = model(input_ids=ids, labels=labels).loss * len(example.answer)
        total += torch.cat([part.flatten() for part in torch.autograd.grad(loss, method.trainable)])
    model.train()
    return total / sum(len(example.answer) for example in examples)


def flat_grad(method: GEM) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in method.trainable if weight.grad is not None])


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_step_gradient_becomes_the_nearest_one(method: GEM, margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reference for each earlier task, of rows of that task alone."""
    method.config = GEM.Config(name="gem", memory_batch=3, margin=margin)
    drawn: list[list[Example]] = []
    gradient = GEM.gradient

    def watching(self: GEM, examples: Sequence[Example]) -> Tensor:
        drawn.append(list(examples))
        return gradient(self, examples)

    monkeypatch.setattr(GEM, "gradient", watching)
    step = torch.randn(sum(weight.numel() for weight in method.trainable)) * 0.01
    step -= gradient_by_hand(method, rows("one", 5)) + gradient_by_hand(method, rows("two", 60))  # against both
    parts = step.split([weight.numel() for weight in method.trainable])
    for weight, part in zip(method.trainable, parts, strict=True):
        weight.grad = part.view_as(weight).clone()
    method.before_step()
    assert [{example.task for example in group} for group in drawn] == [{"one"}, {"two"}]
    assert [len({example.id for example in group}) for group in drawn] == [3, 3]
    references = torch.stack([gradient_by_hand(method, group) for group in drawn])
    assert bool((references @ step < 0).all())
    expected = nearest(step, references, margin=margin)
    torch.testing.assert_close(flat_grad(method), expected, rtol=1e-3, atol=1e-5 * float(step.abs().max()))
    assert float((step - expected).norm()) > 0.1 * float(step.norm())


@pytest.mark.parametrize(("batch", "expected"), [(2, 2), (None, 4), (99, 4)])
def test_rows_of_a_reference(method: GEM, batch: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as `memory_batch` or the global batch size, as far as the memory goes; other rows at another step."""
    drawn: list[list[str]] = []
    monkeypatch.setattr(GEM, "gradient", lambda _, examples: drawn.append([example.id for example in examples]))
    method.config = GEM.Config(name="gem", memory_batch=batch)
    for step in range(8):
        move(method, step=step)
        method.reference(["two"])
    assert {len(ids) for ids in drawn} == {expected}
    assert len({tuple(ids) for ids in drawn}) > 1


def test_references_over_a_run(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None in the first task, one in the second, two in the third; memory rows are not trained on."""
    steps: list[tuple[str, list[set[str]], set[str]]] = []
    gradient, before_step = GEM.gradient, GEM.before_step

    def watching_steps(self: GEM) -> None:
        steps.append((self.position.task, [], set(self.memory.tasks)))
        before_step(self)

    def watching(self: GEM, examples: Sequence[Example]) -> Tensor:
        steps[-1][1].append({example.task for example in examples})
        return gradient(self, examples)

    monkeypatch.setattr(GEM, "before_step", watching_steps)
    monkeypatch.setattr(GEM, "gradient", watching)
    trained(make_config(method={"name": "gem", "memory_size": 30, "memory_batch": 4}), tmp_path / "run")
    expected: dict[str, list[set[str]]] = {"one": [], "two": [{"one"}], "three": [{"one"}, {"two"}]}
    assert len(steps) == 3 * 6
    for task, tasks, stored in steps:
        assert tasks == expected[task]
        assert task in stored  # the memory has rows of the current task, too
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line["terms"]) == {"ce"} for line in lines)
    assert all(line["terms"]["ce"] == pytest.approx(line["loss"]) for line in lines)
