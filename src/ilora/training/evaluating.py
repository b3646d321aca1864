"""Measuring along the stream: the predictions after each phase, and the perplexity of a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilora.config import Config
from ilora.data.task import Task
from ilora.evaluation.perplexity import perplexity
from ilora.evaluation.scoring import evaluate
from ilora.files import write_atomic
from ilora.methods.base import Method
from ilora.model import adapters
from ilora.progress import ANSWERS, Bar, Display
from ilora.results.scores import BASE, is_written, perplexity_file, prediction_file, read_predictions
from ilora.training.encoded import EncodedStream
from ilora.training.interrupt import StopRequest
from ilora.training.processes import agreed, on_main


@dataclass(frozen=True)
class Job:
    """One prediction file to be written: a task's answers with one variant of the weights; None: the base model."""

    task: Task
    variant: str | None
    file: Path


class StreamEvaluator:
    """Evaluates a method after each phase of its stream, into the prediction files of the run folder `path`."""

    def __init__(
        self,
        config: Config,
        path: Path,
        stream: EncodedStream,
        method: Method[Any],
        *,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self.config, self.path, self.stream, self.method = config, path, stream, method
        self.display, self.stop = display, stop
        self.accelerator = method.engine.accelerator

    def evaluate(self, index: int) -> bool:
        """Make the measurements after phase `index` (0: the base model) that are not there yet.

        Returns whether a prediction file was missing.
        """
        jobs = [job for job in self._jobs(index) if not self._is_there(job.file)]
        title = f"evaluating after {self.label(index)}"
        with self.display.bar(title, sum(map(self._rows, jobs)), kind=ANSWERS) as bar:
            for job in jobs:
                earlier = self._fixed_answers(index, job)
                if earlier is None:
                    self._write(job.file, self._predict(job, bar))
                else:
                    self._write(job.file, read_predictions(earlier))
                    bar.advance(self._rows(job))
                self.stop.check()
        if index in (0, len(self.stream.phases)):
            self._measure_perplexity(index)
        return bool(jobs)

    def missing_rows(self, index: int) -> int:
        """Rows to be answered after phase `index`, as far as this process sees."""
        return sum(self._rows(job) for job in self._jobs(index) if not is_written(job.file))

    def label(self, index: int) -> str:
        """The name of phase `index` in files and messages."""
        return self.stream.phases[index - 1].label if index else BASE

    def _jobs(self, index: int) -> Iterator[Job]:
        """All prediction files after phase `index`. The base model's lie where the answering variant's would."""
        answering = self.method.variants[0]
        for variant in self.method.variants if index else [answering]:
            for task in self._scored_after(index):
                file = prediction_file(self.path, self.label(index), variant, task, answering=answering)
                yield Job(task, variant if index else None, file)

    def _rows(self, job: Job) -> int:
        return len(self.stream.scored[job.task.name].examples)

    def _scored_after(self, index: int) -> list[Task]:
        settings, tasks = self.config.evaluation, self.stream.tasks
        first = 0
        if index == 0:
            count = len(tasks) if settings.zero_shot else 0
        elif self.config.stream == "joint":
            count = len(tasks)
        else:
            count = index + {"none": 0, "next": 1, "all": len(tasks)}[settings.unseen]
            first = index - 1 if settings.earlier == "last" and index < len(self.stream.phases) else 0
        replaced = {task.replaces for task in tasks[:index]}
        return [task for task in tasks[first:count] if not task.forgotten and task.name not in replaced]

    def _fixed_answers(self, index: int, job: Job) -> Path | None:
        """The file with the answers after the phase before, if the method cannot have changed them since; else None."""
        trained = [task for phase in self.stream.phases[: max(0, index - 1)] for task in phase.tasks]
        if not self.method.fixed_answers or job.variant is None or job.task not in trained:
            return None
        label, answering = self.label(index - 1), self.method.variants[0]
        file = prediction_file(self.path, label, job.variant, job.task, answering=answering)
        return file if self._is_there(file) else None

    def _predict(self, job: Job, bar: Bar) -> str:
        """The content of a prediction file: one JSON record a line."""

        def advance(count: int) -> None:
            bar.advance(count)
            self.stop.check()

        with self._weights(job.task, job.variant):
            records = evaluate(
                self.stream.scored[job.task.name],
                self.method.engine,
                self.stream.encoder,
                batch_size=self.config.evaluation.batch_size,
                notes=self.method.run.notes,
                advance=advance,
            )
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def _measure_perplexity(self, index: int) -> None:
        """Write the perplexity of the configured text under every variant, or of the base model; once."""
        file = perplexity_file(self.path, self.label(index))
        if self.stream.text is None or self._is_there(file):
            return
        found = {}
        for variant in self.method.variants if index else [None]:
            with self._weights(self.stream.tasks[-1], variant):
                found[variant or "base"] = perplexity(self.method.engine, self.stream.text)
        self._write(file, json.dumps(found, indent=1) + "\n")

    @contextmanager
    def _weights(self, task: Task, variant: str | None) -> Iterator[None]:
        if variant is None:
            with adapters.active(self.method.engine.model, None):
                yield
        else:
            with self.method.inference(task.name, variant):
                yield

    def _is_there(self, file: Path) -> bool:
        return agreed(self.accelerator, is_written(file))

    def _write(self, file: Path, content: str) -> None:
        on_main(self.accelerator, lambda: write_atomic(file, content))
