"""What a run folder holds for the gate: scores by row of every phase, the current release, and general ability."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ilora.data.task import Phase
from ilora.errors import InputError
from ilora.present.numbers import number as finite
from ilora.present.numbers import plain
from ilora.releases.journal import line
from ilora.releases.store import read_release
from ilora.results.reader import deleted, matrix, read_results, read_text, retired, task_labels
from ilora.results.schema import Form, validated
from ilora.results.scores import BASE, is_written, perplexity_file, prediction_folder, read_predictions, read_records

Rows = Mapping[str, float]
"""Scores in [0, 1] by the id of the row."""

PROBES = "probes.json"


class Probes(Form):
    """What probes.py measures: scores by group and row, the loss of every window of a text in nats per token.

    made_from: the same for what may be compared.
    """

    made_from: str
    scores: dict[str, dict[str, Annotated[float, Field(ge=0, le=1)]]]
    text: Annotated[list[float], Field(min_length=1)]


@dataclass(frozen=True)
class Ability:
    """General ability with some weights; None where not measured."""

    perplexity: float | None = None
    probes: Probes | None = None


class Evidence:
    """A run up to a phase. `files` has the SHA-256 of every file that was read, by its path in the run."""

    def __init__(self, run: Path, number: int | None = None) -> None:
        """number: of the phase, from 1; None: the last one. Raises InputError where it was not evaluated."""
        self.run, self.results = run, read_results(run)
        self.files: dict[str, str | None] = {}
        self.answering: str = self.results["answers_with"]
        names = self.results.get("phases") or [task["name"] for task in self.results["tasks"]]
        self.phases = [Phase(index, str(name), ()).label for index, name in enumerate(names, 1)]
        done = min(len(matrix(self.results, self.answering)), len(self.phases))
        if not done:
            raise InputError(f"{run}: no phase was evaluated yet; `ilora resume {run}` goes on")
        self.number = done if number is None else number
        if not 1 <= self.number <= done:
            known = ", ".join(f"{index} ({label})" for index, label in enumerate(self.phases[:done], 1))
            raise InputError(f"{run}: --phase {number}: no such phase with scores; there are {plain(known, 400)}")

    @property
    def phase(self) -> str:
        """The label of the phase: `03-fomc`."""
        return self.phases[self.number - 1]

    @property
    def labels(self) -> list[str]:
        """The labels of all tasks."""
        return task_labels(self.results)

    @property
    def earlier(self) -> list[str]:
        """The labels of the tasks that were learnt before the phase and scored after it."""
        return [task for task in self._before if self._is_judged(task)]

    @property
    def new(self) -> list[str]:
        """The labels of the tasks of the phase, as far as they were scored after it."""
        return [task for task in self._of_phase if self._is_judged(task)]

    @property
    def seen(self) -> list[str]:
        """The labels of all tasks that were learnt by the end of the phase and scored after it."""
        return [*self.earlier, *self.new]

    @property
    def deleted(self) -> dict[str, str]:
        """By label the tasks whose rows were deleted, each with the day."""
        return {self.labels[number]: day for number, day in deleted(self.results).items()}

    @property
    def retired(self) -> dict[str, str]:
        """By label the tasks that may be scored no longer: deleted or replaced, each with a sentence on it."""
        return {self.labels[number]: why for number, why in retired(self.results).items()}

    @property
    def unjudged(self) -> list[str]:
        """The labels of the tasks that were learnt, but not scored after the phase: deleted, or replaced."""
        return [task for task in (*self._before, *self._of_phase) if not self._is_judged(task)]

    @property
    def _before(self) -> list[str]:
        return [] if self.results.get("stream") == "joint" else self.labels[: self.number - 1]

    @property
    def _of_phase(self) -> list[str]:
        return self.labels if self.results.get("stream") == "joint" else [self.labels[self.number - 1]]

    def _is_judged(self, task: str) -> bool:
        return task not in self.retired or is_written(self._file(self.phase, task))

    def now(self, variant: str | None = None) -> dict[str, Rows]:
        """By task the rows after the phase. Raises InputError where a task's are missing."""
        found = {}
        for task in self.seen:
            file = self._file(self.phase, task, variant)
            rows = self._rows(file)
            if rows is None:
                raise InputError(f"{file}: file not found; the gate needs the scores of single rows")
            found[task] = rows
        return found

    def before(self, task: str) -> dict[str, Rows]:
        """By phase the rows of an earlier task, from its own training to the phase before; those that are there."""
        first = self.labels.index(task)
        found = {phase: self._rows(self._file(phase, task)) for phase in self.phases[first : self.number - 1]}
        return {phase: rows for phase, rows in found.items() if rows is not None}

    def untrained(self, task: str) -> Rows | None:
        """The rows of a task as the base model answers them."""
        return self._rows(self._file(BASE, task))

    def release(self) -> tuple[int, str] | None:
        """Number and phase of the release that the phase would follow; None where there is none.

        A damaged one is passed over if a later one was made of the same phase.
        """
        later = False
        for number in reversed(line(self.run)):
            try:
                phases = len(read_release(self.run, number).manifest.phases)
            except InputError:
                if not later:
                    raise
                continue
            later = True
            if phases < self.number:
                return number, self.phases[phases - 1]
        return None

    def ability(self, phase: str, variant: str | None = None) -> Ability:
        """What was measured after a phase; of the base model for BASE."""
        name = "base" if phase == BASE else variant or self.answering
        measured = self._json(perplexity_file(self.run, phase)).get(name)
        perplexity = finite(measured.get("perplexity")) if isinstance(measured, dict) else None
        file = prediction_folder(self.run, phase) / PROBES
        probes = self._json(file).get(name)
        found = None if probes is None else validated(Probes, probes, f"{file}, {name}")
        return Ability(perplexity if perplexity and perplexity > 0 else None, found)

    def harness(self) -> Sequence[Mapping[str, Any]]:
        """The scores of general.json, where they are of the adapter of this phase."""
        content = self._json(self.run / "general.json")
        parts = Path(str(content.get("adapter", ""))).parts
        rows = content.get("scores")
        return [row for row in rows if isinstance(row, dict)] if parts[1:2] == (self.phase,) and rows else []

    def _file(self, phase: str, task: str, variant: str | None = None) -> Path:
        folder = prediction_folder(self.run, phase)
        return (folder if variant in (None, self.answering) else folder / variant) / f"{task}.jsonl"

    def _rows(self, file: Path) -> Rows | None:
        if not is_written(file):
            return None
        self._note(file)
        found: dict[str, float] = {}
        for place, record in enumerate(read_records(file), 1):
            score = finite(record.get("score")) if isinstance(record, dict) else None
            if score is None or not 0 <= score <= 1 or not isinstance(record.get("id"), str):
                raise InputError(f"{file}:{place}: expected an object with an 'id' and a 'score' between 0 and 1")
            if record["id"] in found:
                raise InputError(f"{file}:{place}: row {plain(record['id'], 80)} stands there twice")
            found[record["id"]] = score
        if not found:
            raise InputError(f"{file}: no rows")
        return found

    def _json(self, file: Path) -> dict[str, Any]:
        """A file's mapping; an empty one where there is no file."""
        if not file.is_file():
            return {}
        self._note(file)
        try:
            content = json.loads(read_text(file))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise InputError(f"{file}: expected an object")
        return content

    def _note(self, file: Path) -> None:
        self.files[file.relative_to(self.run).as_posix()] = digest(file)


def digest(file: Path) -> str | None:
    """SHA-256 of a file's content, the same for a compressed prediction file; None where there is no file."""
    if not is_written(file):
        return None
    predictions = file.suffix == ".jsonl"
    return hashlib.sha256(read_predictions(file).encode() if predictions else file.read_bytes()).hexdigest()


def paired(one: Rows, other: Rows, place: str) -> tuple[list[float], list[float]]:
    """The scores of two sets of the same rows, row by row. Raises InputError where they are other rows."""
    if one.keys() != other.keys():
        odd = next(iter(one.keys() ^ other.keys()))
        raise InputError(f"{place}: row {plain(odd, 80)} is in one of the two prediction files only")
    return list(one.values()), [other[name] for name in one]
