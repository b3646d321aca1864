"""MIGU: the magnitudes and the mask by hand, and that the weights behind small outputs stay where they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora.data.examples import Example
from ilora.methods.migu import MIGU, largest
from ilora.model import adapters
from ilora.settings import AdapterConfig, TrainingConfig
from ilora.training.loop import optimizer_step
from ilora.training.optim import make_optimizer
from tests.helpers import move, snapshot, train_with, view

ROWS = [
    Example("two", "two/train/0", [5, 6, 7, 8], [9, 1]),
    Example("two", "two/train/1", [5, 6, 11], [12, 30, 31, 1]),
    Example("two", "two/train/2", [13, 14, 15, 16, 17], [1]),
]


def made(tiny_model: Path, *, threshold: float = 0.6, dora: bool = False) -> MIGU:
    """MIGU at the first step of its second task."""
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    adapter = AdapterConfig(r=4, alpha=8, dropout=0.0, use_dora=dora)
    model = adapters.attach(base, adapter, name="fast", seed=1)
    model.train()
    method = MIGU(view(model, pad=1, task_index=2, step=1, task_step=1, task_steps=9), MIGU.Config(name="migu"))
    method.config = MIGU.Config(name="migu", threshold=threshold)
    torch.manual_seed(3)
    for key, parameter in adapters.parameters(model, "fast").items():
        if "magnitude" not in key:
            parameter.data.normal_(std=0.2)
    return method


def step(method: MIGU) -> None:
    train_with(method, weight_decay=0.0)
    optimizer_step(method, make_optimizer(method.trainable, TrainingConfig()), ROWS)


def test_the_largest_are_kept() -> None:
    assert largest(torch.tensor([0.3, 5.0, 0.1, 2.0, 1.0]), threshold=0.4).tolist() == [0, 1, 0, 1, 1]
    assert largest(torch.tensor([4.0, 3.0, 2.0, 1.0]), threshold=0.7).tolist() == [1, 1, 0, 0]  # rounded down
    assert largest(torch.tensor([4.0, 3.0, 2.0, 1.0]), threshold=0.0).tolist() == [1, 1, 1, 1]


def magnitudes_by_hand(method: MIGU) -> dict[str, Tensor]:
    """By parameter, row by row: mean |output| of its matrix over all tokens, as a share of their sum."""
    model, named = method.engine.model, adapters.parameters(method.engine.model, "fast")
    total: dict[str, Tensor] = {}
    handles = []
    for name, layer in model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue

        def hook(_: object, given: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
            for key in (key for key in named if key.startswith(f"{name}.lora_")):
                outputs = given[0][0] @ named[key].T if "lora_A" in key else out[0]
                part = outputs.detach().abs().sum(0)
                total[key] = total[key] + part if key in total else part

        handles.append(layer.register_forward_hook(hook))
    for row in ROWS:
        model(input_ids=torch.tensor([row.prompt + row.answer]))
    for handle in handles:
        handle.remove()
    tokens = sum(map(len, ROWS))
    return {key: value / tokens / (value / tokens).sum() for key, value in total.items()}


@pytest.mark.parametrize("micro_batch_size", [8, 1])
@pytest.mark.parametrize("dora", [False, True])
def test_the_gradient_is_that_of_the_loss_behind_large_outputs_and_zero_elsewhere(
    dora: bool, micro_batch_size: int, tiny_model: Path
) -> None:
    method = made(tiny_model, dora=dora)
    shares = magnitudes_by_hand(method)
    named = adapters.parameters(method.engine.model, "fast")
    flat = torch.split(method.gradient(ROWS), [parameter.numel() for parameter in method.trainable])
    full = {key: part.view_as(value) for (key, value), part in zip(named.items(), flat, strict=True)}
    train_with(method, micro_batch_size=micro_batch_size, max_grad_norm=None)
    optimizer_step(method, torch.optim.SGD(method.trainable, lr=0.0), ROWS)
    for key, parameter in named.items():
        assert parameter.grad is not None
        kept = set(
            sorted(range(len(parameter)), key=lambda row: -float(shares[key][row]))[
                : len(parameter) - int(0.6 * len(parameter))
            ]
        )
        for row in range(len(parameter)):
            expected = full[key][row] if row in kept else torch.zeros_like(full[key][row])
            torch.testing.assert_close(parameter.grad[row], expected, rtol=1e-3, atol=1e-6)


def test_weights_behind_small_outputs_do_not_move(tiny_model: Path) -> None:
    """In a task's first step, whose optimizer has no moments: 60 % of each matrix's rows stay, bit for bit."""
    method = made(tiny_model)
    before = snapshot(method.engine.model, "fast")
    step(method)
    for key, value in snapshot(method.engine.model, "fast").items():
        still = int((value == before[key]).all(1).sum())
        assert still == int(0.6 * len(value))


def test_the_first_task_and_no_threshold_train_all_weights(tiny_model: Path) -> None:
    for changes in ({"task_index": 1}, {"threshold": 0.0}):
        method = made(tiny_model, threshold=changes.pop("threshold", 0.6))
        move(method, **changes)
        before = snapshot(method.engine.model, "fast")
        step(method)
        moved = snapshot(method.engine.model, "fast")
        assert not any(bool((value == before[key]).all(1).any()) for key, value in moved.items())


def test_a_step_that_begins_again_counts_its_rows_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in the second micro-batch: the magnitudes are those of the second attempt alone."""
    gradients = []
    for fails in (False, True):
        method = made(tiny_model)
        train_with(method, micro_batch_size=2)
        original, calls = method.loss, 0

        def failing(*args: object, fails: bool = fails, original: object = original) -> Tensor:
            nonlocal calls
            calls += 1
            if fails and calls == 2:
                raise torch.OutOfMemoryError("for the test")
            return original(*args)  # type: ignore[operator, no-any-return]

        monkeypatch.setattr(method, "loss", failing)
        noted: list[dict[str, Tensor]] = []
        before_step = method.before_step

        def watching(before_step: object = before_step, method: MIGU = method, noted: list = noted) -> None:  # type: ignore[type-arg]
            noted.append({key: value.clone() for key, value in method.magnitudes.items()})
            before_step()  # type: ignore[operator]

        monkeypatch.setattr(method, "before_step", watching)
        optimizer_step(method, torch.optim.SGD(method.trainable, lr=0.0), ROWS)
        gradients.append(noted[0])
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-4, atol=1e-5)
