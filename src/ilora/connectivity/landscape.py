"""The loss landscape: one model with a slot for an adapter, and tasks that are encoded once for all points."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from ilora.config import Config
from ilora.connectivity import space
from ilora.connectivity.reading import Reading, SharedPrefix, batches, shared_length
from ilora.connectivity.space import Adapter
from ilora.data.encoding import Encoder
from ilora.data.examples import IGNORED, collate
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.evaluation.scoring import EvaluationSet, answer_text, evaluate, prepare, questions, record
from ilora.kernels.losses import token_losses
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.fitting import in_batches
from ilora.model.load import ends, load_model, positions
from ilora.results.matrix import standard_error
from ilora.training.processes import joined

SLOT = "point"  # the name of the adapter whose tensors are exchanged


@dataclass(frozen=True)
class RowScores:
    """One task at one point: a loss (nats per answer token) and a score in [0, 1] for each of its rows.

    scores: none of them where losses alone were asked for.
    """

    losses: list[float]
    scores: list[float]

    def summary(self) -> dict[str, Any]:
        """Means over rows with their standard errors."""
        return {
            "n": len(self.losses),
            "loss": statistics.fmean(self.losses),
            "loss_se": standard_error(self.losses),
            "score": statistics.fmean(self.scores),
            "score_se": standard_error(self.scores),
        }


PointScores = dict[str, RowScores]  # by the task's label


class Landscape:
    """A frozen base model, tasks of one split, and a slot into which any adapter can be placed."""

    def __init__(self, config: Config, tasks: Sequence[Task], changed: Sequence[str], *, split: str) -> None:
        """changed: every layer that one of the adapters changes. Raises InputError as loading does."""
        accelerator, length = joined(), config.data.max_length
        base, tokenizer = load_model(
            config.model, max_length=length, device=accelerator.device, accelerator=accelerator
        )
        self.config, self.split = config, split
        self.encoder = Encoder(tokenizer, config.data, ends=ends(base), positions=positions(base.config))
        self.engine = Engine(
            model=adapters.attach_slot(base, changed, name=SLOT),
            accelerator=accelerator,
            pad=self.encoder.pad,
        )
        self.engine.model.eval()
        self._recurrent = _is_recurrent(base)
        self.engine.rejoin()
        self.sets = [self.encoded(task, split) for task in tasks]

    def encoded(self, task: Task, split: str) -> EvaluationSet:
        """A task's rows of a split, ready to be evaluated."""
        task, limit = self.encoder.fitting(task), self.config.evaluation.max_new_tokens
        # Only an answer limit that is `auto` asks for the training rows; encoding them takes longer than the rest.
        train = [] if task.max_new_tokens or isinstance(limit, int) else self.encoder.encode(task, "train")
        return prepare(task, self.encoder, train, split=split, max_new_tokens=limit)

    def use(self, adapter: Adapter) -> None:
        """Compute with this adapter from now on."""
        adapters.place(self.engine.model, SLOT, adapter.updates)

    def evaluate(
        self,
        points: Sequence[Adapter],
        *,
        exact: Sequence[int] = (),
        sets: Sequence[EvaluationSet] | None = None,
        scored: bool = True,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[PointScores]:
        """Loss and score of every row of every task at every point, in one pass over the rows.

        exact: the points whose answers come from the run's own evaluation code, in its own batches, so that they are
        the run's to the last row; the other points' answers are read from the prompt's cache (see `reading`). For a
        model with recurrent layers all points are exact: its state cannot be cut back to the end of a prompt.
        Of several processes, each reads its share of the rows; all return the same.
        scored: False for losses alone, without any answer; then `scores` are empty.
        advance: told of rows done, of which there are rows · points.
        """
        chosen = self.sets if sets is None else sets
        found: list[PointScores] = [{} for _ in points]
        with torch.inference_mode():
            for data in chosen:
                for number, scores in enumerate(self._evaluate_task(data, points, set(exact), scored, advance)):
                    found[number][data.task.label] = scores
        return found

    def _evaluate_task(
        self,
        data: EvaluationSet,
        points: Sequence[Adapter],
        exact: set[int],
        scored: bool,
        advance: Callable[[int], None],
    ) -> list[RowScores]:
        if self._recurrent:
            return [self._evaluate_whole(data, point, scored, advance) for point in points]
        count, encoder, mine = len(data.examples), self.encoder.of(data.task), list[int]()
        answered = set(range(len(points))) if scored else set[int]()
        whole = answered if data.task.scoring == "rank" else answered & exact
        drafted = answered - whole
        scores = [
            self._score(data, point) if n in whole else [0.0] * (count if n in drafted else 0)
            for n, point in enumerate(points)
        ]
        losses = [[0.0] * count for _ in points]
        asked = questions(data, range(count), self.encoder)
        shared = shared_length([example.prompt for example in asked])
        own = [replace(example, prompt=example.prompt[shared:]) for example in asked]
        prefixes = []
        for point in points:
            self.use(point)
            prefixes.append(SharedPrefix(self.engine, asked[0].prompt[:shared]))

        def read(rows: Sequence[int]) -> None:
            batch = collate([own[index] for index in rows], pad=self.encoder.pad, device=self.engine.device)
            answers = [data.examples[index].answer for index in rows]
            drafts: Sequence[Sequence[int]] = answers
            for number, point in enumerate(points):
                self.use(point)
                reading = Reading(self.engine, batch, prefixes[number], answers)
                for index, loss in zip(rows, reading.losses, strict=True):
                    losses[number][index] = loss
                if number in drafted:
                    drafts = reading.greedy(drafts, limit=data.max_new_tokens, ends=encoder.ends)
                    for index, ids in zip(rows, drafts, strict=True):
                        scores[number][index] = record(data, index, answer_text(ids, encoder))["score"]

        for part in self._parts(data, [len(example) for example in own], read):
            mine += part
            advance(len(points) * len(part) * self.engine.accelerator.num_processes)
        self._exchange(mine, [*losses, *(scores[number] for number in sorted(drafted))])
        return [RowScores(*pair) for pair in zip(losses, scores, strict=True)]

    def _evaluate_whole(
        self, data: EvaluationSet, point: Adapter, scored: bool, advance: Callable[[int], None]
    ) -> RowScores:
        """One point, every row read as a whole."""
        scores = self._score(data, point) if scored else []
        asked = questions(data, range(len(data.examples)), self.encoder)
        rows = [replace(one, answer=full.answer) for one, full in zip(asked, data.examples, strict=True)]
        losses, mine = [0.0] * len(rows), list[int]()

        def read(numbers: Sequence[int]) -> None:
            batch = collate([rows[number] for number in numbers], pad=self.encoder.pad, device=self.engine.device)
            found = token_losses(self.engine.forward(batch).answer_logits, batch.targets).sum(1)
            means = found / (batch.targets != IGNORED).sum(1)
            for number, loss in zip(numbers, means.tolist(), strict=True):
                losses[number] = loss

        for part in self._parts(data, [len(row) for row in rows], read):
            mine += part
            advance(len(part) * self.engine.accelerator.num_processes)
        self._exchange(mine, [losses])
        return RowScores(losses, scores)

    def _exchange(self, mine: Sequence[int], tables: Sequence[list[float]]) -> None:
        """Fill in what the other processes found of their rows. mine: the numbers of this process's rows."""
        found = self.engine.gather([(row, [table[row] for table in tables]) for row in mine])
        for row, values in found:
            for table, value in zip(tables, values, strict=True):
                table[row] = value

    def _parts(
        self, data: EvaluationSet, lengths: Sequence[int], read: Callable[[Sequence[int]], None]
    ) -> Iterator[Sequence[int]]:
        """Numbers of this process's rows of like length, once they are read together; fewer where memory ends."""
        for rows in self.engine.share(list(batches(lengths, size=self.config.evaluation.batch_size))):
            for part, _ in in_batches(self.engine, rows, read, size=len(rows), what=f"task '{data.task.name}'"):
                yield part

    def _score(self, data: EvaluationSet, point: Adapter) -> list[float]:
        self.use(point)
        records = evaluate(data, self.engine, self.encoder, batch_size=self.config.evaluation.batch_size)
        return [line["score"] for line in records]


@torch.inference_mode()
def _is_recurrent(base: Any) -> bool:
    """Whether a layer carries a state from token to token instead of keys and values."""
    output = base(input_ids=torch.tensor([[1, 2]], device=base.device), use_cache=True)
    layers = getattr(getattr(output, "past_key_values", None), "layers", ())
    return not layers or not all(isinstance(layer, DynamicLayer) for layer in layers)


def open_landscape(config: Config, tasks: Sequence[Task], points: Sequence[Adapter], *, split: str) -> Landscape:
    """The landscape for these adapters and their combinations. Raises InputError where one does not fit the model."""
    landscape = Landscape(config, tasks, space.layers(points), split=split)
    slot = adapters.parameters(landscape.engine.model, SLOT)
    sizes = {key.split("base_model.model.", 1)[-1]: tuple(value.shape) for key, value in slot.items()}
    for point in points:
        for layer, update in point.updates.items():
            ours = len(update.up), update.down.shape[1]
            theirs = sizes[f"{layer}.lora_B.weight"][0], sizes[f"{layer}.lora_A.weight"][1]
            if ours != theirs:
                raise InputError(
                    f"{point.label} belongs to another base model: layer {layer} is {ours[0]} x {ours[1]} in it and "
                    f"{theirs[0]} x {theirs[1]} in {config.model.name}"
                )
    return landscape


def limited(task: Task, split: str, rows: int | None) -> Task:
    """The task with at most `rows` rows of the split: a random subset that depends on the task and split only."""
    have = task.rows.get(split)
    if have is None:
        raise InputError(f"task '{task.name}': no {split} split; there are {', '.join(task.rows)}")
    if rows is None or rows >= len(have):
        return task
    kept = sorted(random.Random(f"connect/{task.name}/{split}").sample(range(len(have)), rows))
    return replace(task, rows={**task.rows, split: [have[index] for index in kept]})


def average(scores: PointScores, tasks: Sequence[str]) -> dict[str, Any]:
    """Mean over tasks, each counting alike, with the standard errors of the tasks' means added in squares; n: rows."""
    parts = [scores[task].summary() for task in tasks]
    made: dict[str, Any] = {"n": sum(part["n"] for part in parts)}
    for key in ("loss", "score"):
        made[key] = statistics.fmean(part[key] for part in parts)
        made[f"{key}_se"] = of_mean([part[f"{key}_se"] for part in parts])
    return made


def contrast(
    points: Sequence[PointScores], weights: Sequence[float], tasks: Sequence[str], *, key: str
) -> tuple[float, float | None]:
    """Σ weight · mean over tasks of the points' `scores` or `losses`, and its standard error row by row (paired)."""
    means, errors = [], []
    for task in tasks:
        rows = zip(*(getattr(point[task], key) for point in points), strict=True)
        values = [sum(weight * value for weight, value in zip(weights, row, strict=True)) for row in rows]
        means.append(statistics.fmean(values))
        errors.append(standard_error(values))
    return statistics.fmean(means), of_mean(errors)


def of_mean(errors: Sequence[float | None]) -> float | None:
    """The standard error of the mean of independent values with these errors; None where one is not known."""
    known = [error for error in errors if error is not None]
    return math.sqrt(sum(error**2 for error in known)) / len(errors) if len(known) == len(errors) else None


def gain(one: PointScores, other: PointScores, tasks: Sequence[str]) -> dict[str, float | None]:
    """Mean score of `one` minus that of `other`, with the standard error of the difference row by row (paired)."""
    score, error = contrast([one, other], [1.0, -1.0], tasks, key="scores")
    return {"score": score, "score_se": error}
