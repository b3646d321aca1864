"""Progressive Prompts: what stands before the input, when, and that nothing of it is ever forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig

from ilora import run
from ilora.data.examples import Example, Totals, collate
from ilora.methods import METHODS
from ilora.methods.progressive_prompts import ProgressivePrompts
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.results.scores import read_records
from ilora.settings import AdapterConfig
from ilora.training.session import Session
from tests.helpers import LABELS, MakeConfig, begin, logits, move, plain, snapshot, train, view

LENGTH = 3
SMALL = {"name": "progressive_prompts", "prompt_length": LENGTH, "bottleneck": 7}
ROWS = [Example("one", "a", [5, 6, 7, 8, 9, 10, 11], [12, 1]), Example("one", "b", [13, 14], [15, 16, 17, 1])]


@pytest.fixture
def method(tiny_model: Path) -> ProgressivePrompts:
    """In its third task: a prompt and an MLP in training, two finished prompts, all of them far from zero."""
    model = adapters.attach(plain(tiny_model), AdapterConfig(r=4, alpha=8, dropout=0.5), name="fast", seed=0)
    run = view(model, pad=3)
    made = ProgressivePrompts(run, ProgressivePrompts.Config(**SMALL))
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in [*adapters.parameters(model, "fast").values(), *made.trainable]:
            parameter.normal_(generator=source)
    made.finished = [torch.randn(LENGTH, 32, generator=source) for _ in range(2)]
    made.number_of = {"one": 1, "two": 2}
    return made


def inputs_of(engine: Engine) -> list[Tensor]:
    """From now on, the embeddings that every forward pass of the model begins with (tokens alone: their count)."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
        vectors = given.get("inputs_embeds")
        seen.append((torch.empty(given["input_ids"].shape) if vectors is None else vectors).detach())

    engine.core.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


# -- the prompt ----------------------------------------------------------------------------------------------------


def by_hand(method: ProgressivePrompts) -> Tensor:
    """p + W₂ max(0, W₁ p + b₁) + b₂ for one vector after another."""
    first, bias, second, shift = (value.detach() for value in method.mlp)
    rows = []
    for vector in method.prompt.detach():
        inner = torch.tensor([max(0.0, float(weight @ vector + b)) for weight, b in zip(first, bias, strict=True)])
        rows.append(vector + torch.stack([weight @ inner for weight in second]) + shift)
    return torch.stack(rows)


def test_the_residual_mlp_by_hand(method: ProgressivePrompts) -> None:
    assert not torch.allclose(method.prompt, by_hand(method))
    torch.testing.assert_close(method.new_prompt().detach(), by_hand(method))


def test_the_mlp_is_dropped_after_the_task(method: ProgressivePrompts) -> None:
    kept, parameters = by_hand(method), list(method.trainable)
    move(method, current_tasks=frozenset({"three"}))
    method.end_task()
    move(method, task_index=4)
    method.begin_task()
    torch.testing.assert_close(method.finished[2], kept)  # as the MLP made it, and not touched by the new one
    assert not method.finished[2].requires_grad
    assert all(now is then for now, then in zip(method.trainable, parameters, strict=True))  # known to the optimizer
    words = method.engine.core.get_input_embeddings().weight
    for vector in method.new_prompt().detach():  # begins as a word's embedding: the MLP adds nothing yet
        assert any(torch.equal(vector, word) for word in words)
    _, bias, second, shift = method.mlp
    assert not any(value.any() for value in (bias, second, shift))


def test_a_new_task_begins_with_other_words_and_another_mlp(method: ProgressivePrompts) -> None:
    begun = []
    for index in (1, 2, 2):
        move(method, task_index=index)
        method.begin_task()
        begun.append([value.detach().clone() for value in (method.prompt, method.mlp[0])])
    assert all(torch.equal(*pair) for pair in zip(begun[1], begun[2], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(begun[0], begun[1], strict=True))


# -- where it stands -----------------------------------------------------------------------------------------------


def test_the_newest_prompt_comes_first_in_training(tiny_model: Path, method: ProgressivePrompts) -> None:
    """[P₃, P₂, P₁, x]; the loss is that of plain transformers, row by row, without padding."""
    seen = inputs_of(method.engine)
    method.engine.model.train()
    batch = collate(ROWS, pad=3)
    loss = float(method.loss(batch, Totals.of(ROWS)).detach())
    prefix = torch.cat([by_hand(method), method.finished[1], method.finished[0]])
    base = plain(tiny_model)
    words = base.model.embed_tokens(batch.input_ids)
    torch.testing.assert_close(seen[0], torch.cat([prefix.expand(2, -1, -1), words], dim=1))
    total = 0.0
    for row in ROWS:
        vectors = torch.cat([prefix, base.model.embed_tokens(torch.tensor(row.prompt + row.answer))])[None]
        labels = torch.tensor([[-100] * (3 * LENGTH + len(row.prompt)) + row.answer])
        with torch.no_grad():
            total += float(base(inputs_embeds=vectors, labels=labels).loss) * len(row.answer)
    assert loss == pytest.approx(total / 6, rel=1e-5)


def test_only_the_new_prompt_and_its_mlp_are_trained(method: ProgressivePrompts) -> None:
    method.loss(collate(ROWS, pad=3), Totals.of(ROWS)).backward()
    assert all(bool(parameter.grad.any()) for parameter in method.trainable)
    assert all(parameter.grad is None for parameter in method.engine.model.parameters())
    assert not any(prompt.requires_grad for prompt in method.finished)


@pytest.mark.parametrize(("task", "order"), [("one", [0]), ("two", [1, 0]), ("not yet trained", [1, 0])])
@torch.no_grad()
def test_generation_uses_the_prompt_once(
    tiny_model: Path, method: ProgressivePrompts, task: str, order: list[int]
) -> None:
    """The first forward pass gets prompt and tokens, every later one the new token alone; padding changes nothing."""
    prefix = torch.cat([method.finished[number] for number in order])
    rows = [Example("one", row.id, row.prompt, []) for row in ROWS]
    settings = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=3)
    method.engine.model.eval()
    seen = inputs_of(method.engine)
    with method.inference(task, "fast"):
        made = method.engine.generate(collate(rows, pad=3), settings)
    assert all(torch.equal(row, prefix) for row in seen[0][:, : len(prefix)])
    assert [vectors.shape[1] for vectors in seen] == [len(prefix) + 7] + [1] * 5
    base, expected = plain(tiny_model), []
    for row in rows:
        vectors = torch.cat([prefix, base.model.embed_tokens(torch.tensor(row.prompt))])[None]
        expected.append(base.generate(inputs_embeds=vectors, generation_config=settings)[0].tolist())
    assert made.tolist() == expected
    assert expected[0] != expected[1]


# -- over a run ----------------------------------------------------------------------------------------------------


def test_one_prompt_more_a_task_and_the_earlier_ones_stay(make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config(method=SMALL), tmp_path / "run")
    method, seen = session.method, inputs_of(session.method.engine)
    assert isinstance(method, ProgressivePrompts)
    before = snapshot(session.method.engine.model, "fast")
    finished: list[Tensor] = []
    longest = {name: max(map(len, rows)) for name, rows in session.stream.train.items()}
    for number, phase in enumerate(train(session), 1):
        assert len(method.finished) == number
        assert all(torch.equal(now, then) for now, then in zip(method.finished, finished, strict=False))
        finished = [value.clone() for value in method.finished]
        assert len(seen) == 6
        assert max(vectors.shape[1] for vectors in seen) == number * LENGTH + longest[phase.name]
        prefixes = [vectors[:, : number * LENGTH] for vectors in seen]
        assert all(torch.equal(prefix[0], prefix[-1]) for prefix in prefixes)  # the same for every row
        for vectors in prefixes:
            assert torch.equal(vectors[0, LENGTH:], torch.cat([finished[0][:0], *finished[-2::-1]]))
        file = load_file(tmp_path / "run" / "adapters" / phase.label / "fast" / "adapter_model.safetensors")
        assert set(file) == {"prompt_embeddings"}
        assert torch.equal(file["prompt_embeddings"], torch.cat(finished[::-1]).cpu())
        seen.clear()
    for number, name in enumerate(("one", "two", "three"), 1):  # inference: each task as it was trained
        logits(session, name)
        assert seen.pop().shape[1] == number * LENGTH + longest[name]
    after = snapshot(session.method.engine.model, "fast")
    assert all(torch.equal(after[key], value) for key, value in before.items())  # no adapter is trained


def test_nothing_is_forgotten(make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config(method=SMALL), tmp_path / "run")
    then = {phase.name: logits(session, phase.name) for phase in train(session)}
    assert all(torch.equal(logits(session, name), value) for name, value in then.items())
    assert not torch.equal(logits(session, "one", "three"), then["one"])
    assert METHODS["progressive_prompts"].needs_task_id


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_task_is_answered_alike_for_ever(dtype: str, make_config: MakeConfig, tmp_path: Path) -> None:
    result = run(make_config(f"model.dtype={dtype}", method=SMALL), tmp_path / "run", quiet=True)
    predictions = result.path / "predictions"
    for number, label in enumerate(LABELS):
        file = f"{label.partition('-')[2]}.jsonl"
        own = read_records(predictions / f"after-{label}" / file)
        assert own != read_records(predictions / "after-00-base" / file)
        assert all(read_records(predictions / f"after-{later}" / file) == own for later in LABELS[number:])
        assert len({row[number] for row in result.results["variants"]["fast"]["R"][number:]}) == 1


def test_peft_loads_what_is_saved(tiny_model: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config(method=SMALL), tmp_path / "run")
    for phase in train(session):
        loaded = PeftModel.from_pretrained(plain(tiny_model), tmp_path / "run" / "adapters" / phase.label / "fast")
        for row in session.stream.train[phase.name][:3]:
            with torch.no_grad(), session.method.inference(phase.name, "fast"):
                engine = session.method.engine
                engine.model.eval()
                wanted = engine.forward(collate([row], pad=engine.pad, device=engine.device)).logits.cpu()
                engine.model.train()
                found = loaded.eval()(input_ids=torch.tensor([row.prompt + row.answer])).logits
            torch.testing.assert_close(found[:, -wanted.shape[1] :], wanted)


def test_state_round_trip(make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config(method=SMALL), tmp_path / "run")
    for _ in train(session):
        pass
    other: Session = begin(make_config("seed=5", method=SMALL), tmp_path / "other")
    assert isinstance(session.method, ProgressivePrompts)
    assert isinstance(other.method, ProgressivePrompts)
    trainable = other.method.trainable
    other.method.load_state_dict(session.method.state_dict())
    assert all(now is then for now, then in zip(other.method.trainable, trainable, strict=True))
    assert torch.equal(other.method.new_prompt(), session.method.new_prompt())
    for name in ("one", "two", "three"):
        assert torch.equal(logits(other, name), logits(session, name))
