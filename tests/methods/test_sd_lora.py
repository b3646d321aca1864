"""SD-LoRA: the magnitudes' gradient by finite differences, frozen directions, one saved adapter that is the sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ilora.data.examples import Batch, Totals
from ilora.methods.sd_lora import SDLoRA
from ilora.model import adapters
from ilora.model.adapted import A_OF, B_OF, layers
from ilora.training.session import Session
from tests.helpers import MakeConfig, begin, logits, snapshot, train

SD_LORA = {"name": "sd_lora"}


@pytest.fixture
def session(make_config: MakeConfig, tmp_path: Path) -> Session:
    return begin(make_config("adapter.dropout=0", "training.learning_rate=0.01", method=SD_LORA), tmp_path / "run")


def updates(session: Session, name: str) -> dict[str, Tensor]:
    """B A · scaling of an adapter, by the layer's path."""
    factors, found = snapshot(session.method.engine.model, name), {}
    for path in layers(session.method.engine.model):
        found[path] = 8 / 4 * factors[B_OF.format(path)] @ factors[A_OF.format(path)]
    return found


def test_a_task_begins_with_the_function_that_the_last_one_left(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """α_k begins at ‖B_k A_k‖; the directions stay, the magnitudes move."""
    method, starts = session.method, []
    assert isinstance(method, SDLoRA)
    begin_task = method.begin_task

    def beginning() -> None:
        begin_task()
        # A step's end writes A_k anew.
        method.after_step()
        starts.append((logits(session, "one"), method.magnitudes.detach().clone()))

    monkeypatch.setattr(method, "begin_task", beginning)
    ends = [(logits(session, "one"), updates(session, "fast")) for _ in train(session)]
    for number in (1, 2):
        logits_then, magnitudes = starts[number]
        torch.testing.assert_close(logits_then, ends[number - 1][0], rtol=1e-4, atol=1e-5)
        norms = torch.stack([update.norm() for update in ends[number - 1][1].values()])
        torch.testing.assert_close(magnitudes[number - 1], norms, rtol=1e-4, atol=1e-6)
    now = method.magnitudes.detach()
    assert now.shape == (2, len(layers(method.engine.model)))
    assert float((now - starts[2][1]).abs().min()) > 1e-4
    for number, name in enumerate(("task-0001", "task-0002")):
        then = ends[number][1]
        for place, (path, update) in enumerate(updates(session, name).items()):
            expected = then[path] / then[path].norm() * now[number, place]
            torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-6)
    assert method.notes()["magnitudes"] == pytest.approx(now.mean(1).tolist(), abs=1e-4)


@pytest.mark.parametrize("size", [8, 3])
def test_the_gradient_of_a_magnitude_is_that_of_the_loss(session: Session, size: int) -> None:
    """By central differences, over several micro-batches, and anew in a second attempt."""
    method = session.method
    assert isinstance(method, SDLoRA)
    stream = train(session)
    next(stream), next(stream)
    method.engine.model.eval()
    rows = session.stream.train["two"][:8]
    totals = Totals.of(rows)

    def batches() -> list[Batch]:
        return list(method.engine.micro_batches(rows, size=size))

    for attempt in range(2):
        for parameter in method.trainable:
            parameter.grad = None
        for batch in batches()[: None if attempt else 1]:  # the first attempt breaks off
            method.loss(batch, totals).backward()  # type: ignore[no-untyped-call]
    method.before_step()
    found = method.magnitudes.grad
    assert found is not None
    with torch.no_grad():
        for place in range(found.shape[1]):
            values = []
            for change in (0.02, -0.02):
                method.magnitudes[0, place] += change
                method.after_step()
                values.append(sum(float(method.loss(batch, totals)) for batch in batches()))
                method.magnitudes[0, place] -= change
            assert (values[0] - values[1]) / 0.04 == pytest.approx(float(found[0, place]), rel=0.05, abs=2e-6)


def test_the_saved_folder_is_the_sum(session: Session, tmp_path: Path) -> None:
    for _ in train(session):
        pass
    session.method.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "fast" / "adapter_model.safetensors")
    names: Any = ["task-0001", "task-0002", "fast"]
    parts = [updates(session, name) for name in names]
    assert adapters.names(session.method.engine.model) == ["fast", *names[:2]]
    for path in layers(session.method.engine.model):
        down, up = saved[f"{path}.lora_A.weight"], saved[f"{path}.lora_B.weight"]
        assert down.shape[0] == 12
        torch.testing.assert_close(up @ down, sum(part[path] for part in parts), rtol=1e-3, atol=1e-6)
