"""What suits an engine to a GPU, as far as a CPU shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ilora.data.examples import Totals
from ilora.model.gpu import compile_layers
from ilora.training.session import Session
from tests.helpers import MakeConfig, begin


def losses_and_gradients(session: Session) -> list[Tensor]:
    """Of two micro-batches of different lengths, by the method's own loss."""
    found = []
    for part in (slice(0, 3), slice(3, 8)):
        (batch,) = session.method.engine.micro_batches(session.stream.train["one"][part], size=99)
        loss = session.method.loss(batch, Totals.of(batch.examples))
        found += [loss.detach(), *torch.autograd.grad(loss, session.method.trainable)]
    return found


def test_compiled_layers_equal_plain_ones(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and cut into forward and backward as on a GPU, where they are fused, too."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._functorch.config.activation_memory_budget", 1.0)
    session = begin(make_config("adapter.dropout=0", method="ilora"), tmp_path / "run")
    session.method.engine.model.train()
    session.method.begin_task()
    expected = losses_and_gradients(session)
    compile_layers(session.method.engine, backend="aot_eager")
    for got, wanted in zip(losses_and_gradients(session), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert str(tmp_path) in session.method.engine.notices[0]
