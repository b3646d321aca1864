"""Answers to many rows: of a file, into a file that a kill leaves usable, or from Python."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ilora.answering.answerer import Answerer
from ilora.answering.lines import GrowingFile
from ilora.answering.questions import Question, read_questions
from ilora.answering.weights import RunWeights
from ilora.connectivity.sources import Origins
from ilora.data import tables
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.metrics.metrics import METRICS
from ilora.progress import Display
from ilora.registry import did_you_mean
from ilora.results.matrix import standard_error
from ilora.stream import load_tasks
from ilora.training.processes import by_first, joined, on_main

BATCHES = 32  # of a block, whose rows are answered in order of their length and written together


class Predictor:
    """A run's weights of a name, and how rows are answered and judged. The model is loaded at the first answer."""

    def __init__(
        self, run: Path, *, name: str | None, task: str | None, max_tokens: int | None, batch_size: int | None
    ) -> None:
        """task: of the run, which says how rows are answered (its limit, ranking) and judged; None: not judged.

        max_tokens: of an answer; None: as in the run's evaluation. Raises InputError for what the run does not have.
        """
        self.weights = RunWeights(run)
        self.adapter = self.weights.named(name)
        self.judge = None if task is None else _task(self.weights, task)
        limit = max_tokens or self.weights.longest_answer(task)
        like = self.judge or Task("rows", {}, template=self.weights.template(self.adapter))
        self.task = replace(like, rows={}, max_new_tokens=limit)
        self.batch_size = batch_size or self.weights.config.evaluation.batch_size
        self.block = BATCHES * self.batch_size
        self.cut = 0  # prompts that were cut so far
        self._answerer: Answerer | None = None

    @property
    def origin(self) -> dict[str, Any]:
        """What answers are made from, the rows aside."""
        task = self.task
        settings = {key: getattr(task, key) for key in ("max_new_tokens", "scoring", "choices")}
        if task.template not in (None, self.weights.config.data.template):
            settings["template"] = task.template
        judged = None if self.judge is None else {"task": task.name, "metric": task.metric}
        made = Origins(self.weights.config).of([self.adapter], [], settings)
        made["evaluation"]["batch_size"] = self.batch_size
        return {**made, "judged": judged}

    def answer(
        self, questions: Sequence[Question], *, advance: Callable[[int], None] = lambda _: None
    ) -> list[dict[str, Any]]:
        """Each question's fields with its `prediction`, and its `score` where it has a reference and is judged."""
        if self._answerer is None:
            like = self.weights.named(None)
            self._answerer = Answerer(self.weights.config, self.adapter, like)
        task = replace(self.task, rows={"test": [question.row for question in questions]})
        texts, cut = self._answerer.answers(task, batch_size=self.batch_size, advance=advance)
        self.cut += cut
        return [self._record(question, text) for question, text in zip(questions, texts, strict=True)]

    def _record(self, question: Question, text: str) -> dict[str, Any]:
        made = {**question.fields, "prediction": text}
        if self.judge is not None and question.reference is not None:
            metric, source = METRICS[self.judge.metric], self.judge.text(question.row)
            made["score"] = metric.judge(text, question.reference, self.judge.choices, source=source)
        return made


def _task(weights: RunWeights, name: str) -> Task:
    found = {task.name: task for task in load_tasks(weights.config.data)}
    if name not in found:
        near = did_you_mean(name, list(found))
        raise InputError(f"{weights.run}: no task '{name}'{near}; there are {', '.join(found)}")
    if found[name].forgotten:
        raise InputError(
            f"{weights.run}: the rows of task '{name}' were deleted on {found[name].forgotten}, and with them how they "
            "are answered; leave --task out"
        )
    return found[name]


def predict_rows(predictor: Predictor, rows: Sequence[Mapping[str, Any]], *, quiet: bool) -> list[dict[str, Any]]:
    """The rows with their answers, in order."""
    entries = ((f"row {number}", row) for number, row in enumerate(rows, 1))
    questions, made = read_questions(entries, "rows", predictor.judge), []
    with Display(quiet=quiet) as display, display.bar("answering", len(questions)) as bar:
        for start in range(0, len(questions), predictor.block):
            made += predictor.answer(questions[start : start + predictor.block], advance=bar.advance)
    return made


def predict_file(predictor: Predictor, source: Path, out: Path, *, quiet: bool) -> dict[str, Any]:
    """Answer the rows of a file into a new one; called again after a kill, go on. Returns what was done, in figures.

    Raises InputError, with nothing written, where rows cannot be used, or `out` is of another origin.
    """
    questions = read_questions(tables.entries(source), str(source), predictor.judge)
    accelerator = joined()
    with source.open("rb") as file:
        origin = {"schema": 1, "input_sha256": hashlib.file_digest(file, "sha256").hexdigest(), **predictor.origin}
    growing = GrowingFile(out, origin, total=len(questions), block=predictor.block)
    done = by_first(accelerator, growing.open)
    with Display(quiet=quiet or not accelerator.is_main_process) as display:
        if done < len(questions):
            display.say(f"predict: loading {predictor.weights.config.model.name}")
        with display.bar(f"answering with {predictor.adapter.label}", len(questions), done=done) as bar:
            for start in range(done, len(questions), predictor.block):
                made = predictor.answer(questions[start : start + predictor.block], advance=bar.advance)
                on_main(accelerator, lambda made=made: growing.append(made))  # type: ignore[misc]
    growing.close()
    return {
        "adapter": predictor.adapter.label,
        "rows": len(questions),
        "there": done,
        "cut": predictor.cut,
        **_scores(out, predictor),
    }


def _scores(out: Path, predictor: Predictor) -> dict[str, Any]:
    """The mean score of the whole file, where answers are judged."""
    if predictor.judge is None:
        return {}
    scores = [entry["score"] for _, entry in tables.entries(out) if "score" in entry]
    mean = statistics.fmean(scores) if scores else None
    error = standard_error(scores) if scores else None
    return {"metric": predictor.judge.metric, "n": len(scores), "score": mean, "score_se": error}
