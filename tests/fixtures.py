"""A tiny real Llama with a real tokenizer, made on the spot, and data for it: no network, no GPU, no big files."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilora import run
from ilora.config import Config, load_config
from ilora.report import write_report
from tests.helpers import MakeConfig, sketch, task_rows, write_task
from tests.processes import begin_forks, leave_out_slow

# What torch and transformers have imported stays: to look through it again and again is a tenth of the suite's time.
gc.freeze()
gc.set_threshold(100_000, 50, 100)


def pytest_sessionstart(session: pytest.Session) -> None:
    begin_forks()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two workers share two cores; a resume of another test may have set another number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _quick() -> Iterator[None]:
    """One thread, and no report (`report` is for the tests that look at it) or other slow thing."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow(patch)
        yield


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test write their report.html."""
    monkeypatch.setattr("ilora.runner.write_report", write_report)


@pytest.fixture
def sketched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty: what matplotlib takes to render one is more than all else of a page. `drawn` is for the
    tests that look at them.
    """
    if "drawn" not in request.fixturenames:
        sketch(monkeypatch)


@pytest.fixture
def drawn() -> None:
    """Pictures of this test are rendered."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks: one, two, three."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("one", "two", "three"):
        write_task(folder, name)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer random Llama and a byte-level BPE tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    corpus = [
        f"{row['prompt']} {row['answer']}" for name in ("one", "two", "three") for row in task_rows(name, 60, seed=9)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(wrapped),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_config(tiny_model: Path, data: Path) -> MakeConfig:
    """A configuration of the tiny model on the small tasks, in float32; dotted overrides as on the command line."""

    def make(*overrides: str, **sections: Any) -> Config:
        values: dict[str, Any] = {
            "name": "tiny",
            "model": {"name": str(tiny_model), "dtype": "float32"},
            "adapter": {"r": 4, "alpha": 8, "dropout": 0.1},
            "data": {"path": str(data), "tasks": ["one", "two", "three"], "max_length": 64, "template": "none"},
            "training": {
                "epochs": 2,
                "global_batch_size": 8,
                "micro_batch_size": 8,
                "learning_rate": 2e-3,
                "checkpoint_every": 2,
            },
            "evaluation": {"max_new_tokens": 2},
            "method": {"name": "ilora", "memory_size": 20, "ema_decay": 0.9},
        }
        return load_config(values | sections, overrides)

    return make


@pytest.fixture(scope="session")
def finished(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tasks with both of I-LoRA's adapters, trained enough that their answers score apart."""
    tasks = "data.tasks=[{name: one, metric: edit}, {name: two, metric: edit}]"
    config = make_config(tasks, "training.epochs=12", "training.learning_rate=0.02", "training.trajectory=4")
    return run(config, tmp_path_factory.mktemp("finished") / "run", quiet=True).path
