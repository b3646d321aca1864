"""The stream in token ids: every row is encoded once, before the first step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ilora.config import Config
from ilora.data.digests import training_digest
from ilora.data.encoding import Encoder, control_tokens
from ilora.data.examples import Example
from ilora.data.notes import length_notes
from ilora.data.stored import StoredRows, installed, joined
from ilora.data.task import Phase, Task, phases
from ilora.data.tokens import cut_rows, stored_examples
from ilora.evaluation.perplexity import read_text
from ilora.evaluation.scoring import EvaluationSet, chance, prepare
from ilora.files import cache_folder
from ilora.model.identity import tokenizer_sha256
from ilora.training.validation import validation_rows

_TOKENS = 1  # the form of a file of tokens


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
    train: dict[str, Sequence[Example]]
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
        digests = {task.name: training_digest(task) for task in tasks}
        train = {task.name: _training_examples(task, encoder, digests[task.name]) for task in tasks}
        scored = {
            task.name: prepare(
                task, encoder, train[task.name], split=settings.split, max_new_tokens=settings.max_new_tokens
            )
            for task in tasks
        }
        file, most = settings.perplexity_file, settings.perplexity_tokens
        text = read_text(file, encoder, most=most) if file else None
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
            if len(task.rows["train"]) > self.encoder.config.rows_in_memory and not installed():
                yield (
                    f"{task.name}: {len(task.rows['train']):,} training rows stay in memory, since pyarrow is missing; "
                    "pip install 'ilora[datasets]' brings it"
                )
            scored, examples = self.scored[task.name], self.train[task.name]
            notes = length_notes(
                train=len(examples),
                cut=cut_rows(examples),
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

    def rows(self, phase: Phase) -> Sequence[Example]:
        """The training rows of a phase."""
        return joined([self.train[task.name] for task in phase.tasks])

    def validation_rows(self, phase: Phase) -> list[Example]:
        """The rows of a phase for the validation loss."""
        return [example for task in phase.tasks for example in self.validation[task.name]]

    def read_by_engine(self, *, training: bool) -> list[Sequence[Example]]:
        """The rows that go through the model more than once, task by task: those that are ranked or trained on."""
        ranked: list[Sequence[Example]] = [
            [choice for row in self.scored[task.name].choices for choice in row] for task in self.tasks
        ]
        return ranked + list(self.train.values()) if training else ranked


def _training_examples(task: Task, encoder: Encoder, digest: str) -> Sequence[Example]:
    """The training rows in token ids: those of a large task in a file of the user's cache, which is written once.

    digest: of the rows. The file is named after all that decides the tokens.
    """
    if not isinstance(task.rows["train"], StoredRows):
        return encoder.encode(task, "train")
    config, end = encoder.of(task).config, encoder.of(task).end
    settings = [config.template, config.separator, config.max_length, config.cut, end]
    tokenizer = encoder.tokenizer
    # Flags of one without a fast form, some of which are rules (lower case), others how it was loaded.
    flags = {} if getattr(tokenizer, "is_fast", False) else getattr(tokenizer, "init_kwargs", {})
    about = [_TOKENS, task.name, digest, tokenizer_sha256(tokenizer), settings, *([flags] if flags else [])]
    name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]
    file = cache_folder() / "tokens" / f"{name}.arrow"
    return stored_examples(file, encoder.examples(task, "train"), task=task.name, label=f"{task.label}/train")
