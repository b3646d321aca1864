"""WiSE-FT and SLAO: what the merged adapter is after each task, recomputed from the adapters that tasks left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from ilora.data.examples import collate
from ilora.methods.slao import orthonormal_rows
from ilora.training.session import Session
from tests.helpers import LABELS, MakeConfig, begin, logits, plain, snapshot, train

Weights = dict[str, Tensor]


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def close(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)


def lives(session: Session, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Weights], list[Weights], list[Weights]]:
    """Over the run, for every task: the fast adapter at its beginning and at its end, the merged one after it."""
    begin_task, model = session.method.begin_task, session.method.engine.model
    starts: list[Weights] = []

    def watching() -> None:
        begin_task()
        starts.append(snapshot(model, "fast"))

    monkeypatch.setattr(session.method, "begin_task", watching)
    ends, merged = [], []
    for number, _ in enumerate(train(session)):
        ends.append(snapshot(model, "fast"))
        merged.append(snapshot(model, "merged"))
        assert max(float((ends[-1][key] - starts[number][key]).abs().max()) for key in ends[-1]) > 1e-3
    return starts, ends, merged


@pytest.mark.parametrize("name", ["wise_ft", "slao"])
def test_the_merged_adapter_answers(name: str, tiny_model: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config(method=name), tmp_path / "run")
    for _ in train(session):
        pass
    assert session.method.variants == ["merged", "fast"]
    found = logits(session, "one")
    batch = collate(session.stream.train["one"], pad=session.method.engine.pad)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    inputs["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    for variant in ("merged", "fast"):
        loaded = PeftModel.from_pretrained(plain(tiny_model), tmp_path / "run" / "adapters" / LABELS[2] / variant)
        with torch.no_grad():
            gap = float((loaded.eval()(**inputs).logits[:, -batch.keep :] - found).abs().max())
        assert gap < 1e-5 if variant == "merged" else gap > 1e-4


# -- WiSE-FT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("next_task_from", ["merged", "fast"])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_interpolation_by_hand(
    t: float, next_task_from: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(1 - t) · merged + t · fast after each task but the first, A and B each on their own."""
    config = make_config(method={"name": "wise_ft", "t": t, "next_task_from": next_task_from})
    starts, ends, merged = lives(begin(config, tmp_path / "run"), monkeypatch)
    assert same(merged[0], ends[0])
    for number in (1, 2):
        expected = {key: (1 - t) * merged[number - 1][key] + t * ends[number][key] for key in merged[0]}
        close(merged[number], expected)
        assert same(starts[number], (merged if next_task_from == "merged" else ends)[number - 1])
    if t == 0:
        assert same(merged[2], ends[0])  # the first minimum, bit for bit
    if t == 1:
        assert same(merged[2], ends[2])


# -- SLAO ----------------------------------------------------------------------------------------------------------


def gram_schmidt(matrix: Tensor) -> Tensor:
    """Row after row: what the earlier ones leave of it, at length 1. The sign is the row's own."""
    basis: list[Tensor] = []
    for row in matrix.double():
        for other in basis:
            row = row - (row @ other) * other
        basis.append(row / row.norm())
    return torch.stack(basis).float()


@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (4, 32), (8, 8)])
def test_orthonormal_rows(rows: int, columns: int) -> None:
    for seed in range(5):
        source = torch.Generator().manual_seed(seed)
        scale = torch.randn(rows, 1, generator=source).exp()
        matrix = scale * torch.randn(rows, columns, generator=source)
        basis = orthonormal_rows(matrix)
        torch.testing.assert_close(basis @ basis.T, torch.eye(rows), rtol=0, atol=1e-5)
        torch.testing.assert_close(matrix @ basis.T @ basis, matrix, rtol=1e-4, atol=1e-4)  # the same row space
        lower = matrix @ basis.T
        assert (lower.diagonal() > 0).all()
        torch.testing.assert_close(lower, lower.tril(), rtol=0, atol=1e-4)
        torch.testing.assert_close(basis, gram_schmidt(matrix), rtol=1e-3, atol=1e-4)


def test_orthonormal_rows_stay_as_they_are() -> None:
    basis = orthonormal_rows(torch.randn(4, 32, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(orthonormal_rows(basis), basis)
    torch.testing.assert_close(orthonormal_rows(-3 * basis), -basis)


def test_merging_by_hand(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A_i⁰ an orthonormal basis of A_{i-1}, B_i⁰ = B_{i-1}; A_merged = A_i, B_merged += (B_i - B_merged) / √i."""
    starts, ends, merged = lives(begin(make_config(method="slao"), tmp_path / "run"), monkeypatch)
    assert same(merged[0], ends[0])
    share = {1: 0.7071068, 2: 0.5773503}  # 1/√2 for the second task, 1/√3 for the third
    for number in (1, 2):
        for key, start in starts[number].items():
            last, before, now = ends[number - 1][key], merged[number - 1][key], merged[number][key]
            if "lora_A" in key:
                torch.testing.assert_close(start, gram_schmidt(last), rtol=1e-4, atol=1e-5)
                assert float((start - last).abs().max()) > 1e-3
                assert torch.equal(now, ends[number][key])
            else:
                assert torch.equal(start, last)  # of the last task itself, not the merged one
                torch.testing.assert_close(now, before + share[number] * (ends[number][key] - before))
                assert float((now - ends[number][key]).abs().max()) > 1e-4
