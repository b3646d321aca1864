"""O-LoRA: the orthogonality term by hand, frozen earlier adapters, and one saved adapter that is the sum of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ilora import run
from ilora.data.examples import Batch, Example, Totals, collate
from ilora.methods.base import Method
from ilora.methods.olora import OLoRA, span_of_rows
from ilora.model import adapters
from ilora.model.passes import Output
from ilora.settings import AdapterConfig
from tests.helpers import (
    MakeConfig,
    after_each_step,
    begin,
    difference,
    logits,
    move,
    plain,
    snapshot,
    train,
    view,
    weights,
)

OLORA = {"name": "olora"}


@pytest.fixture
def method(tiny_model: Path) -> OLoRA:
    """In its third task, all three adapters far from zero."""
    model = adapters.attach(plain(tiny_model), AdapterConfig(r=4, alpha=8, dropout=0.0), name="fast", seed=0)
    run = view(model, pad=3)
    made = OLoRA(run, OLoRA.Config(name="olora", strength=0.7))
    for index in (1, 2, 3):
        move(made, task_index=index, task=f"task {index}")
        made.begin_task()
        for number, parameter in enumerate(adapters.parameters(model, "fast").values()):
            torch.manual_seed(100 * index + number)
            parameter.data.normal_()
    return made


def summed(tiny_model: Path, model: PeftModel, names: list[str]) -> LlamaForCausalLM:
    """The base model with every adapter's B A · scaling added to its weights by hand."""
    found = plain(tiny_model)
    for name in names:
        factors = snapshot(model, name)
        for key in (key for key in factors if "lora_A" in key):
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            delta = 8 / 4 * factors[key.replace("lora_A", "lora_B")].cpu() @ factors[key].cpu()
            found.get_submodule(path).weight += delta
    return found


# -- the term ------------------------------------------------------------------------------------------------------


def test_the_penalty_by_hand(method: OLoRA) -> None:
    """strength · Σ over layers, earlier tasks, rows of A_k, rows of A_t of (their product)²."""
    model = method.engine.model
    new, total = snapshot(model, "fast"), 0.0
    for name in ("task-0001", "task-0002"):
        for key, old in snapshot(model, name).items():
            if key.endswith("lora_A.weight"):
                assert old.shape == (4, 32)
                total += sum(float(first @ second) ** 2 for first in old for second in new[key])
    penalty = method.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.7 * total, rel=1e-4)


def test_the_penalty_pulls_the_new_a_alone(method: OLoRA) -> None:
    """d/dA_t ‖A_k A_tᵀ‖² = 2 A_t A_kᵀ A_k; nothing for B, nothing for the frozen adapters."""
    model, penalty = method.engine.model, method.penalty()
    assert penalty is not None
    penalty.backward()
    frozen = [snapshot(model, name) for name in ("task-0001", "task-0002")]
    for key, parameter in adapters.parameters(model, "fast").items():
        if "lora_B" in key:
            assert parameter.grad is None
            continue
        expected = 0.7 * sum(2 * parameter.detach() @ old[key].T @ old[key] for old in frozen)
        torch.testing.assert_close(parameter.grad, expected)
    for name in ("task-0001", "task-0002"):
        assert all(parameter.grad is None for parameter in adapters.parameters(model, name).values())


def test_orthogonal_rows_cost_nothing(method: OLoRA) -> None:
    for name, first in (("task-0001", 0), ("task-0002", 4), ("fast", 8)):
        for key, parameter in adapters.parameters(method.engine.model, name).items():
            if "lora_A" in key:
                parameter.data.copy_(torch.eye(32)[first : first + 4])
    assert float(method.penalty().detach()) == 0.0


def test_training_computes_with_the_sum_of_all_adapters(
    tiny_model: Path, method: OLoRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In task four, whose own adapter is still zero: what the loss is made of are the three earlier ones together."""
    model, seen = method.engine.model, []
    cross_entropy = method.cross_entropy

    def watching(output: Output, batch: Batch, totals: Totals) -> Tensor:
        seen.append(output.logits.detach())
        return cross_entropy(output, batch, totals)

    monkeypatch.setattr(method, "cross_entropy", watching)
    move(method, task_index=4, task="task 4")
    method.begin_task()
    assert len(method.earlier) == 3
    model.train()
    rows = [Example("three", "a", [5, 6, 7, 8], [9, 1])]
    method.loss(collate(rows, pad=3), Totals.of(rows))
    for count in (0, 1, 2, 3):
        base = summed(tiny_model, model, method.earlier[:count])
        with torch.no_grad():
            expected = base(input_ids=torch.tensor([[5, 6, 7, 8, 9, 1]])).logits[:, -3:]
        gap = float((seen[0] - expected).abs().max())
        assert gap < 1e-4 if count == 3 else gap > 1e-1


def test_no_term_in_the_first_task_or_at_strength_zero(method: OLoRA, make_config: MakeConfig, tmp_path: Path) -> None:
    assert OLoRA(method.run, OLoRA.Config(name="olora", strength=0)).penalty() is None
    session = begin(make_config(method=OLORA), tmp_path / "run")
    assert session.method.penalty() is None
    for number, _ in enumerate(train(session), 1):
        assert (session.method.penalty() is None) == (number == 1)


def test_the_term_keeps_new_rows_orthogonal(make_config: MakeConfig, tmp_path: Path) -> None:
    overlap = {}
    for strength in (0, 20):
        session = begin(make_config(method=OLORA | {"strength": strength}), tmp_path / str(strength))
        for _ in train(session):
            pass
        old, new = snapshot(session.method.engine.model, "task-0001"), snapshot(session.method.engine.model, "fast")
        overlap[strength] = sum(float((old[k] @ new[k].T).square().sum()) for k in old if "lora_A" in k)
    assert overlap[20] < 0.8 * overlap[0]


@pytest.mark.parametrize("project", ["none", "gradient", "update"])
def test_only_the_projected_step_stays_orthogonal(
    project: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """‖A_k A_tᵀ‖ / (‖A_k‖ ‖A_t‖) after every step: AdamW carries a projected gradient back."""
    overlaps: dict[int, list[float]] = {1: [], 2: []}

    def look(method: Method[Any]) -> None:
        new = snapshot(method.engine.model, "fast")
        for name in [name for name in adapters.names(method.engine.model) if name != "fast"]:
            old = snapshot(method.engine.model, name)
            found = [(old[k] @ new[k].T).norm() / (old[k].norm() * new[k].norm()) for k in old if "lora_A" in k]
            overlaps[method.position.task_index - 1].append(float(max(found)))

    after_each_step(monkeypatch, look)
    config = make_config("training.learning_rate=0.01", method=OLORA | {"strength": 0, "project": project})
    for _ in train(begin(config, tmp_path / "run")):
        pass
    assert (len(overlaps[1]), len(overlaps[2])) == (6, 12)
    both = overlaps[1] + overlaps[2]
    if project == "update":
        assert max(both) < 1e-5
    elif project == "gradient":
        assert overlaps[1][0] < 1e-5 < 1e-2 < max(overlaps[1])  # B is 0 in the first step, so A stays
    else:
        assert min(both) > 1e-2


def test_the_span_of_rows() -> None:
    """Of rows of which one follows from the others."""
    torch.manual_seed(0)
    rows = torch.randn(3, 8)
    basis = span_of_rows(torch.cat([rows, rows[:1] - 2 * rows[1:2]]))
    assert basis.shape == (8, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3))
    torch.testing.assert_close(rows @ basis @ basis.T, rows)


# -- the adapters over a run ---------------------------------------------------------------------------------------


def test_a_task_begins_where_the_last_one_ended_and_leaves_it_frozen(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(make_config(method=OLORA), tmp_path / "run")
    method, model = session.method, session.method.engine.model
    begin_task, after_step = method.begin_task, method.after_step
    starts: list[tuple[Tensor, dict[str, Tensor]]] = []

    def beginning() -> None:
        begin_task()
        starts.append((logits(session, "one"), snapshot(model, "fast")))

    def stepping() -> None:
        after_step()
        for name in adapters.names(model):
            for parameter in adapters.parameters(model, name).values():
                assert parameter.requires_grad == (name == "fast")
                assert (parameter.grad is not None) == (name == "fast")

    monkeypatch.setattr(method, "begin_task", beginning)
    monkeypatch.setattr(method, "after_step", stepping)
    ends = [(logits(session, "one"), snapshot(model, "fast")) for _ in train(session)]
    for number in (1, 2):
        start, fresh = starts[number]
        assert not any(value.any() for key, value in fresh.items() if "lora_B" in key)
        torch.testing.assert_close(start, ends[number - 1][0])  # B is zero: the function is unchanged
        for key, value in fresh.items():
            if "lora_A" in key:
                assert all(float((value - before[key]).abs().max()) > 1e-2 for _, before in ends[:number])
    assert adapters.names(model) == ["fast", "task-0001", "task-0002"]
    for number, name in enumerate(("task-0001", "task-0002")):
        kept = snapshot(model, name)
        assert all(torch.equal(kept[key], value) for key, value in ends[number][1].items())


def test_the_saved_folder_is_the_sum_of_the_adapters(tiny_model: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    """Against PEFT's own loading, and against base weights to which every B A · scaling is added by hand."""
    session = begin(make_config(method=OLORA), tmp_path / "run")
    model = session.method.engine.model
    for number, _ in enumerate(train(session), 1):
        # After so few steps adapters change little: made strong, all of them must show.
        for name in adapters.names(model):
            for parameter in adapters.parameters(model, name).values():
                torch.manual_seed(number)
                parameter.data += 0.3 * torch.randn_like(parameter)
        names = [f"task-{n:04d}" for n in range(1, number)] + ["fast"]
        folder = tmp_path / f"sum-{number}"
        session.method.save(folder)
        assert adapters.names(model) == ["fast", *names[:-1]]  # saving leaves nothing behind
        saved = load_file(folder / "fast" / "adapter_model.safetensors")
        assert {value.shape[0] for key, value in saved.items() if "lora_A" in key} == {4 * number}
        ids = torch.tensor([session.stream.train["two"][0].prompt])
        by_hand = summed(tiny_model, model, names)
        loaded = PeftModel.from_pretrained(plain(tiny_model), folder / "fast").eval()
        with torch.no_grad():
            expected = by_hand(input_ids=ids).logits
            assert float((expected - plain(tiny_model)(input_ids=ids).logits).abs().max()) > 0.1
            torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-4)
            model.eval()
            with session.method.inference("one", "fast"):
                torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-4)
            model.train()


def test_merged_evaluation_gives_the_same_answers(make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config(method=OLORA), tmp_path / "run")
    for _ in train(session):
        pass
    originals = {key: value.clone() for key, value in session.method.engine.core.state_dict().items()}
    expected = logits(session, "two")
    session.method.engine.merge = True
    assert not torch.equal(logits(session, "two"), expected)  # it is another way to compute it
    torch.testing.assert_close(logits(session, "two"), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, originals[key]) for key, value in session.method.engine.core.state_dict().items())


def test_gradient_checkpointing_changes_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is computed again inside `backward` is computed with all adapters, not only with the new one."""
    left, calls = {}, {}
    for checkpointing in (False, True):
        config = make_config(
            "adapter.dropout=0", f"model.gradient_checkpointing={str(checkpointing).lower()}", method=OLORA
        )
        session = begin(config, tmp_path / str(checkpointing))
        count = [0]

        def counting(_module: nn.Module, _inputs: object, count: list[int] = count) -> None:
            count[0] += torch.is_grad_enabled()

        session.method.engine.core.model.layers[0].self_attn.q_proj.register_forward_pre_hook(counting)
        for _ in train(session):
            pass
        left[checkpointing], calls[checkpointing] = weights(session.path), count[0]
    assert calls[True] == 2 * calls[False] == 36  # each of the 18 steps' passes was done twice
    assert difference(left[False], left[True]) == 0.0


def test_a_run_with_merging(make_config: MakeConfig, tmp_path: Path) -> None:
    plainly, merging = (
        run(make_config(f"evaluation.merge={merge}", "training.epochs=1", method=OLORA), tmp_path / merge, quiet=True)
        for merge in ("false", "true")
    )
    assert difference(weights(plainly.path), weights(merging.path)) == 0.0
    assert merging.results["variants"] == plainly.results["variants"]
