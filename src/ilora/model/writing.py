"""Answers that the model writes itself while a method trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ilora.data.examples import Batch, Example
from ilora.model.engine import Engine


def write_answers(
    engine: Engine,
    rows: Sequence[Example],
    *,
    longest: int,
    ends: Iterable[int],
    choosing: Callable[[Batch], LogitsProcessor] | None = None,
) -> dict[str, list[int]]:
    """By row id, the answer that the active adapter writes to the row's prompt, token by token, without dropout.

    longest: tokens of an answer, at most. ends: tokens with which an answer ends, beside those of the model itself.
    choosing: makes what chooses the tokens of a batch; without it, the most likely one is taken.
    Each process answers its part of the rows and gets all answers, so all of them must call it.
    """
    own = engine.model.generation_config.eos_token_id
    stops = sorted({*ends, *(own if isinstance(own, list) else [] if own is None else [own])})
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=longest, eos_token_id=stops, pad_token_id=engine.pad, use_cache=True
    )
    mine: list[tuple[str, list[int]]] = []
    with _answering(engine):
        for batch in engine.micro_batches([replace(row, answer=[]) for row in rows]):
            more = {"logits_processor": LogitsProcessorList([choosing(batch)])} if choosing else {}
            made = engine.generate(batch, settings, **more).tolist()
            mine += [(row.id, until(ids, stops)) for row, ids in zip(batch.examples, made, strict=True)]
    return dict(engine.gather(mine))


@contextmanager
def _answering(engine: Engine) -> Iterator[None]:
    """Without gradients and without dropout."""
    model, training = engine.model, engine.model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to and with the first end."""
    return ids[: next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))]
