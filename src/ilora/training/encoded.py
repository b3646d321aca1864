"""The stream in token ids: every row is encoded once, before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ilora.config import Config
from ilora.data.encoding import Encoder, control_tokens
from ilora.data.examples import Example
from ilora.data.notes import length_notes
from ilora.data.task import Phase, Task, phases
from ilora.evaluation.perplexity import read_text
from ilora.evaluation.scoring import EvaluationSet, chance, prepare
from ilora.stream import training_digest
from ilora.training.validation import validation_rows


@dataclass(frozen=True)
class EncodedStream:
    """A stream's tasks and phases, with their rows in token ids.

    train: the training rows, by task name.
    digests: each task's `training_digest`, by name.
    chances: each task's `chance`, by name.
    scored: the rows of the evaluation split, by task name.
    text: the windows of `evaluation.perplexity_file`; None without one.
    validation: the rows for the validation loss, by task name; of those with `training.stop_when`.
    """

    tasks: list[Task]
    phases: list[Phase]
    encoder: Encoder
    train: dict[str, list[Example]]
    digests: dict[str, str]
    chances: dict[str, float | None]
    scored: dict[str, EvaluationSet]
    text: list[list[int]] | None
    validation: dict[str, list[Example]]

    @staticmethod
    def of(config: Config, tasks: list[Task], encoder: Encoder) -> EncodedStream:
        """Encode all of it. Raises InputError where a row or the text cannot be used."""
        settings = config.evaluation
        tasks = [encoder.fitting(task) for task in tasks]
        train = {task.name: encoder.encode(task, "train") for task in tasks}
        scored = {
            task.name: prepare(
                task, encoder, train[task.name], split=settings.split, max_new_tokens=settings.max_new_tokens
            )
            for task in tasks
        }
        file, most = settings.perplexity_file, settings.perplexity_tokens
        text = read_text(file, encoder, most=most) if file else None
        digests = {task.name: training_digest(task) for task in tasks}
        chances = {task.name: chance(task, settings.split) for task in tasks}
        order = phases(tasks, config.stream)
        watched = [task for phase in order if config.at(phase.index).training.stop_when for task in phase.tasks]
        validation = validation_rows(watched, encoder)
        return EncodedStream(tasks, order, encoder, train, digests, chances, scored, text, validation)

    def templates(self, method: str) -> Iterator[str]:
        """What stands around the prompts of a method's run, and around those of tasks with a template of their own."""
        yield f"{method}: {self.encoder.described}"
        for task in self.tasks:
            if (own := self.encoder.of(task)) is not self.encoder:
                yield f"{method}: of {task.name}, {own.described}"

    def warnings(self) -> Iterator[str]:
        """What of the data will not train or score as its owner may think."""
        if self.validation and any(data.split == "eval" for data in self.scored.values()):
            yield (
                "evaluation.split is eval, by whose rows training.stop_when decides when a task ends: the scores are "
                "too high as an estimate for new rows; evaluation.split: test avoids that"
            )
        for task in self.tasks:
            scored, examples = self.scored[task.name], self.train[task.name]
            notes = length_notes(
                train=len(examples),
                cut=sum(example.cut for example in examples),
                length=self.encoder.length,
                scored=len(scored.examples),
                unreachable=scored.unreachable,
                limit=scored.max_new_tokens,
            )
            yield from (f"{task.name}: {note}" for note in notes)
            for token, count in control_tokens(self.encoder.tokenizer, task.rows["train"]).items():
                yield (
                    f"{task.name}: the control token {token} stands in the text of {count} training rows; the model "
                    "reads it as its own (an end in a prompt ends it): take it out, unless it is meant so"
                )

    def rows(self, phase: Phase) -> list[Example]:
        """The training rows of a phase."""
        return [example for task in phase.tasks for example in self.train[task.name]]

    def validation_rows(self, phase: Phase) -> list[Example]:
        """The rows of a phase for the validation loss."""
        return [example for task in phase.tasks for example in self.validation[task.name]]

    def read_by_engine(self, *, training: bool) -> list[list[Example]]:
        """The rows that go through the model more than once, task by task: those that are ranked or trained on."""
        ranked = [[choice for row in self.scored[task.name].choices for choice in row] for task in self.tasks]
        return ranked + list(self.train.values()) if training else ranked
