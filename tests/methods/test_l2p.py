"""L2P against its formulas, and against plain transformers fed with embeddings: row by row, without padding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from ilora import run
from ilora.data.encoding import Encoder
from ilora.data.examples import Batch, Example, Totals, collate
from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.evaluation.scoring import evaluate, prepare
from ilora.methods.l2p import L2P
from ilora.model import adapters
from ilora.results.scores import read_records
from ilora.settings import AdapterConfig, DataConfig
from tests.helpers import MakeConfig, begin, plain, snapshot, task_rows, train, view

ROWS = [
    Example("one", "a", [5, 6, 7, 8, 9, 10, 11], [12, 1]),
    Example("one", "b", [13, 14], [15, 16, 17, 1]),
    Example("one", "c", [18], [19, 1]),
]
SMALL = {"pool_size": 6, "prompt_length": 3, "top_k": 2}


def make(tiny_model: Path, *, seed: int = 0, loud: bool = True, **settings: object) -> L2P:
    """A method whose pool is far from zero, on a model whose LoRA adapter would be noticed if it took part."""
    model = adapters.attach(plain(tiny_model), AdapterConfig(r=4, alpha=8, dropout=0.5), name="fast", seed=seed)
    run = view(model, pad=3, seed=seed)
    method = L2P(run, L2P.Config(**{"name": "l2p"} | SMALL | settings))
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapters.parameters(model, "fast").values():
            parameter.normal_(generator=source)
        if loud:
            method.pool.normal_(generator=source)
    return method


@pytest.fixture
def method(tiny_model: Path) -> L2P:
    return make(tiny_model)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> LlamaForCausalLM:
    return plain(tiny_model)


@torch.no_grad()
def query(base: LlamaForCausalLM, prompt: list[int]) -> Tensor:
    """The mean last hidden state of a prompt alone."""
    states = base(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
    return states[-1][0].mean(0)


def chosen(method: L2P, feature: Tensor) -> tuple[list[int], Tensor]:
    """The numbers of the nearest keys, best first, and all similarities, without the method's help."""
    cosines = functional.cosine_similarity(feature[None], method.keys.detach())
    return sorted(range(len(cosines)), key=lambda number: -float(cosines[number]))[: method.config.top_k], cosines


def prefixed(base: LlamaForCausalLM, method: L2P, prompt: list[int], after: list[int]) -> Tensor:
    """[the row's prompts, its tokens] as embeddings, (1, length, features)."""
    numbers, _ = chosen(method, query(base, prompt))
    vectors = torch.cat([method.pool[number].detach() for number in numbers])
    return torch.cat([vectors, base.model.embed_tokens(torch.tensor(prompt + after))])[None]


# -- the choice ----------------------------------------------------------------------------------------------------


def test_keys_choose_by_cosine_best_first(method: L2P) -> None:
    method = L2P(method.run, L2P.Config(name="l2p", pool_size=4, prompt_length=1, top_k=2))
    keys, queries = torch.zeros(4, 32), torch.zeros(3, 32)
    keys[:, :2] = torch.tensor([[10.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, 0.0]])
    queries[:, :2] = torch.tensor([[1.0, 0.1], [0.0, 3.0], [-5.0, 0.0]])
    method.keys.data.copy_(keys)
    numbers, similarities = method.choose(queries)
    assert numbers.tolist() == [[0, 2], [1, 2], [3, 1]]  # the largest product with the second query is key 2's
    expected = [[1 / 1.01**0.5, 1.1 / (2 * 1.01) ** 0.5], [1.0, 0.5**0.5], [1.0, 0.0]]
    torch.testing.assert_close(similarities.detach(), torch.tensor(expected))


def test_a_pool_smaller_than_the_choice_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"top_k \(4\) cannot be larger than pool_size \(3\)"):
        make_config(method={"name": "l2p", "pool_size": 3, "top_k": 4})


def test_the_query_is_the_base_models_feature_of_the_prompt_alone(base: LlamaForCausalLM, method: L2P) -> None:
    expected = torch.stack([query(base, row.prompt) for row in ROWS])
    bare = [replace(row, answer=[]) for row in ROWS]
    other = [replace(row, answer=[30, 31, 32, 1]) for row in ROWS]
    engine = method.engine
    engine.model.train()  # with dropout, and an adapter that is far from zero
    for rows in (ROWS, bare, other):
        torch.testing.assert_close(engine.features(collate(rows, pad=3)), expected)
    padded = engine.features(collate([*ROWS, Example("one", "d", list(range(5, 45)), [9, 1])], pad=3))
    torch.testing.assert_close(padded[:3], expected)
    method.pool.data.normal_(std=5.0)
    method.keys.data.normal_(std=5.0)
    adapters.activate(engine.model, "fast")
    with method.inference("one", "fast"):
        torch.testing.assert_close(engine.features(collate(ROWS, pad=3)), expected)


def test_the_query_is_the_same_in_training_and_at_inference(
    base: LlamaForCausalLM, method: L2P, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tensor] = []
    choose = method.choose

    def watching(features: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(features)
        return choose(features)

    monkeypatch.setattr(method, "choose", watching)
    settings = GenerationConfig(do_sample=False, max_new_tokens=3, eos_token_id=None, pad_token_id=3)
    batch = collate(ROWS, pad=3)
    method.engine.model.train()
    method.loss(batch, Totals.of(ROWS))
    method.engine.model.eval()
    with method.inference("one", "fast"):
        method.engine.forward(batch)
        method.engine.generate(collate([replace(row, answer=[]) for row in ROWS], pad=3), settings)
    assert len(asked) == 3
    for features in asked:
        torch.testing.assert_close(features, torch.stack([query(base, row.prompt) for row in ROWS]))


# -- the loss ------------------------------------------------------------------------------------------------------


def test_only_chosen_prompts_and_keys_are_trained(base: LlamaForCausalLM, method: L2P) -> None:
    wanted = {number for row in ROWS for number in chosen(method, query(base, row.prompt))[0]}
    assert 2 <= len(wanted) < method.config.pool_size
    method.loss(collate(ROWS, pad=3), Totals.of(ROWS)).backward()
    for parameter in (method.pool, method.keys):
        moved = parameter.grad.flatten(1).abs().sum(1).nonzero().flatten().tolist()
        assert set(moved) == wanted
    assert all(parameter.grad is None for parameter in method.engine.model.parameters())
    assert {id(parameter) for parameter in method.trainable} == {id(method.pool), id(method.keys)}


def test_the_pull_by_hand(base: LlamaForCausalLM, method: L2P) -> None:
    """Over two micro-batches, so that a mean over the micro-batch would show."""
    totals, total = Totals.of(ROWS), 0.0
    for row in ROWS:
        numbers, cosines = chosen(method, query(base, row.prompt))
        total += sum(1 - float(cosines[number]) for number in numbers)
    method.run.terms.clear()
    for part in (ROWS[:2], ROWS[2:]):
        method.loss(collate(part, pad=3), totals)
    assert total > 0.1
    assert float(method.run.terms["pull"]) == pytest.approx(total / 3, rel=1e-4)


def test_keys_are_moved_by_the_pull_alone_and_towards_the_query(base: LlamaForCausalLM, tiny_model: Path) -> None:
    off, on = make(tiny_model, strength=0.0), make(tiny_model, strength=2.0)
    for method in (off, on):
        method.loss(collate(ROWS[:1], pad=3), Totals.of(ROWS[:1])).backward()
    assert not off.keys.grad.any()
    assert torch.equal(on.pool.grad, off.pool.grad)
    feature = query(base, ROWS[0].prompt)
    numbers, before = chosen(on, feature)
    on.keys.data -= 0.1 * on.keys.grad
    _, after = chosen(on, feature)
    assert all(float(after[number]) > float(before[number]) + 1e-4 for number in numbers)


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_the_loss_equals_plain_transformers(base: LlamaForCausalLM, tiny_model: Path, strength: float) -> None:
    method = make(tiny_model, strength=strength)
    sums, pull = 0.0, 0.0
    for row in ROWS:
        vectors = prefixed(base, method, row.prompt, row.answer)
        unlabelled = vectors.shape[1] - len(row.answer)
        labels = torch.tensor([[-100] * unlabelled + row.answer])
        with torch.no_grad():
            sums += float(base(inputs_embeds=vectors, labels=labels).loss) * len(row.answer)
        numbers, cosines = chosen(method, query(base, row.prompt))
        pull += sum(1 - float(cosines[number]) for number in numbers)
    expected = sums / sum(len(row.answer) for row in ROWS) + strength * pull / len(ROWS)
    method.engine.model.train()  # the adapter's dropout has no part in it either
    assert float(method.loss(collate(ROWS, pad=3), Totals.of(ROWS)).detach()) == pytest.approx(expected, rel=1e-5)


# -- inference -----------------------------------------------------------------------------------------------------

# Without the colon they end in different words, so that their answers differ from the first token on.
TEXTS = [row["prompt"].removesuffix(" :") for name in ("one", "two") for row in task_rows(name, 6, seed=5)]
CHOICES = ("cat", "green", "small old", "dog", "black", "fox", "red")


def records(tiny_model: Path, method: L2P, scoring: str) -> tuple[list[str], Encoder]:
    """What the method predicts for TEXTS, five rows at a time."""
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model), DataConfig(benchmark="mini8", max_length=100))
    rows = [Row(text, CHOICES[number % len(CHOICES)]) for number, text in enumerate(TEXTS)]
    task = Task("one", {"train": rows, "test": rows}, "exact", choices=CHOICES, scoring=scoring)
    data = prepare(task, encoder, [], split="test", max_new_tokens=8)
    with method.inference("one", "fast"):
        made = evaluate(data, method.engine, encoder, batch_size=5)
    return [str(record["prediction"]) for record in made], encoder


def test_generation_of_a_padded_batch_equals_each_row_alone(
    base: LlamaForCausalLM, tiny_model: Path, method: L2P
) -> None:
    predictions, encoder = records(tiny_model, method, "generate")
    expected = []
    for text in TEXTS:
        vectors = prefixed(base, method, encoder.tokenizer(text).input_ids, [])
        made = base.generate(
            inputs_embeds=vectors, do_sample=False, max_new_tokens=8, eos_token_id=encoder.end, pad_token_id=0
        )
        expected.append(encoder.tokenizer.decode(made[0], skip_special_tokens=True).strip())
    assert len({len(encoder.tokenizer(text).input_ids) for text in TEXTS}) > 2  # there is padding
    assert len(set(expected)) > len(TEXTS) // 2  # the rows can be told apart, by their first letter too
    assert len({text[0] for text in expected}) > 2
    assert predictions == expected


def test_ranking_equals_plain_log_likelihoods(base: LlamaForCausalLM, tiny_model: Path, method: L2P) -> None:
    method.engine.core.get_output_embeddings().weight.data *= 20  # decided tokens, so that the choices vary
    predictions, encoder = records(tiny_model, method, "rank")
    model, expected = plain(tiny_model), []
    model.lm_head.weight.data *= 20
    for text in TEXTS:
        prompt, sums = encoder.tokenizer(text).input_ids, []
        for choice in CHOICES:
            answer = [*encoder.tokenizer(f"{text} {choice}").input_ids[len(prompt) :], encoder.end]
            vectors = prefixed(base, method, prompt, answer)
            with torch.no_grad():
                table = model(inputs_embeds=vectors).logits[0].log_softmax(-1)[-len(answer) - 1 : -1]
            sums.append(float(table.gather(1, torch.tensor(answer)[:, None]).sum()))
        expected.append(CHOICES[sums.index(max(sums))])
    assert len(set(expected)) > 1
    assert predictions == expected


# -- over a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_trains_prompts_and_keys_and_nothing_else(dtype: str, make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config(f"model.dtype={dtype}", method={"name": "l2p"} | SMALL), tmp_path / "run")
    method, model = session.method, session.method.engine.model
    assert isinstance(method, L2P)
    before = {key: value.detach().clone() for key, value in model.state_dict().items()}
    pool, keys = method.pool.detach().clone(), method.keys.detach().clone()
    session.execute()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(value.any() for key, value in snapshot(model, "fast").items() if "lora_B" in key)
    assert all(value.dtype == torch.float32 for value in method.trainable)
    assert float((method.pool.detach() - pool).abs().max()) > 1e-2
    assert float((method.keys.detach() - keys).abs().max()) > 1e-2
    folder = tmp_path / "run" / "predictions"
    assert read_records(folder / "after-01-one" / "one.jsonl") != read_records(folder / "after-00-base" / "one.jsonl")


def test_the_base_models_answers_are_not_affected(make_config: MakeConfig, tmp_path: Path) -> None:
    short = ("training.epochs=1", "data.limit.train=8", "evaluation.unseen=none")
    ours, theirs = (
        run(make_config(*short, method=name), tmp_path / name, quiet=True).path / "predictions" / "after-00-base"
        for name in ("l2p", "sequential")
    )
    for name in ("one", "two", "three"):
        assert read_records(ours / f"{name}.jsonl") == read_records(theirs / f"{name}.jsonl")


def test_what_is_saved_gives_the_same_logits_elsewhere(make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config(method={"name": "l2p"} | SMALL), tmp_path / "run")
    for _ in train(session):
        pass
    folder = tmp_path / "run" / "adapters" / "03-three" / "fast"
    settings = json.loads((folder / "prompts.json").read_text())
    assert settings.pop("method") == "l2p"
    other = begin(make_config("seed=5", method=settings), tmp_path / "other").method
    batch = collate(session.stream.train["two"], pad=session.method.engine.pad, device=session.method.engine.device)
    expected = answers(session.method, batch)
    assert not torch.equal(answers(other, batch), expected)
    pool = other.pool
    other.load_state_dict(load_file(folder / "prompts.safetensors"))
    assert other.config == session.config.method
    assert other.pool is pool  # filled in place: the optimizer knows it by identity
    assert torch.equal(answers(other, batch), expected)


@torch.no_grad()
def answers(method: L2P, batch: Batch) -> Tensor:
    method.engine.model.eval()
    with method.inference("two", "fast"):
        return method.engine.forward(batch).logits
