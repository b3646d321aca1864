"""DER++: a fair reservoir, logits stored once at the right moment, and the logit term against its formula."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from scipy import stats
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora import run
from ilora.data.examples import Batch, Example, Totals, collate
from ilora.methods.derpp import DERpp
from ilora.model import adapters
from ilora.model.passes import Output
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig
from tests.helpers import FEW_SCORES, MakeConfig, move, train_with, view

CURRENT = [Example("two", "two/train/0", [5, 6, 7, 8], [9, 1]), Example("two", "two/train/1", [10, 11], [12, 1])]
REPLAYED = [
    Example("one", "one/train/0", [13, 14, 15], [16, 30, 31, 1], replayed=True),
    Example("one", "one/train/1", [17], [1], replayed=True),
    Example("one", "one/train/2", [18, 19], [20, 1], replayed=True),
]


@pytest.fixture
def method(tiny_model: Path) -> DERpp:
    """DER++ in training mode in its second task, at weights that are not the base model's."""
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    model = adapters.attach(base, AdapterConfig(r=4, alpha=8, dropout=0.0), name="fast", seed=1)
    model.train()
    run = view(model, pad=1, memory=ReplayMemory(10, seed=0), task="two", current_tasks=frozenset({"two"}))
    made = DERpp(run, DERpp.Config(name="derpp"))
    shake(made)
    return made


def with_settings(method: DERpp, **settings: object) -> DERpp:
    return DERpp(method.run, DERpp.Config(name="derpp", **settings))


def shake(method: DERpp) -> None:
    torch.manual_seed(3)
    for parameter in method.trainable:
        parameter.data += 0.2 * torch.randn_like(parameter)


def rows(count: int, task: str = "one") -> list[Example]:
    return [
        Example(task, f"{task}/train/{n}", [5, 6 + n % 50, 7][: 1 + n % 3], [40 + n % 20] * (n % 4) + [1])
        for n in range(count)
    ]


def logits_by_hand(model: PeftModel, example: Example) -> Tensor:
    """At the answer's positions, one row without padding, as at inference, by transformers and PEFT alone."""
    before = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.prompt + example.answer], device=model.device)).logits
    model.train(before)
    return torch.stack([logits[0, len(example.prompt) - 1 + n] for n in range(len(example.answer))])


# -- the reservoir ---------------------------------------------------------------------------------------------


def test_every_row_is_kept_with_equal_probability_and_has_logits(
    method: DERpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: Counter[str] = Counter()

    def forward(batch: Batch, **_: bool) -> Output:
        stored.update(example.id for example in batch.examples)
        return Output(torch.zeros(len(batch.examples), batch.keep, 3))

    monkeypatch.setattr(method.engine, "forward", forward)
    size, offered, trials = 10, 40, 500
    kept = [0] * offered
    for seed in range(trials):
        stored.clear()
        method.run = replace(method.run, memory=ReplayMemory(size, seed=seed))
        fresh = with_settings(method)
        for start in range(0, offered, 8):
            move(fresh, step=start)
            batch = fresh.extend_batch(rows(offered)[start : start + 8])
            replayed = [example for example in batch if example.replayed]  # may have lost their places just now
            held = {example.id for example in [*fresh.memory.examples, *replayed]}
            assert fresh.logits.keys() == held
        fresh.extend_batch([])
        assert fresh.entries.keys() == fresh.logits.keys()
        assert len(fresh.logits) == size
        assert set(stored.values()) == {1}  # once each
        for key in fresh.logits:
            kept[int(key.rpartition("/")[2])] += 1
    # Each trial draws without replacement, which makes the counts a little more even than a multinomial's.
    assert stats.chisquare(kept).pvalue > 0.001
    assert sum(kept) == size * trials


# -- what is stored --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, None, 100_000])
def test_the_largest_logits_of_the_answer_are_stored(method: DERpp, count: int | None) -> None:
    method = with_settings(method, stored_logits=count)
    method.extend_batch(rows(7))
    vocabulary = int(method.engine.core.config.vocab_size)  # type: ignore[union-attr, arg-type]
    assert len(method.logits) == 7
    for example in rows(7):
        values, entries = method.logits[example.id], method.entries[example.id].long()
        whole = logits_by_hand(method.engine.model, example)
        assert values.shape == entries.shape == (len(example.answer), min(count or vocabulary, vocabulary))
        torch.testing.assert_close(values, whole.gather(1, entries), rtol=1e-4, atol=1e-5)
        assert all(len(set(position)) == len(position) for position in entries.tolist())
        rest = whole.scatter(1, entries, -torch.inf)
        assert bool((rest.amax(1) <= values.amin(1) + 1e-5).all())


@pytest.mark.parametrize("micro", [1, 3])
def test_stored_logits_do_not_depend_on_the_micro_batch_size(method: DERpp, micro: int) -> None:
    method.extend_batch(rows(7))
    train_with(method, micro_batch_size=micro)
    method.memory.examples, other = [], with_settings(method)
    other.extend_batch(rows(7))
    assert other.logits.keys() == method.logits.keys()
    for key in method.logits:
        torch.testing.assert_close(other.logits[key], method.logits[key], rtol=1e-4, atol=1e-5)


def test_logits_over_a_run(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the weights before the step that takes the row, without dropout; never again while the row stays."""
    extend = DERpp.extend_batch
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    events: Counter[str] = Counter()

    def watching(self: DERpp, examples: list[Example]) -> list[Example]:
        before = {example.id for example in self.memory.examples}
        batch = extend(self, examples)
        kept = {example.id: example for example in self.memory.examples}
        replayed = {example.id: example for example in batch if example.replayed}
        assert self.logits.keys() == self.entries.keys() == kept.keys() | replayed.keys()
        assert replayed.keys() <= before
        events["left"] += len(before - kept.keys())
        events["replayed as it left"] += len(replayed.keys() - kept.keys())
        for gone in seen.keys() - self.logits.keys():
            del seen[gone]
        for key, (values, entries) in seen.items():
            assert torch.equal(self.logits[key], values)
            assert torch.equal(self.entries[key], entries)
        for key in self.logits.keys() - seen.keys():
            assert key not in before
            whole = logits_by_hand(self.engine.model, kept[key])
            values, entries = self.logits[key], self.entries[key]
            torch.testing.assert_close(values, whole.topk(16).values, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(values, whole.gather(1, entries.long()), rtol=1e-4, atol=1e-5)
            seen[key] = values.clone(), entries.clone()
            events["stored"] += 1
        return batch

    monkeypatch.setattr(DERpp, "extend_batch", watching)
    settings = {"name": "derpp", "memory_size": 12, "stored_logits": 16}
    config = make_config("training.learning_rate=0.05", "adapter.dropout=0.5", *FEW_SCORES, method=settings)
    result = run(config, tmp_path / "run", quiet=True)
    assert events["stored"] == events["left"] + 12
    assert events["left"] > 5
    assert events["replayed as it left"] > 0
    answers = sum(len(values) for values, _ in seen.values())
    assert result.results["cost"]["stored_bytes"]["logits"] == answers * 16 * 4
    assert result.results["cost"]["stored_bytes"]["entries"] == answers * 16 * 4


def test_a_row_replayed_as_it_leaves_still_has_its_logits(method: DERpp) -> None:
    """For that step; then they are dropped."""
    method.run.memory = ReplayMemory(2, seed=0)
    method.memory.offer(rows(2, "one"))
    method.extend_batch([])
    first = dict(method.logits)
    batch = method.extend_batch(rows(60, "two"))
    replayed = {example.id for example in batch if example.replayed}
    assert replayed == {"one/train/0", "one/train/1"}
    assert method.memory.tasks == ["two"]  # both lost their places
    assert all(torch.equal(method.logits[key], first[key]) for key in replayed)
    method.loss(collate(batch, pad=1), Totals.of(batch))
    assert float(method.run.terms["logits"]) == pytest.approx(0.0, abs=1e-8)  # the weights have not moved
    method.extend_batch([])
    assert method.logits.keys() == {example.id for example in method.memory.examples}
    assert len(method.logits) == 2


# -- the term --------------------------------------------------------------------------------------------------


def remember(method: DERpp, kept: int = 6) -> None:
    """Random stored logits for REPLAYED."""
    torch.manual_seed(1)
    for example in REPLAYED:
        count = len(example.answer)
        method.logits[example.id] = torch.randn(count, kept)
        method.entries[example.id] = torch.stack([torch.randperm(200)[:kept] for _ in range(count)]).int()


def test_logit_term_by_hand(method: DERpp) -> None:
    """Squares: the mean over kept entries, the sum over answer tokens / the step's replayed answer tokens."""
    remember(method)
    total = 0.0
    for example in REPLAYED:
        whole = logits_by_hand(method.engine.model, example)
        for position, values, entries in zip(whole, method.logits[example.id], method.entries[example.id], strict=True):
            total += sum(
                (float(position[entry]) - float(value)) ** 2
                for entry, value in zip(entries.tolist(), values.tolist(), strict=True)
            ) / len(values)
    batch = CURRENT + REPLAYED
    totals = Totals.of(batch)
    for parts in ([batch], [batch[:3], batch[3:]], [[example] for example in batch]):
        method.run.terms.clear()
        for part in parts:
            method.loss(collate(part, pad=1), totals)
        assert float(method.run.terms["logits"]) == pytest.approx(total / (4 + 1 + 2), rel=1e-4)


def test_loss_is_half_current_half_replayed_plus_term(method: DERpp) -> None:
    method = with_settings(method, strength=0.3)
    remember(method)

    def plain(examples: list[Example]) -> float:
        sums = sum(
            float(logits_by_hand(method.engine.model, example).log_softmax(1)[n, token])
            for example in examples
            for n, token in enumerate(example.answer)
        )
        return -sums / sum(len(example.answer) for example in examples)

    batch = CURRENT + REPLAYED
    loss = method.loss(collate(batch, pad=1), Totals.of(batch))
    term = float(method.run.terms["logits"])
    assert loss.item() == pytest.approx(0.5 * plain(CURRENT) + 0.5 * plain(REPLAYED) + 0.3 * term, rel=1e-4)
    assert term > 0.1
    before = {key: value.clone() for key, value in method.logits.items()}
    loss.backward()
    assert all(torch.equal(method.logits[key], value) for key, value in before.items())


def test_gradient_of_the_term(method: DERpp) -> None:
    """Finite differences in the weight that the loss depends on most, with the term far above the rest."""
    method = with_settings(method, strength=50.0)
    remember(method)
    batch = CURRENT + REPLAYED
    inputs, totals = collate(batch, pad=1), Totals.of(batch)
    method.loss(inputs, totals).backward()
    parameter = max(method.trainable, key=lambda item: float(item.grad.abs().max()))  # type: ignore[union-attr]
    assert parameter.grad is not None
    index, values, step = int(parameter.grad.abs().argmax()), [], 3e-3
    for sign in (1, -1):
        with torch.no_grad():
            parameter.view(-1)[index] += sign * step
            values.append(float(method.loss(inputs, totals)))
            parameter.view(-1)[index] -= sign * step
    assert float(parameter.grad.view(-1)[index]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2)


@pytest.mark.parametrize("count", [4, None])
def test_term_is_zero_until_the_weights_move(method: DERpp, count: int | None) -> None:
    method = with_settings(method, stored_logits=count)
    method.memory.offer([replace(example, replayed=False) for example in REPLAYED])
    batch = method.extend_batch(CURRENT)
    assert sum(example.replayed for example in batch) == 2

    def term() -> float:
        method.run.terms.clear()
        method.loss(collate(batch, pad=1), Totals.of(batch))
        return float(method.run.terms["logits"])

    assert term() == pytest.approx(0.0, abs=1e-9)
    shake(method)
    assert term() > 1e-3


def test_no_term_without_replayed_rows(method: DERpp) -> None:
    batch = method.extend_batch(CURRENT)
    assert batch == CURRENT
    loss = method.loss(collate(batch, pad=1), Totals.of(batch))
    assert method.run.terms.keys() == {"ce"}
    assert loss.item() == pytest.approx(float(method.run.terms["ce"]))


# -- state -----------------------------------------------------------------------------------------------------


def test_state_round_trip(method: DERpp) -> None:
    method.extend_batch([*rows(5), Example("a.b", "1-a.b/train/0", [5, 6], [7, 1])])
    state = {key: value.clone() for key, value in method.state_dict().items()}
    other = with_settings(method)
    other.load_state_dict(state)
    assert len(method.logits) == 6
    for ours, theirs in ((other.logits, method.logits), (other.entries, method.entries)):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert torch.equal(ours[key], theirs[key])
            assert ours[key].dtype == theirs[key].dtype
    move(other)
    other.extend_batch([])  # nothing is stored anew
    assert all(torch.equal(other.logits[key], value) for key, value in method.logits.items())


def test_a_balanced_memory_has_its_rows_logits_at_the_tasks_end(method: DERpp) -> None:
    method.config = DERpp.Config(name="derpp", memory_policy="balanced")
    method.memory.capacity = 2
    for task in ("x", "y"):
        method.run.rows = [Example(task, f"{task}{n}", [5, 6 + n], [9 + n, 1]) for n in range(4)]
        method.end_task()
        assert method.logits.keys() == method.entries.keys() == {row.id for row in method.memory.examples}
    assert len(method.logits) == 2
