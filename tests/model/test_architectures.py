"""Architectures that people use, as tiny random models made from their own configuration classes.

Of each: rows in a padded batch are computed like each row alone, in training, generation and ranking; a step trains the
adapter; the saved adapter gives the same numbers in plain PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ilora import InputError, connect, load_config, resume, run
from ilora.data.examples import Example, collate
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.load import load_model
from ilora.model.ranking import likelihoods
from ilora.settings import AdapterConfig, ModelConfig
from tests.helpers import FEW_SCORES, MakeConfig, difference, run_killed, weights

pytestmark = pytest.mark.core

ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
LLAMA = ENDS | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT = ENDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "mistral with a window": ("MistralConfig", LLAMA | {"head_dim": 8, "sliding_window": 6}),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", LLAMA | {"head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", LLAMA | {"head_dim": 8, "sliding_window": 6}),
    "phi": ("PhiConfig", LLAMA),
    "phi3": ("Phi3Config", LLAMA),
    "gpt2": ("GPT2Config", GPT),
    "gpt-j": ("GPTJConfig", GPT | {"rotary_dim": 8}),
    "gpt-neo": (
        "GPTNeoConfig",
        ENDS | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt-neox": ("GPTNeoXConfig", LLAMA),
    "gpt-oss": ("GptOssConfig", LLAMA | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "opt": (
        "OPTConfig",
        ENDS | {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "max_position_embeddings": 256},
    ),
    "bloom": ("BloomConfig", ENDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", LLAMA),
    "stablelm": ("StableLmConfig", LLAMA),
    "olmo2": ("Olmo2Config", LLAMA),
    "granite": ("GraniteConfig", LLAMA),
    "cohere": ("CohereConfig", LLAMA),
    "smollm3": ("SmolLM3Config", LLAMA),
    "mixtral": ("MixtralConfig", LLAMA | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2 moe": (
        "Qwen2MoeConfig",
        LLAMA | EXPERTS | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    ),
    "olmoe": ("OlmoeConfig", LLAMA | EXPERTS),
    "mamba": ("MambaConfig", ENDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "mamba2": (
        "Mamba2Config",
        ENDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
                "head_dim": 8, "num_heads": 8, "n_groups": 2},
    ),
    "jamba": (
        "JambaConfig",
        LLAMA | {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
                 "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8},
    ),
}  # fmt: skip
ROWS = [
    Example("one", "a", [5, 6, 7, 8, 9, 10, 11, 12, 13], [12, 1]),
    Example("one", "b", [13, 14], [15, 16, 17, 1]),
    Example("one", "c", [18], [19, 1]),
]
CHOICES = [[12, 1], [40, 41, 1], [9, 1]]


def write(kind: str, tiny_model: Path, folder: Path) -> Path:
    """A random model of the kind, with the tokenizer of the tiny Llama."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    name, settings = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(vocab_size=len(tokenizer) + 8, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> Engine:
    """Ready to train, its adapter away from zero."""
    settings = ModelConfig(name=str(folder), dtype="float32")
    base, _ = load_model(settings, max_length=64, device=torch.device("cpu"))
    model = adapters.attach(base, AdapterConfig(r=2, alpha=4, dropout=0.0), name="fast", seed=0)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters(model, "fast").values():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)
    return Engine(model, Accelerator(), pad=1)


def alone(engine: Engine, row: Example) -> Tensor:
    """Logits of a row's answer by transformers and PEFT, without padding."""
    ids = torch.tensor([row.prompt + row.answer])
    found: Tensor = engine.model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_row_is_computed_like_the_row_alone(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    engine = load(write(kind, tiny_model, tmp_path / "model"))
    engine.model.train()
    with torch.no_grad():
        batched = engine.forward(collate(ROWS, pad=1)).answer_logits
        engine.model.eval()
        expected = [alone(engine, row) for row in ROWS]
        for row, ours, theirs in zip(ROWS, batched, expected, strict=True):
            torch.testing.assert_close(ours[-len(row.answer) :], theirs, rtol=1e-3, atol=1e-4)
        prompts = [Example(row.task, row.id, row.prompt, []) for row in ROWS]
        found = likelihoods(engine, collate(prompts, pad=1), [CHOICES] * len(ROWS))
        for row, values in zip(ROWS, found, strict=True):
            for choice, value in zip(CHOICES, values.tolist(), strict=True):
                logits = alone(engine, Example("one", "x", row.prompt, choice)).log_softmax(-1)
                assert value == pytest.approx(float(logits.gather(1, torch.tensor(choice)[:, None]).sum()), abs=1e-3)
        settings = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=1, pad_token_id=1)
        together = engine.generate(collate(prompts, pad=1), settings).tolist()
        for row, made in zip(prompts, together, strict=True):
            single = engine.generate(collate([row], pad=1), settings)[0].tolist()
            assert made[: len(single)] == single


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_adapter_is_that_of_plain_peft(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    engine = load(write(kind, tiny_model, tmp_path / "model"))
    parameters = list(adapters.parameters(engine.model, "fast").values())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    engine.model.train()
    engine.forward(collate(ROWS, pad=1)).answer_logits.square().mean().backward()
    moved = [float(parameter.grad.abs().max()) for parameter in parameters if parameter.grad is not None]
    assert len(moved) == len(parameters)
    assert max(moved) > 0
    optimizer.step()
    adapters.save(engine.model, tmp_path / "saved", ["fast"])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "saved" / "fast").eval()
    engine.model.eval()
    ids = torch.tensor([ROWS[0].prompt])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, engine.model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "mamba"])
def test_a_run_resumes_bit_for_bit(
    kind: str, tiny_model: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(kind, tiny_model, tmp_path / "model")
    model = {"name": str(folder), "dtype": "float32"}
    tasks = "data.tasks=[one, {name: two, scoring: rank}]"
    config = make_config(*FEW_SCORES, "training.epochs=1", tasks, "data.limit.test=4", model=model)
    whole = run(config, tmp_path / "whole", quiet=True)
    run_killed(config, tmp_path / "run", monkeypatch, at="step", count=5)
    assert difference(weights(whole.path), weights(resume(tmp_path / "run", quiet=True).path)) == 0.0


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_the_base_models_own_dropout_is_off_unless_wanted(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = write(kind, tiny_model, tmp_path / "model")
    for wanted in (False, True):
        settings = ModelConfig(name=str(folder), dtype="float32", dropout=wanted)
        base, _ = load_model(settings, max_length=64, device=torch.device("cpu"))
        base.train()
        with torch.no_grad():
            first, second = (base(torch.tensor([ROWS[0].prompt])).logits for _ in range(2))
        assert torch.equal(first, second) is not wanted


def test_a_target_module_that_no_layer_has(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'v_porj'.*v_proj"):
        run(make_config("adapter.target_modules=[q_proj, v_porj]"), tmp_path / "run", quiet=True)


def test_a_tied_head_with_an_adapter_is_not_merged(tiny_model: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    """The merged update would change the input embedding, too."""
    folder = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **LLAMA)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = {"name": str(folder), "dtype": "float32"}
    config = make_config("evaluation.merge=true", "adapter.target_modules=[q_proj, lm_head]", model=model)
    with pytest.raises(InputError, match=r"evaluation\.merge: .*lm_head"):
        run(config, tmp_path / "run", quiet=True)
    config = make_config("evaluation.merge=true", "training.epochs=1", "data.tasks=[one]", *FEW_SCORES, model=model)
    assert run(config, tmp_path / "run", quiet=True).results["complete"]


# -- what is refused ---------------------------------------------------------------------------------------------------


BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def write_bert(folder: Path) -> None:
    """Its weights are far from zero, so that it looks at what follows as a trained one does."""
    config = transformers.BertConfig(vocab_size=400, initializer_range=0.5, **BERT)
    transformers.BertForMaskedLM(config).save_pretrained(folder)


def write_bare_bert(folder: Path) -> None:
    transformers.BertModel(transformers.BertConfig(vocab_size=400, **BERT)).save_pretrained(folder)


def write_classifier(folder: Path) -> None:
    transformers.LlamaForSequenceClassification(transformers.LlamaConfig(vocab_size=400, **LLAMA)).save_pretrained(
        folder
    )


def write_tied_classifier(folder: Path) -> None:
    config = transformers.LlamaConfig(vocab_size=400, tie_word_embeddings=True, **LLAMA)
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)


def write_headless(folder: Path) -> None:
    transformers.LlamaModel(transformers.LlamaConfig(vocab_size=400, **LLAMA)).save_pretrained(folder)


def write_t5(folder: Path) -> None:
    config = transformers.T5Config(vocab_size=400, d_model=32, d_ff=64, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def write_small_embedding(folder: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=100, **LLAMA)).save_pretrained(folder)


REFUSED: dict[Any, str] = {
    write_bert: "encoder",
    write_bare_bert: "lacks",
    write_classifier: "lacks lm_head.weight|classifier",
    write_tied_classifier: "classifier",
    write_headless: "lacks lm_head.weight",
    write_t5: "model '",
    write_small_embedding: "tokenizer has .* embedding 100",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_is_no_causal_language_model_is_refused(
    make: Any, tiny_model: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    make(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=REFUSED[make]) as error:
        run(make_config(model={"name": str(tmp_path / "model"), "dtype": "float32"}), tmp_path / "run", quiet=True)
    assert "Traceback" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_default_is_the_attentions_query_and_value() -> None:
    assert load_config({"data": {"benchmark": "mini8"}}).adapter.target_modules == "auto"


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("kind", ["mamba", "jamba"])
def test_connect_reads_recurrent_models_row_by_row(
    kind: str, tiny_model: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    model = {"name": str(write(kind, tiny_model, tmp_path / "model")), "dtype": "float32"}
    config = make_config(
        *(
            "training.epochs=1",
            "data.limit={train: 16, test: 4}",
            "data.tasks=[one, two]",
            "evaluation.zero_shot=false",
        ),
        method="sequential",
        model=model,
    )
    made = run(config, tmp_path / "run", quiet=True)
    (result,) = connect(made.path, paths=("factors",), points=3, quiet=True)
    assert result["complete"]
    ends = [point["tasks"] for point in (result["points"][0], result["points"][-1])]
    for tasks, row in zip(ends, made.results["variants"]["fast"]["R"], strict=True):
        assert [tasks[name]["score"] for name in ("one", "two")] == pytest.approx(row)
