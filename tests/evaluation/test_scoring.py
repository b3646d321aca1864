"""Scoring against plain transformers: one prompt at a time, without padding, with nothing of this project."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from ilora.data.encoding import Encoder
from ilora.data.examples import Batch, Example, collate
from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.evaluation.scoring import EvaluationSet, evaluate, prepare
from ilora.kernels.attention import GROUPED
from ilora.methods import Method
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.gpu import record_answers
from ilora.model.load import load_model
from ilora.model.ranking import likelihoods
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig, DataConfig, MethodConfig, ModelConfig, TrainingConfig
from tests.helpers import task_rows
from tests.kernels.helpers import Again

NEW = 10
CHOICES = ("cat", "green small", "green green", "dog", "black")
ROWS = [Row(row["prompt"], row["answer"]) for name in ("one", "two", "three") for row in task_rows(name, 6, seed=5)]
TASK = Task("one", {"train": ROWS, "test": ROWS}, choices=("cat", "dog", "owl", "fox"))


@dataclass
class Setting:
    engine: Engine
    encoder: Encoder
    plain: PeftModel  # the same weights, loaded without this project

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    def data(self, task: Task = TASK, **options: Any) -> EvaluationSet:
        return prepare(task, self.encoder, [], split="test", **{"max_new_tokens": NEW} | options)

    def records(
        self, data: EvaluationSet | None = None, *, batch_size: int = 5, **options: Any
    ) -> list[dict[str, Any]]:
        return evaluate(
            data or self.data(),
            self.engine,
            self.encoder,
            batch_size=batch_size,
            **options,
        )

    def alone(self, ids: list[int]) -> list[int]:
        """The greedy continuation of one unpadded prompt, by transformers alone."""
        made = self.plain.generate(
            input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0
        )
        return list(made[0, len(ids) :].tolist())


def make(folder: Path, scratch: Path, **settings: Any) -> Setting:
    base, tokenizer = load_model(
        ModelConfig(name=str(folder), dtype="float32"), max_length=64, device=torch.device("cpu")
    )
    wrapped = adapters.attach(base, AdapterConfig(r=4, alpha=8, dropout=0.3), name="fast", seed=0)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters(wrapped, "fast").values():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    adapters.save(wrapped, scratch, ["fast"])
    plain = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folder), scratch / "fast").eval()
    engine = Engine(wrapped, Accelerator(), pad=0)
    return Setting(
        engine, Encoder(tokenizer, DataConfig(**{"benchmark": "mini8", "max_length": 100} | settings)), plain
    )


@pytest.fixture
def setting(tiny_model: Path, tmp_path: Path) -> Setting:
    """The tiny model with a strong random adapter, so that rows get different texts."""
    return make(tiny_model, tmp_path)


def end_with(setting: Setting, number: int) -> None:
    """Make a token that the random model likes its end-of-text."""
    setting.tokenizer.eos_token = setting.tokenizer.convert_ids_to_tokens(number)
    setting.encoder = Encoder(setting.tokenizer, setting.encoder.config)


# -- generation --------------------------------------------------------------------------------------------------------


def test_generation_equals_each_prompt_alone(setting: Setting) -> None:
    expected = [setting.alone(setting.tokenizer(row.prompt).input_ids) for row in ROWS]
    assert len({tuple(ids) for ids in expected}) > len(ROWS) // 2  # the rows can be told apart
    records = setting.records()
    texts = [setting.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert [record["prediction"] for record in records] == texts
    assert [record["id"] for record in records] == [f"one/test/{number}" for number in range(len(ROWS))]
    assert [(record["prompt"], record["reference"]) for record in records] == [(r.prompt, r.answer) for r in ROWS]


def test_generation_stops_at_end_of_text_and_keeps_empty_predictions(setting: Setting) -> None:
    free = [setting.alone(setting.tokenizer(row.prompt).input_ids) for row in ROWS]
    end = free[0][0]  # the first row now says nothing at all
    end_with(setting, end)
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in free]
    assert any(0 < len(ids) < NEW for ids in expected)
    assert any(len(ids) == NEW for ids in expected)
    records = setting.records(batch_size=len(ROWS))
    texts = [setting.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert [record["prediction"] for record in records] == texts
    assert (records[0]["prediction"], records[0]["parsed"], records[0]["score"]) == ("", None, 0.0)
    assert len(records) == len(ROWS)


def test_generation_takes_no_step_after_end_of_text(setting: Setting) -> None:
    end_with(setting, setting.alone(setting.tokenizer(ROWS[0].prompt).input_ids)[0])
    calls: list[int] = []
    setting.engine.core.register_forward_hook(lambda *_: calls.append(1))
    setting.records(setting.data(Task("one", {"train": ROWS, "test": ROWS[:1]}, choices=TASK.choices)))
    assert len(calls) == 1


def test_text_ends_at_the_first_end_of_text_and_holds_no_special_tokens(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end = setting.tokenizer.bos_token_id, setting.tokenizer.eos_token_id
    made = [*setting.tokenizer(" cat").input_ids, start, end, *setting.tokenizer(" dog").input_ids]

    def generate(*, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([made] * len(input_ids))], 1)

    monkeypatch.setattr(setting.engine.model, "generate", generate)
    records = setting.records()
    assert {record["prediction"] for record in records} == {"cat"}
    assert [record["score"] for record in records] == [float(row.answer == "cat") for row in ROWS]


@pytest.mark.parametrize("scoring", ["generate", "rank"])
def test_batch_size_changes_nothing(setting: Setting, scoring: str) -> None:
    data = setting.data(Task("one", TASK.rows, choices=TASK.choices, scoring=scoring))
    advanced: list[int] = []
    expected = setting.records(data, batch_size=1)
    assert setting.records(data, batch_size=4, advance=advanced.append) == expected
    assert setting.records(data, batch_size=1000) == expected
    assert sum(advanced) == len(ROWS)


@pytest.mark.parametrize("scoring", ["generate", "rank"])
def test_more_rows_go_together_where_answers_are_replayed(setting: Setting, scoring: str) -> None:
    data = setting.data(Task("one", TASK.rows, choices=TASK.choices, scoring=scoring))
    expected = setting.records(data, batch_size=4)
    setting.engine.core.set_attn_implementation(GROUPED)
    record_answers(setting.engine, Again)
    advanced: list[int] = []
    assert setting.records(data, batch_size=4, advance=advanced.append) == expected
    assert advanced == [len(ROWS)]


def test_fewer_rows_go_together_where_memory_ends(setting: Setting) -> None:
    made: list[Again] = []

    class Full(Again):
        """Has no room the first time."""

        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def warm_up(self, compute: Callable[[], object]) -> None:
            if len(made) == 1:
                raise torch.OutOfMemoryError("full")
            super().warm_up(compute)

    expected = setting.records()
    setting.engine.core.set_attn_implementation(GROUPED)
    record_answers(setting.engine, Full)
    advanced: list[int] = []
    assert setting.records(advance=advanced.append) == expected
    assert advanced == [len(ROWS) // 2] * 2
    assert len(made) == 2  # with memory of its own


def test_a_long_prompt_is_cut_to_leave_room_for_the_answer(tiny_model: Path, tmp_path: Path) -> None:
    setting = make(tiny_model, tmp_path, max_length=24)
    long = Row(" ".join(row.prompt for row in ROWS[:4]), "cat")
    ids = setting.tokenizer(long.prompt).input_ids
    (record,) = setting.records(setting.data(Task("one", {"train": [long], "test": [long]}, choices=TASK.choices)))
    expected = setting.alone(ids[:7] + ids[-7:])  # 24 - 10 tokens, from both ends
    assert record["prediction"] == setting.tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_sampling_settings_of_a_hub_model_change_nothing(setting: Setting, tiny_model: Path, tmp_path: Path) -> None:
    expected = setting.records()
    folder = tmp_path / "sampling"
    shutil.copytree(tiny_model, folder)
    loud = {"do_sample": True, "temperature": 3.0, "top_k": 3, "repetition_penalty": 2.5, "no_repeat_ngram_size": 2}
    loud |= {"max_new_tokens": 2, "suppress_tokens": list(range(30, 200)), "forced_eos_token_id": 1, "num_beams": 3}
    (folder / "generation_config.json").write_text(json.dumps(loud), encoding="utf-8")
    assert make(folder, tmp_path / "again").records() == expected


@pytest.mark.parametrize("scoring", ["generate", "rank"])
def test_merged_weights_give_the_same_predictions(setting: Setting, scoring: str) -> None:
    data = setting.data(Task("one", TASK.rows, choices=TASK.choices, scoring=scoring))
    expected = setting.records(data)
    view = RunView(setting.engine, ReplayMemory(0, seed=0), TrainingConfig())
    method = Method(view, MethodConfig(name="sequential"))
    for merge in (False, True):
        setting.engine.merge = merge
        with method.inference("one", "fast"):
            assert setting.records(data) == expected
    with adapters.active(setting.engine.model, None):
        assert setting.records(data) != expected  # the adapter matters


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_without_dropout_and_restores_the_mode(setting: Setting, training: bool) -> None:
    expected = setting.records()
    setting.engine.model.train(training)
    assert setting.records() == expected
    assert {module.training for module in setting.engine.model.modules()} == {training}


# -- ranking -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_likelihoods(setting: Setting, row: Row, choice: str, *, end: bool = True) -> float:
    """log p(choice | prompt), token by token from a plain forward pass."""
    prompt = setting.tokenizer(row.prompt).input_ids
    ids = setting.tokenizer(f"{row.prompt} {choice}").input_ids + [setting.tokenizer.eos_token_id] * end
    table = setting.plain(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(table[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))


def test_ranking_is_by_log_likelihood_with_end_of_text(setting: Setting) -> None:
    for head in (setting.engine.core.lm_head, setting.plain.get_base_model().lm_head):
        head.weight.data *= 20  # decided tokens, so that a choice of two can beat one of one
    end_with(setting, setting.alone(setting.tokenizer(ROWS[0].prompt).input_ids)[1])  # one whose likelihood varies
    table = [{choice: log_likelihoods(setting, row, choice) for choice in CHOICES} for row in ROWS]
    lengths = {choice: len(setting.tokenizer(f"a {choice}").input_ids) for choice in CHOICES}
    expected = [max(CHOICES, key=row.__getitem__) for row in table]
    # What the two usual other ways would have said.
    assert expected != [max(CHOICES, key=lambda choice: row[choice] / lengths[choice]) for row in table]
    assert expected != [max(CHOICES, key=lambda c: log_likelihoods(setting, row, c, end=False)) for row in ROWS]
    rows = [Row(row.prompt, CHOICES[number % len(CHOICES)]) for number, row in enumerate(ROWS)]
    task = Task("one", {"train": rows, "test": rows}, "exact", choices=CHOICES, scoring="rank")
    records = setting.records(setting.data(task), batch_size=4)
    assert [record["prediction"] for record in records] == expected
    assert [record["score"] for record in records] == [
        float(wanted == row.answer) for wanted, row in zip(expected, rows, strict=True)
    ]


@pytest.mark.parametrize("form", ["plain", "soft prompt", "routes"])
def test_a_prompt_read_once_gives_the_likelihoods_of_whole_rows(setting: Setting, form: str) -> None:
    """Every choice behind the cached prompt against a pass of its own over prompt and choice, padded otherwise."""
    engine, choices = setting.engine, [[5], [6, 7, 8], [9, 10]]
    prompts = [[20 + row + column for column in range(3 + 2 * row)] for row in range(4)]
    soft = torch.randn(1, 3, engine.model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    if form == "routes":
        adapters.add(engine.model, "other", like="fast", seed=3)
        for parameter in adapters.parameters(engine.model, "other").values():
            torch.nn.init.normal_(parameter, std=0.5)
    names = ["fast", "other", "__base__", "fast"]

    def batch(answer: list[int]) -> Batch:
        rows = [Example("one", str(number), prompt, answer) for number, prompt in enumerate(prompts)]
        return collate(rows, pad=0)

    engine.model.eval()
    prefix = (lambda batch: soft.expand(len(batch.examples), -1, -1)) if form == "soft prompt" else None
    route = (lambda _: names) if form == "routes" else None
    with torch.inference_mode(), engine.prefixed(prefix), engine.routed(route):
        found = likelihoods(engine, batch([]), [choices] * len(prompts))
        for number, choice in enumerate(choices):
            whole = engine.forward(batch(choice)).logits[:, :-1].log_softmax(-1)
            expected = whole.gather(2, torch.tensor([choice] * len(prompts))[..., None]).sum((1, 2))
            torch.testing.assert_close(found[:, number], expected, rtol=1e-5, atol=1e-5)
    assert found.std(0).min() > 0.01  # rows differ


def test_ranking_behind_a_sliding_window(tiny_model: Path, tmp_path: Path) -> None:
    """Such a cache drops what has left the window, so it cannot be taken back to the end of the prompt."""
    shutil.copytree(tiny_model, tmp_path / "window")
    torch.manual_seed(0)
    sizes = LlamaConfig.from_pretrained(tiny_model).to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id")  # fmt: skip
    config = MistralConfig(**{key: sizes[key] for key in kept}, sliding_window=4)
    MistralForCausalLM(config).save_pretrained(tmp_path / "window")
    base, _ = load_model(
        ModelConfig(name=str(tmp_path / "window"), dtype="float32"), max_length=64, device=torch.device("cpu")
    )
    wrapped = adapters.attach(base, AdapterConfig(r=4, alpha=8), name="fast", seed=0).eval()
    engine = Engine(wrapped, Accelerator(), pad=0)
    choices = [[5], [6, 7, 8], [9, 10]]
    prompts = [[20 + row + column for column in range(3 + 2 * row)] for row in range(4)]
    rows = [Example("one", str(number), prompt, []) for number, prompt in enumerate(prompts)]
    with torch.inference_mode():
        found = likelihoods(engine, collate(rows, pad=0), [choices] * len(prompts))
        for row, prompt in enumerate(prompts):
            for number, choice in enumerate(choices):
                logits = base(torch.tensor([prompt + choice])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                expected = logits.gather(1, torch.tensor(choice)[:, None]).sum()
                torch.testing.assert_close(found[row, number], expected, rtol=1e-5, atol=1e-5)


def test_a_tie_goes_to_the_first_choice(setting: Setting) -> None:
    with torch.no_grad():
        setting.engine.core.get_output_embeddings().weight.zero_()  # every token is equally likely
    task = Task("one", TASK.rows, choices=("owl", "dog", "cat", "fox"), scoring="rank")
    assert len({len(setting.tokenizer(f"a {choice}").input_ids) for choice in task.choices}) == 1
    assert {record["prediction"] for record in setting.records(setting.data(task))} == {"owl"}


# -- preparation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "configured", "longest", "limit"),
    [
        (None, "auto", 5, 11),  # int(1.5 * 5) + 4
        (None, "auto", 2, 7),
        (None, "auto", 500, 128),
        (None, 9, 5, 9),
        (3, 9, 5, 3),
        (200, "auto", 5, 200),
    ],
)
def test_how_many_tokens_an_answer_may_have(
    setting: Setting, own: int | None, configured: int | str, longest: int, limit: int
) -> None:
    train = [Example("one", "", [1], [1]), Example("one", "", [1], [1] * longest)]
    task = Task("one", TASK.rows, choices=TASK.choices, max_new_tokens=own)
    assert prepare(task, setting.encoder, train, split="test", max_new_tokens=configured).max_new_tokens == limit


def test_a_missing_split_is_named(setting: Setting) -> None:
    with pytest.raises(InputError, match=r"task 'one': no eval split for evaluation\.split; there are train, test"):
        prepare(TASK, setting.encoder, [], split="eval", max_new_tokens=3)
