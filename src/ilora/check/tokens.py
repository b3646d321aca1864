"""The rows in tokens, as a run will read them: what is cut, what is too long, and what the run would refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ilora.config import Config
from ilora.data.encoding import Encoder
from ilora.data.notes import length_notes
from ilora.data.stored import some
from ilora.data.task import SPLITS, Row, Task
from ilora.errors import InputError

EDGES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_MOST_COUNTED = 5_000


def encoder_of(config: Config, tasks: int) -> Encoder:
    """The run's encoder, with the model's positions and the method's vectors counted, but without the model.

    tasks: how many the stream has. Raises InputError where the run would be refused for them.
    """
    from ilora.model.load import load_tokenizer, model_config, positions, refuse_long_rows  # here: with transformers
    from ilora.training.loading import encoder_beside_prompts

    tokenizer, most = load_tokenizer(config.model), positions(model_config(config.model))
    refuse_long_rows(config.model, most, config.data.max_length)
    return encoder_beside_prompts(config, tokenizer, most, tasks=tasks)


def refused(task: Task, config: Config) -> list[dict[str, str]]:
    """The splits that a task lacks and the run needs, as a problem."""
    from ilora.evaluation.scoring import refuse_no_split
    from ilora.training.validation import refuse_no_eval

    try:
        refuse_no_split(task, config.evaluation.split)
        if config.training.stop_when:
            refuse_no_eval([task])
    except InputError as error:
        return [{"level": "error", "text": str(error)}]
    return []


def length_problems(task: Task, encoder: Encoder, config: Config) -> list[dict[str, str]]:
    """What a run on these rows would warn of because of their lengths; the task has the splits of the run."""
    limit, split = encoder.config.max_length, config.evaluation.split
    train, scored = (_lengths(task, encoder, name) for name in ("train", split))
    longest = max((answer for _, answer in train), default=1)
    made = encoder.answer_limit(task, config.evaluation.max_new_tokens, longest)
    out_of_reach = 0 if task.scoring == "rank" else sum(answer - 1 > made for _, answer in scored)
    notes = length_notes(
        train=len(task.rows["train"]),
        cut=_scaled(sum(whole > limit for whole, _ in train), task, "train"),
        length=encoder.length,
        scored=len(task.rows.get(split, ())),
        unreachable=_scaled(out_of_reach, task, split),
        limit=made,
    )
    return [{"level": "warning", "text": note} for note in notes]


def count_tokens(task: Task, encoder: Encoder, max_new_tokens: int | str) -> dict[str, Any]:
    """Lengths of prompt + answer in tokens, uncut; `cut`: rows whose prompt loses a part, in training or evaluation.

    Of a split with more rows than 5,000 a random part of that size is counted (`counted`), and the sums are scaled up.
    """
    limit = encoder.config.max_length
    lengths = {split: _lengths(task, encoder, split) for split in SPLITS if split in task.rows}
    wholes = [whole for pairs in lengths.values() for whole, _ in pairs]
    edges = [0, *EDGES, 2**31]
    histogram, _ = np.histogram(wholes, bins=[edge + 1 for edge in edges])
    names = [*(f"<={edge}" for edge in EDGES), f">{EDGES[-1]}"]
    room = _room(task, encoder, max_new_tokens, longest=max((answer for _, answer in lengths["train"]), default=1))

    def counts(too_long: Callable[[str, int, int], bool]) -> dict[str, int]:
        return {
            split: _scaled(sum(too_long(split, *pair) for pair in pairs), task, split)
            for split, pairs in lengths.items()
        }

    return {
        "max_length": limit,
        "length": encoder.length,
        "drops": encoder.config.too_long == "drop",
        "counted": {split: len(pairs) for split, pairs in lengths.items()},
        "whole": spread(wholes),
        "median": spread([whole for whole, _ in lengths["train"]])["median"],
        "train": _scaled(sum(min(whole, limit) for whole, _ in lengths["train"]), task, "train"),
        "histogram": dict(zip(names, map(int, histogram), strict=True)),
        "cut": counts(lambda split, whole, answer: whole > limit or (split != "train" and whole - answer > room)),
        "answer_too_long": counts(lambda _, __, answer: answer >= limit),
    }


def spread(values: Sequence[int]) -> dict[str, int]:
    """Median, 95th percentile and maximum."""
    if not values:
        return {"median": 0, "p95": 0, "max": 0}
    median, high = np.percentile(values, [50, 95])
    return {"median": round(median), "p95": round(high), "max": max(values)}


def _room(task: Task, encoder: Encoder, max_new_tokens: int | str, *, longest: int) -> int:
    """How many tokens a prompt may have in evaluation, beside the longest ranked choice or generated answer."""
    if task.scoring == "rank":
        choices = encoder.lengths([Row("?", choice) for choice in task.choices])
        return encoder.config.max_length - max(answer for _, answer in choices)
    return encoder.room(encoder.answer_limit(task, max_new_tokens, longest))


def _lengths(task: Task, encoder: Encoder, split: str) -> list[tuple[int, int]]:
    """Of a split's rows, or of a random part of them."""
    return encoder.lengths(some(task.rows.get(split, []), _MOST_COUNTED, key=f"check/{split}"))


def _scaled(found: int, task: Task, split: str) -> int:
    """What was counted in a random part of a split, for all of it."""
    rows = len(task.rows.get(split, ()))
    return found if rows <= _MOST_COUNTED else round(found * rows / _MOST_COUNTED)
