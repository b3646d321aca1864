"""OSFT with LoRA: the leading singular triplets of what was there stay exactly, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ilora.methods.osft import OSFT, leading
from ilora.model import adapters
from ilora.model.adapted import layers, weights
from tests.helpers import MakeConfig, after_each_step, begin, snapshot, train

OSFT_METHOD = {"name": "osft", "protected_rank": 0.25}


def test_leading_directions() -> None:
    """Of a matrix with known singular directions."""
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(6, 4))
    right, _ = torch.linalg.qr(torch.randn(8, 4))
    up, down = leading(left @ torch.diag(torch.tensor([9.0, 5.0, 2.0, 1.0])) @ right.T, share=1 / 3)
    assert (up.shape, down.shape) == ((6, 2), (8, 2))
    torch.testing.assert_close((up * left[:, :2]).sum(0).abs(), torch.ones(2))
    torch.testing.assert_close((down * right[:, :2]).sum(0).abs(), torch.ones(2))


def effective(method: OSFT, names: list[str]) -> dict[str, Tensor]:
    return {path: weight.clone() for path, weight in weights(method.engine.model, names)}


def leak(method: OSFT, before: dict[str, Tensor]) -> float:
    """How much of the task's update lies in the leading directions of what was there before, as a share of it."""
    worst = 0.0
    for path, now in effective(method, [*method.earlier, "fast"]).items():
        update, (up, _, down) = now - before[path], torch.linalg.svd(before[path], full_matrices=False)
        count = round(0.25 * min(update.shape))
        for part in (up[:, :count].T @ update, update @ down[:count].T):
            worst = max(worst, float(part.norm() / update.norm()))
    return worst


@pytest.mark.parametrize("kept", [True, False], ids=["step projected", "gradient alone"])
def test_no_step_leaves_the_free_directions(
    kept: bool, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's scaling carries a projected gradient back; the projected step stays."""
    if not kept:
        monkeypatch.setattr(OSFT, "after_step", lambda _: None)
    session = begin(make_config("adapter.dropout=0", "data.tasks=[one, two]", method=OSFT_METHOD), tmp_path / "run")
    method, leaks = session.method, []
    assert isinstance(method, OSFT)
    after_each_step(monkeypatch, lambda seen: leaks.append(leak(method, effective(method, method.earlier))))
    for _ in train(session):
        pass
    assert len(leaks) == 12
    if kept:
        assert max(leaks) < 1e-4
    else:
        assert max(leaks) > 0.05


def test_what_leads_stays_through_the_task(make_config: MakeConfig, tmp_path: Path) -> None:
    """(W + ΔW) v = σ u and uᵀ(W + ΔW) = σ vᵀ for each protected triplet: outputs on these inputs do not change."""
    session = begin(make_config("adapter.dropout=0", method=OSFT_METHOD), tmp_path / "run")
    method = session.method
    assert isinstance(method, OSFT)
    before = effective(method, [])
    for _ in train(session):
        now = effective(method, [*method.earlier, "fast"])
        for path, weight in now.items():
            up, sizes, down = torch.linalg.svd(before[path], full_matrices=False)
            count = round(0.25 * len(sizes))
            assert float((weight - before[path]).norm()) > 1e-3
            torch.testing.assert_close(weight @ down[:count].T, up[:, :count] * sizes[:count], rtol=0, atol=1e-5)
            torch.testing.assert_close(up[:, :count].T @ weight, sizes[:count, None] * down[:count], rtol=0, atol=1e-5)
        before = now  # of the next task, with this one's update in it
    model = method.engine.model
    assert adapters.names(model) == ["fast", "task-0001", "task-0002"]
    assert set(layers(model)) == set(before)


def test_gradients_are_projected_too(make_config: MakeConfig, tmp_path: Path) -> None:
    """So that AdamW's moments know nothing of what is protected."""
    session = begin(make_config(method=OSFT_METHOD), tmp_path / "run")
    method = session.method
    assert isinstance(method, OSFT)
    method.begin_task()
    torch.manual_seed(0)
    for parameter in method.trainable:
        parameter.grad = torch.randn_like(parameter)
    given = [parameter.grad.clone() for parameter in method.trainable if parameter.grad is not None]
    method.before_step()
    model = method.engine.model
    for (key, parameter), raw in zip(adapters.parameters(model, "fast").items(), given, strict=True):
        path, which = key.removesuffix(".weight").rsplit(".", 1)
        up, down = method.high[path]
        basis, wide = (down, (raw, parameter.grad)) if which == "lora_A" else (up, (raw.T, parameter.grad.T))  # type: ignore[union-attr]
        torch.testing.assert_close(wide[1], wide[0] - wide[0] @ basis @ basis.T)
    assert snapshot(model, "fast")
