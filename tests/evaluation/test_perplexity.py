"""Perplexity of a text: windows with begin-of-text, a bounded read, and no number where there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tokenizers.processors import TemplateProcessing

from ilora.data.encoding import Encoder
from ilora.data.examples import Batch
from ilora.evaluation.perplexity import perplexity, read_text
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.load import load_model, load_tokenizer
from ilora.model.passes import Output
from ilora.results.scores import read_perplexity
from ilora.settings import AdapterConfig, DataConfig, ModelConfig

TEXT = "one 1 small red : cat two 2 old blue : dog "


def encoder_of(folder: Path, *, opens: bool, max_length: int = 16) -> Encoder:
    tokenizer = load_tokenizer(ModelConfig(name=str(folder)))
    if opens:  # as Llama's does
        tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Encoder(tokenizer, DataConfig(benchmark="mini8", max_length=max_length))


@pytest.mark.parametrize("opens", [False, True])
def test_windows(tiny_model: Path, tmp_path: Path, opens: bool) -> None:
    encoder = encoder_of(tiny_model, opens=opens)
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 5)
    ids = encoder.tokenizer(TEXT * 5, add_special_tokens=False).input_ids
    windows = read_text(path, encoder, most=40)
    assert all(len(window) <= 16 for window in windows)
    if opens:
        assert all(window[0] == 0 for window in windows)
        windows = [window[1:] for window in windows]
        assert [len(window) for window in windows] == [15, 15, 10]
    assert [token for window in windows for token in window] == ids[:40]


def test_of_a_long_file_only_the_beginning_is_read(tiny_model: Path, tmp_path: Path) -> None:
    encoder = encoder_of(tiny_model, opens=False)
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 20_000)
    seen: list[int] = []
    whole = encoder.tokenizer

    def counting(text: str, **options: Any) -> Any:
        seen.append(len(text))
        return whole(text, **options)

    encoder.tokenizer = counting
    windows = read_text(path, encoder, most=100)
    assert sum(map(len, windows)) == 100
    assert max(seen) < 5_000
    path.write_text(" " * 3_000 + TEXT)  # more characters a token than are read at once
    assert read_text(path, encoder, most=100)


def engine_of(folder: Path) -> Engine:
    base, tokenizer = load_model(
        ModelConfig(name=str(folder), dtype="float32"), max_length=16, device=torch.device("cpu")
    )
    return Engine(
        model=adapters.attach(base, AdapterConfig(), name="fast", seed=0),
        accelerator=Accelerator(cpu=True),
        pad=tokenizer.eos_token_id,
    )


def test_the_value_and_where_there_is_none(tiny_model: Path) -> None:
    engine = engine_of(tiny_model)
    windows = [[0, 5, 6, 7], [0, 8]]
    with torch.inference_mode():
        losses = [
            -engine.model(torch.tensor([window])).logits[0].log_softmax(-1)[range(len(window) - 1), window[1:]]
            for window in windows
        ]
    found = perplexity(engine, windows)
    assert found["tokens"] == 4
    assert found["perplexity"] == pytest.approx(math.exp(torch.cat(losses).mean().item()), rel=1e-4)
    for value in (math.nan, math.inf):
        engine.forward = lambda batch, value=value: Output(  # type: ignore[method-assign,assignment,misc]
            torch.full((*batch.input_ids.shape, 400), value)
        )
        assert perplexity(engine, windows)["perplexity"] is None


def test_none_goes_into_the_results(tmp_path: Path) -> None:
    for phase, name in (("00-base", "base"), ("01-one", "slow")):
        folder = tmp_path / "predictions" / f"after-{phase}"
        folder.mkdir(parents=True)
        (folder / "perplexity.json").write_text(json.dumps({name: {"perplexity": None, "tokens": 9}}))
    assert read_perplexity(tmp_path, "01-one") == {"before": None, "after": {"slow": None}, "tokens": 9}


def test_a_method_that_chooses_by_the_prompt_sees_the_whole_window(tiny_model: Path) -> None:
    engine = engine_of(tiny_model)
    seen: list[torch.Tensor] = []

    def prefix(batch: Batch) -> torch.Tensor:
        seen.append(engine.features(batch)[0])
        return torch.zeros(len(batch.input_ids), 1, 32)

    windows = [[0, 5, 6, 7], [0, 8, 9, 10]]
    with engine.prefixed(prefix):
        assert perplexity(engine, windows)["tokens"] == 6
    assert float((seen[0] - seen[1]).abs().max()) > 1e-3  # not from the begin-of-text that all windows share
