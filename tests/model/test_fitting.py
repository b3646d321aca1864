"""Out of memory in what is no training step: it is taken again in smaller parts, with the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ilora.data.examples import Batch
from ilora.errors import IloraError
from ilora.evaluation.perplexity import perplexity
from ilora.methods.view import Position
from ilora.model.adapted import input_moments
from ilora.model.engine import Engine
from ilora.model.fitting import fitted, in_batches
from ilora.settings import TrainingConfig
from tests.training.test_loop import ROWS, make


def short(engine: Engine, monkeypatch: pytest.MonkeyPatch, *, rows: int = 10**6, columns: int = 10**6) -> list[int]:
    """From now on a pass over more rows, or with logits of more columns, fails after its work; those that went."""
    went: list[int] = []
    forward, states = engine.forward, engine.states

    def failing(of: Any, batch: Batch, **arguments: Any) -> Any:
        made = of(batch, **arguments)
        logits = getattr(made, "logits", None)
        if len(batch.examples) > rows or (logits is not None and logits.shape[1] > columns):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
        went.append(len(batch.examples))
        return made

    monkeypatch.setattr(engine, "forward", lambda batch, **more: failing(forward, batch, **more))
    monkeypatch.setattr(engine, "states", lambda batch, **more: failing(states, batch, **more))
    return went


def test_a_reference_gradient_is_the_same_and_counts_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(tiny_model, "gem", memory_size=8)
    expected = method.gradient(ROWS)
    method.engine.passes.update(forward=0, backward=0)
    went = short(method.engine, monkeypatch, rows=2)
    torch.testing.assert_close(method.gradient(ROWS), expected, rtol=1e-5, atol=1e-7)
    assert method.engine.passes == {"forward": len(ROWS), "backward": len(ROWS)}
    assert max(went) <= 2
    assert method.engine.micro_batch_size in (1, 2)  # and later passes begin so


def test_stored_logits_are_the_same(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (100, 1):
        method = make(tiny_model, "derpp", memory_size=8)
        method.run.position = Position(task="one", task_index=1, task_step=1, task_steps=1)
        short(method.engine, monkeypatch, rows=most)
        method.memory.offer(ROWS)
        method.end_task()
        found.append(method.logits)
    assert found[0].keys() == found[1].keys()
    assert found[0]
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6)


def test_moments_of_a_failed_pass_do_not_count(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(tiny_model).engine
    expected = input_moments(engine, ROWS)
    short(engine, monkeypatch, rows=1)
    for path, moment in input_moments(engine, ROWS).items():
        torch.testing.assert_close(moment, expected[path], rtol=1e-5, atol=1e-5)


def test_perplexity_makes_fewer_logits_at_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(tiny_model).engine
    windows = [[0, 5, 6, 7, 8, 9, 10], [0, 8]]
    expected = perplexity(engine, windows)
    went = short(engine, monkeypatch, columns=2)
    found = perplexity(engine, windows)
    assert found["tokens"] == expected["tokens"]
    assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    assert len(went) > len(windows)


def test_fisher_of_a_single_row_that_does_not_fit_says_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(tiny_model, "ewc")
    method.run.rows, method.run.training = ROWS, TrainingConfig()
    short(method.engine, monkeypatch, rows=0)
    with pytest.raises(IloraError, match=r"single rows of up to \d+ tokens .*data\.max_length"):
        method.end_task()


def test_where_single_rows_do_not_fit_activations_are_computed_again(tiny_model: Path) -> None:
    engine = make(tiny_model).engine
    engine.may_recompute = True

    def compute() -> str:
        if not engine.recomputes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    with torch.no_grad(), pytest.raises(IloraError):  # where there is no backward pass, that helps nothing
        fitted(engine, ROWS, compute)
    assert fitted(engine, ROWS, compute) == "done"
    assert any(getattr(module, "gradient_checkpointing", False) for module in engine.core.modules())
    engine.recomputes = False
    engine.may_recompute = False
    with pytest.raises(IloraError, match="gradient_checkpointing: true"):
        fitted(engine, ROWS, compute)


def test_parts_come_in_order_and_stay_small(tiny_model: Path) -> None:
    def compute(part: Any) -> int:
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(part)

    found = list(in_batches(make(tiny_model).engine, range(10), compute, size=8, what="rows"))
    assert [row for part, _ in found for row in part] == list(range(10))
    assert [len(part) for part, _ in found] == [2, 2, 2, 2, 2]
    assert sum(made for _, made in found) == 45
