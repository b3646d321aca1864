"""Recorded passes, checked on a CPU: the recorder of these tests computes again instead of replaying a CUDA graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ilora.data.examples import Batch, Totals
from ilora.kernels.attention import GROUPED
from ilora.kernels.packing import Packing, fill, round_up
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.gpu import record_passes
from ilora.training.loop import optimizer_step
from ilora.training.session import Session
from tests.helpers import CALLS, MakeConfig, begin, difference, move, settings, snapshot, train
from tests.kernels.helpers import Again


def recorded(engine: Engine) -> Again:
    """Give the engine our attention, and recorded passes."""
    engine.core.set_attn_implementation(GROUPED)
    recorder = Again()
    record_passes(engine, recorder)
    return recorder


@pytest.fixture
def session(make_config: MakeConfig, tmp_path: Path) -> Session:
    made = begin(make_config("adapter.dropout=0"), tmp_path / "run")
    made.method.engine.model.train()
    return made


def a_batch(session: Session, *, rows: slice = slice(0, 5)) -> Batch:
    (batch,) = session.method.engine.micro_batches(session.stream.train["one"][rows], size=99)
    return batch


def loss_and_gradient(session: Session, batch: Batch) -> tuple[Tensor, Tensor]:
    loss = session.method.loss(batch, Totals.of(batch.examples))
    return loss.detach(), torch.cat([part.flatten() for part in torch.autograd.grad(loss, session.method.trainable)])


def test_the_recorded_pass_equals_the_plain_one(session: Session) -> None:
    first, second = a_batch(session), a_batch(session, rows=slice(5, 10))
    expected = [loss_and_gradient(session, batch) for batch in (first, second)]
    recorder = recorded(session.method.engine)
    for _ in range(3):
        for batch, (loss, gradient) in zip((first, second), expected, strict=True):
            got, of = loss_and_gradient(session, batch)
            torch.testing.assert_close(got, loss, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(of, gradient, rtol=1e-5, atol=1e-6)
    assert recorder.replayed > 0


def test_all_layers_and_the_hidden_states_come_through(session: Session) -> None:
    engine, batch = session.method.engine, a_batch(session)
    expected = engine.forward(batch, hidden="all")
    states = engine.states(batch, layers="last")
    recorder = recorded(engine)
    for _ in range(3):
        got = engine.forward(batch, hidden="all")
        torch.testing.assert_close(got.answer_logits, expected.answer_logits, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(got.hidden, expected.hidden, strict=True):
            torch.testing.assert_close(ours, theirs * batch.attention_mask[..., None], rtol=1e-5, atol=1e-6)
        del got, ours
        with torch.no_grad():
            torch.testing.assert_close(engine.states(batch)[0], states[0] * batch.attention_mask[..., None])
    assert recorder.replayed > 0


def test_a_second_pass_before_the_backward_of_the_first_is_computed_plainly(session: Session) -> None:
    engine, batch = session.method.engine, a_batch(session)
    expected = loss_and_gradient(session, batch)[1]
    recorder = recorded(engine)
    for _ in range(2):
        loss_and_gradient(session, batch)
    loss = session.method.loss(batch, Totals.of(batch.examples))
    before = recorder.replayed
    with torch.no_grad():
        engine.states(a_batch(session, rows=slice(5, 10)))
    assert recorder.replayed == before
    got = torch.cat([part.flatten() for part in torch.autograd.grad(loss, session.method.trainable)])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_pass_goes_back_once(session: Session) -> None:
    batch = a_batch(session)
    recorded(session.method.engine)
    for _ in range(2):
        loss_and_gradient(session, batch)
    loss = session.method.loss(batch, Totals.of(batch.examples))
    torch.autograd.grad(loss, session.method.trainable, retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(loss, session.method.trainable)


def test_weights_that_move_in_place_and_other_adapters_are_seen(session: Session) -> None:
    engine, batch = session.method.engine, a_batch(session)
    adapters.keep_copy(engine.model, "fast", "slow")
    recorded(engine)
    with torch.no_grad():
        for _ in range(3):
            engine.states(batch)
        for parameter in session.method.trainable:
            parameter.add_(0.3)
        (moved,) = engine.states(batch)
        for _ in range(3):
            with adapters.active(engine.model, "slow"):
                (slow,) = engine.states(batch)
    engine.graphs.remove()
    with torch.no_grad():
        torch.testing.assert_close(engine.states(batch)[0], moved, rtol=1e-5, atol=1e-6)
        with adapters.active(engine.model, "slow"):
            torch.testing.assert_close(engine.states(batch)[0], slow, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(moved, slow)


@pytest.mark.parametrize("name", CALLS)
def test_methods_take_the_same_steps(name: str, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("adapter.dropout=0", "training.epochs=1", "data.tasks=[one, two]", method=settings(name))
    results, recorder = [], None
    for record in (False, True):
        session = begin(config, tmp_path / f"{record}")
        session.method.engine.core.set_attn_implementation(GROUPED)
        if record:
            recorder = recorded(session.method.engine)
        for _ in train(session):
            pass
        results.append({f"{n}": value.detach() for n, value in enumerate(session.method.trainable)})
    assert difference(*results) <= 1e-5
    assert recorder is not None
    assert recorder.replayed > 0


def test_dropout_depends_on_the_step_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    """Recording draws random numbers, too: they must not show."""
    weights = []
    for early in (False, True):
        session = begin(make_config("adapter.dropout=0.5"), tmp_path / f"{early}")
        session.method.engine.model.train()
        session.method.begin_task()
        recorded(session.method.engine)
        rows = session.stream.train["one"][:6]
        if early:  # this one has its recordings before the first step
            for _ in range(2):
                loss_and_gradient(session, a_batch(session, rows=slice(0, 6)))
        move(session.method, task_step=1, task_steps=10)
        for _ in range(3):
            optimizer_step(session.method, session.state.optimizer, rows)
        weights.append(snapshot(session.method.engine.model, "fast"))
    assert difference(*weights) == 0.0


def test_few_shapes_occur() -> None:
    assert [round_up(number) for number in (1, 16, 17, 128, 129, 256, 257, 2000)] == [
        16,
        16,
        32,
        128,
        144,
        256,
        288,
        2048,
    ]
    shapes = set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        lengths = torch.randint(32, 129, (32,), generator=generator)
        mask = (torch.arange(int(lengths.max())) >= lengths.max() - lengths[:, None]).long()
        filled = fill(mask)
        assert torch.equal(filled[:32, filled.shape[1] - mask.shape[1] :], mask)
        assert filled[:32].sum() == mask.sum()
        shapes.add((*filled.shape, int(filled.sum())))
    assert len(shapes) <= 8


def test_filling_never_shows() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    packing = Packing.of(fill(mask), shown=(2, 5))
    values = torch.arange(10.0).view(2, 5, 1)
    packed = packing.spread(
        packing.pack(torch.nn.functional.pad(values, (0, 0, packing.length - 5, 0, 0, packing.rows - 2)))
    )
    assert torch.equal(packed, values * mask[..., None])
    assert len(packing.columns(2)) == 4
