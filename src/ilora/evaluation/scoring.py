"""Scoring a set of weights on a task: greedy generation, or the likeliest of the choices.

Rows are sorted by length, batched, and dealt to the processes; predictions come back in the order of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from ilora.data.encoding import Encoder
from ilora.data.examples import Example, collate
from ilora.data.task import Task
from ilora.data.tokens import longest_answer
from ilora.errors import InputError
from ilora.metrics.metrics import METRICS
from ilora.model.engine import Engine
from ilora.model.fitting import in_batches
from ilora.model.ranking import likelihoods


@dataclass(frozen=True)
class EvaluationSet:
    """One task's rows of one split, encoded once for the whole run."""

    task: Task
    split: str
    examples: list[Example]
    choices: list[list[Example]]  # per row, one example per choice; empty unless scoring is `rank`
    max_new_tokens: int
    cut: int = 0  # rows whose prompt loses a part when it is answered
    unreachable: int = 0  # rows whose reference answer is longer than a generated one may be


def chance(task: Task, split: str) -> float | None:
    """The score of always giving the commonest answer to a closed task; None for one without choices."""
    if not task.choices or not task.rows.get(split):
        return None
    metric = METRICS[task.metric]
    answers = Counter(metric.parse(row.answer, task.choices) for row in task.rows[split])
    return max(1 / len(task.choices), answers.most_common(1)[0][1] / len(task.rows[split]))


def prepare(
    task: Task, encoder: Encoder, train: Sequence[Example], *, split: str, max_new_tokens: int | str
) -> EvaluationSet:
    """Encode a split for evaluation. train: the task's encoded training rows, for `auto` answer length."""
    refuse_no_split(task, split)
    limit = encoder.answer_limit(task, max_new_tokens, longest_answer(train))
    examples = encoder.encode(task, split)
    if task.scoring == "rank":
        # An over-long prompt is cut to what the longest choice leaves, so that all are asked the same.
        choices = [_same_prompt(row) for row in encoder.choices(task, split)]
        cut = sum(row[0].cut for row in choices)
        return EvaluationSet(task, split, examples, choices, limit, cut)
    cut = sum(example.cut or len(example.prompt) > encoder.room(limit) for example in examples)
    unreachable = sum(len(example.answer) - 1 > limit for example in examples)  # without end-of-text
    return EvaluationSet(task, split, examples, [], limit, cut, unreachable)


def refuse_no_split(task: Task, split: str) -> None:
    """Raises InputError where the task has no rows to be scored on."""
    if split not in task.rows:
        raise InputError(f"task '{task.name}': no {split} split for evaluation.split; there are {', '.join(task.rows)}")


def _same_prompt(choices: list[Example]) -> list[Example]:
    shortest = min(choices, key=lambda choice: len(choice.prompt))
    return [replace(choice, prompt=shortest.prompt, cut=shortest.cut) for choice in choices]


def evaluate(
    data: EvaluationSet,
    engine: Engine,
    encoder: Encoder,
    *,
    batch_size: int,
    notes: dict[str, dict[str, Any]] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Predict and score every row with the weights that are active now.

    notes: a method writes here, by row id, what belongs beside a row's prediction.
    Returns one record per row: id, prompt, prediction (raw text), parsed, reference, score in [0, 1], and its notes.
    """
    made = answer(data, engine, encoder, batch_size=batch_size, notes=notes, advance=advance)
    return [record(data, index, text) | noted for index, (text, noted) in enumerate(made)]


def answer(
    data: EvaluationSet,
    engine: Engine,
    encoder: Encoder,
    *,
    batch_size: int,
    notes: dict[str, dict[str, Any]] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[tuple[str, dict[str, Any]]]:
    """The predicted text and the notes of every row, in their order, without a score. Arguments as in `evaluate`."""
    noted, accelerator = {} if notes is None else notes, engine.accelerator
    encoder = encoder.of(data.task)
    order = sorted(range(len(data.examples)), key=lambda index: -len(data.examples[index].prompt))
    mine = engine.share(order)
    predict = _rank if data.task.scoring == "rank" else _generate
    if engine.decoding is not None and order:
        batch_size = max(batch_size, engine.decoding.rows_at_once(_longest(data)))
    training = engine.model.training

    def predicted(rows: Sequence[int]) -> list[str]:
        noted.clear()
        return predict(data, rows, engine, encoder)

    engine.model.eval()
    texts: list[tuple[int, str, dict[str, Any]]] = []
    try:
        with torch.inference_mode():
            task = f"task '{data.task.name}'"
            for rows, made in in_batches(engine, mine, predicted, size=batch_size, what=task):
                found = [noted.get(data.examples[index].id, {}) for index in rows]
                texts += zip(rows, made, found, strict=True)
                advance(len(rows) * accelerator.num_processes)
    finally:
        engine.model.train(training)
    texts = engine.gather(texts)
    return [(text, own) for _, text, own in sorted(texts, key=lambda item: item[0])]


def _longest(data: EvaluationSet) -> int:
    """Tokens of a row with its answer, at most."""
    answers = [len(choice.answer) for row in data.choices for choice in row]
    return max(len(example.prompt) for example in data.examples) + max(answers, default=data.max_new_tokens)


def record(data: EvaluationSet, index: int, text: str) -> dict[str, Any]:
    """The record of row `index` for the answer `text`."""
    task, row, metric = data.task, data.task.rows[data.split][index], METRICS[data.task.metric]
    return {
        "id": data.examples[index].id,
        "prompt": row.prompt,
        "prediction": text,
        "parsed": metric.parse(text, task.choices),
        "reference": row.answer,
        "score": metric.judge(text, row.answer, task.choices, source=task.text(row)),
    }


def _generate(data: EvaluationSet, rows: Sequence[int], engine: Engine, encoder: Encoder) -> list[str]:
    """Greedy continuation of each prompt up to end-of-text or the task's token limit."""
    batch = collate(questions(data, rows, encoder), pad=encoder.pad, device=engine.device)
    made = engine.generate(batch, greedy(encoder, data.max_new_tokens))
    return [answer_text(row, encoder) for row in made.tolist()]


def greedy(encoder: Encoder, max_new_tokens: int) -> GenerationConfig:
    """The likeliest token each time, up to an end or the limit."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(encoder.ends),
        pad_token_id=encoder.pad,
        use_cache=True,
    )


def questions(data: EvaluationSet, rows: Sequence[int], encoder: Encoder) -> list[Example]:
    """The rows' prompts without answers, cut so that the longest answer still fits."""
    room = encoder.room(data.max_new_tokens)
    chosen = [data.examples[index] for index in rows]
    return [
        Example(example.task, example.id, encoder.cut(example.prompt, room, example.body), []) for example in chosen
    ]


def answer_text(ids: list[int], encoder: Encoder) -> str:
    """Generated token ids up to the first end, as text."""
    return str(encoder.tokenizer.decode(_until(ids, encoder.ends), skip_special_tokens=True)).strip()


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def _rank(data: EvaluationSet, rows: Sequence[int], engine: Engine, encoder: Encoder) -> list[str]:
    """For each row the choice of the highest total log-likelihood, end-of-text included (first one on a tie)."""
    choices = [data.choices[index] for index in rows]
    prompts = [replace(row[0], answer=[]) for row in choices]
    batch = collate(prompts, pad=encoder.pad, device=engine.device)
    scores = likelihoods(engine, batch, [[choice.answer for choice in row] for row in choices]).tolist()
    return [data.task.choices[row.index(max(row))] for row in scores]
