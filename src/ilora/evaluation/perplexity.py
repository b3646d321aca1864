"""Perplexity on a text: a measure of what a model can do outside its tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilora.data.encoding import Encoder
from ilora.data.examples import Example, collate
from ilora.errors import InputError
from ilora.kernels.losses import token_losses
from ilora.model.engine import Engine
from ilora.model.fitting import in_batches

_LEAST = 2  # tokens: the first one is given, not predicted
_HIGHEST = 700.0  # nearly the largest number whose exp is a float; NaN is not below it
_AT_ONCE = 8  # characters read for each token that is wanted


def read_text(path: Path, encoder: Encoder, *, most: int) -> list[list[int]]:
    """The text's first `most` tokens in windows of `data.max_length`, each read on its own.

    Every window begins with begin-of-text if the tokenizer puts it before a text: models that were trained so (Llama,
    Gemma) predict badly without it. Raises InputError for a file that is missing, not UTF-8 or too short.
    """
    try:
        ids = _first_tokens(path, encoder.tokenizer, most)
    except OSError as error:
        raise InputError(f"evaluation.perplexity_file: {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"evaluation.perplexity_file: {path}: not UTF-8 ({error.reason})") from None
    opened = encoder.start is not None and encoder.tokenizer("a").input_ids[:1] == [encoder.start]
    front = [encoder.start] if opened else []
    length = encoder.config.max_length - len(front)
    windows = [front + ids[start : start + length] for start in range(0, len(ids), length)]
    windows = [window for window in windows if len(window) >= _LEAST]
    if not windows:
        raise InputError(f"evaluation.perplexity_file: {path}: fewer than {_LEAST} tokens; nothing to predict")
    return windows


def _first_tokens(path: Path, tokenizer: Any, most: int) -> list[int]:
    """The first `most` tokens. Reads no more of a long file than they need."""
    text = ""
    ids: list[int] = []
    with path.open(encoding="utf-8-sig") as file:
        while len(ids) <= most and (part := file.read(_AT_ONCE * most)):
            text += part
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return list(ids[:most])


def perplexity(engine: Engine, windows: list[list[int]]) -> dict[str, Any]:
    """exp of the mean negative log-likelihood of every token after the first of its window, with the active weights.

    None where that is no finite number.
    """
    total = torch.zeros(2, device=engine.device)
    accelerator = engine.accelerator
    training = engine.model.training
    engine.model.eval()
    try:
        with torch.inference_mode():
            for window in windows[accelerator.process_index :: accelerator.num_processes]:
                loss = _loss(engine, window)
                total += torch.stack([loss, loss.new_full((), len(window) - 1)])
    finally:
        engine.model.train(training)
    engine.all_reduce([total])
    loss_sum, tokens = total.tolist()
    mean = loss_sum / tokens
    return {"perplexity": math.exp(mean) if mean < _HIGHEST else None, "tokens": int(tokens)}


def _loss(engine: Engine, window: list[int]) -> Tensor:
    """Σ -log p of every token after the first; logits of fewer columns at once where memory ends."""
    # All of it is prompt: a method that chooses an adapter or prompts by the prompt sees the whole window.
    batch = replace(collate([Example("", "", window, [])], pad=engine.pad, device=engine.device), keep=len(window))
    asked = range(len(window) - 1)

    def losses(columns: Sequence[int]) -> Tensor:
        part = slice(columns[0], columns[-1] + 1)
        whole = len(columns) == len(asked)
        logits = engine.forward(batch).answer_logits if whole else engine.forward(batch, part=part).logits
        return token_losses(logits, batch.input_ids[:, 1:][:, part]).sum()

    parts = in_batches(engine, asked, losses, size=len(asked), what="evaluation.perplexity_file")
    return torch.stack([made for _, made in parts]).sum()
