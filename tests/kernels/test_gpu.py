"""What only a card can show: CUDA graphs, attention of packed rows, and a resume that gives the same bits there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilora import resume, run
from ilora.data.examples import Totals
from ilora.kernels.attention import GROUPED
from ilora.kernels.graphs import CudaRecorder
from ilora.methods import METHODS
from ilora.model.gpu import record_passes
from ilora.training.session import Session
from tests.helpers import MakeConfig, begin, difference, run_killed, settings, train, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Row by row, in float32."""
    repeats, parts = query.shape[1] // key.shape[1], []
    for rows in zip(*(part.float().split(lengths) for part in (query, key, value)), strict=True):
        one = [part.transpose(0, 1).unsqueeze(0) for part in rows]
        one[1:] = [part.repeat_interleave(repeats, 1) for part in one[1:]]
        parts.append(torch.nn.functional.scaled_dot_product_attention(*one, is_causal=True)[0].transpose(0, 1))
    return torch.cat(parts)


def test_attention_in_packed_rows_equals_that_of_single_rows() -> None:
    torch.manual_seed(0)
    lengths = [5, 0, 64, 17, 1]
    starts = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    query = torch.randn(sum(lengths), 6, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    key, value = (
        torch.randn(sum(lengths), 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in "kv"
    )
    upstream = torch.randn_like(query)
    mixed, _ = torch.ops.ilora.attend_in_rows(query, key, value, starts, 64, 0.125)
    expected = reference(query, key, value, [length for length in lengths if length])
    ours = torch.autograd.grad(mixed, (query, key, value), upstream, retain_graph=True)
    theirs = torch.autograd.grad(expected, (query, key, value), upstream.float())
    for got, wanted in zip((mixed, *ours), (expected, *theirs), strict=True):
        assert float((got.float() - wanted.float()).norm() / wanted.float().norm()) < 1e-2  # bfloat16's
    again = torch.autograd.grad(mixed, (query, key, value), upstream)
    assert all(torch.equal(first, second) for first, second in zip(ours, again, strict=True))


def losses_and_gradients(session: Session, times: int) -> list[torch.Tensor]:
    found = []
    for number in range(times):
        rows = session.stream.train["one"][4 * (number % 3) : 4 * (number % 3) + 4]
        (batch,) = session.method.engine.micro_batches(rows, size=99)
        torch.manual_seed(number)
        loss = session.method.loss(batch, Totals.of(batch.examples))
        parts = torch.autograd.grad(loss, session.method.trainable)
        found.append(torch.cat([loss.detach().flatten(), *[part.flatten() for part in parts]]))
    return found


def test_a_graph_equals_the_eager_pass_in_float32(make_config: MakeConfig, tmp_path: Path) -> None:
    """Dropout included: the same seed gives the same masks in a replayed pass."""
    found = []
    for graphs in (False, True):
        session = begin(make_config("adapter.dropout=0.3"), tmp_path / f"{graphs}")
        session.method.engine.model.train()
        session.method.engine.core.set_attn_implementation(GROUPED)
        session.method.begin_task()
        if graphs:
            record_passes(session.method.engine, CudaRecorder())
        found.append(losses_and_gradients(session, 9))
    assert session.method.engine.graphs is not None
    assert session.method.engine.graphs.recordings
    for eager, replayed in zip(*found, strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_trains_the_same_with_graphs(name: str, make_config: MakeConfig, tmp_path: Path) -> None:
    results = []
    for graphs in (False, True):
        config = make_config("adapter.dropout=0", "training.epochs=1", method=settings(name))
        session = begin(config, tmp_path / f"{graphs}")
        session.method.engine.core.set_attn_implementation(GROUPED)
        if graphs:
            record_passes(session.method.engine, CudaRecorder())
        for _ in train(session):
            pass
        results.append({f"{n}": value.detach() for n, value in enumerate(session.method.trainable)})
    # AdamW divides by the gradient's size, which makes much of the last bits of small gradients.
    assert difference(*results) <= 1e-4


@pytest.mark.parametrize("name", ["ilora", "gem"])
def test_a_killed_run_in_bfloat16_goes_on_to_the_same_bits(
    name: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("model.dtype=bfloat16", "training.epochs=4", method=settings(name))
    run(config, tmp_path / "whole", quiet=True)
    run_killed(config, tmp_path / "killed", monkeypatch, at="step", count=17)
    resume(tmp_path / "killed", quiet=True)
    assert difference(weights(tmp_path / "whole"), weights(tmp_path / "killed")) == 0.0
