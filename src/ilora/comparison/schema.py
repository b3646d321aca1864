"""The form of what a comparison reads: results of a finished run, and evidence files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from ilora.present.numbers import number
from ilora.results.schema import FileName, Form, ResultsFile, VariantEntry, known_version, misplaced

SCHEMA = 1  # of evidence files
KIND = "ilora evidence"


class FinishedResults(ResultsFile):
    """Results that can be compared: every phase has its row of R, and the last row is complete."""

    seed: int
    phases: list[str]
    variants: dict[FileName, VariantEntry]

    @property
    def labels(self) -> list[str]:
        """The tasks' labels in the order of training."""
        return [task.label or task.name for task in self.tasks]

    @model_validator(mode="after")
    def _is_finished(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise misplaced("tasks", "must have different labels")
        count = 1 if self.stream == "joint" else len(self.tasks)
        if len(self.phases) != count:
            raise misplaced("phases", f"must name {count}, one for each row of R")
        for name, variant in self.variants.items():
            if len(variant.R) != count:
                raise misplaced(f"variants.{name}.R", f"must have {count} rows, one for each phase")
            if None in variant.R[-1]:
                raise misplaced(
                    f"variants.{name}.R.{count - 1}", "must have a score for each task after the last phase"
                )
        return self


def _ours(kind: object) -> object:
    if kind != KIND:
        raise ValueError(f"must be {KIND!r}; `ilora compare RUN... --save FILE` makes such a file")
    return kind


def _inner_path(name: str) -> str:
    path = PurePosixPath(name or "/")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("must be a relative path without '..'")
    return name


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _item_scores(cell: object) -> list[float] | None:
    """The scores of single test rows: from a text of digits where all are 0 or 1, else from a list."""
    if cell is None:
        return None
    if isinstance(cell, str) and set(cell) <= {"0", "1"}:
        return [float(digit) for digit in cell]
    scores = [number(score) for score in cell] if isinstance(cell, list) else [None]
    known = [score for score in scores if score is not None and 0 <= score <= 1]
    if len(known) < len(scores):
        raise ValueError("must be a text of 0 and 1, a list of numbers from 0 to 1, or null")
    return known


ItemScores = Annotated[list[float] | None, BeforeValidator(_item_scores)]


class EvidenceTask(Form):
    """The test rows of a task. Where the ids are numbered, the file has what stands before the number, and `rows`."""

    digest: str = Field(pattern="^[0-9a-f]{64}$")
    rows: int | None = Field(default=None, gt=0)
    ids: list[str] = Field(min_length=1)

    @field_validator("rows")
    @classmethod
    def _fit_into_the_file(cls, rows: int | None, info: ValidationInfo) -> int | None:
        """The validation's context has the file's number of characters."""
        most = info.context["characters"] if info.context else 0
        if rows is not None and rows > most:
            raise ValueError(f"must be the number of test rows; a file of {most} characters cannot hold so many")
        return rows

    @field_validator("ids", mode="before")
    @classmethod
    def _numbered(cls, ids: object, info: ValidationInfo) -> object:
        if not isinstance(ids, str):
            return ids
        if info.data.get("rows") is None:
            raise ValueError("needs 'rows' beside it, the number of test rows, where it is a text")
        return [f"{ids}{number}" for number in range(info.data["rows"])]

    @field_validator("ids")
    @classmethod
    def _differ(cls, ids: list[str]) -> list[str]:
        if len(set(ids)) < len(ids):
            raise ValueError("must be a text, or a list of different texts")
        return ids


class CellPlace(NamedTuple):
    """Where the scores of a cell stand: in which variant, after which stage (0: the base model) and of which task."""

    variant: str
    stage: int
    task: int

    @property
    def keys(self) -> str:
        """The way to it within a run's entry."""
        return f"scores.{self.variant}.{self.stage}.{self.task}"


class EvidenceRun(Form):
    """A run: `scores` has the form of R with the zero-shot row above it."""

    name: Annotated[str, AfterValidator(_inner_path)]
    label: Annotated[str, AfterValidator(_not_blank)]
    results: FinishedResults
    settings: dict[str, object]
    scores: dict[str, list[list[ItemScores]]]

    def means(self, variant: str) -> list[list[float | None]]:
        """(1 + stages, tasks): the scores that the results have, in the form of `scores`."""
        found = self.results.variants[variant]
        return [found.zero_shot or [None] * len(self.results.tasks), *found.R]

    def cells(self) -> Iterator[tuple[CellPlace, list[float] | None]]:
        """Every cell of every variant."""
        for variant, rows in self.scores.items():
            for stage, row in enumerate(rows):
                for task, cell in enumerate(row):
                    yield CellPlace(variant, stage, task), cell

    @model_validator(mode="after")
    def _scores_follow_results(self) -> Self:
        if set(self.scores) != set(self.results.variants):
            raise misplaced("scores", f"must have the variants {', '.join(self.results.variants)}")
        for variant, rows in self.scores.items():
            form = [len(row) for row in self.means(variant)]
            if [len(row) for row in rows] != form:
                allowed = f"must have {len(form)} rows of {form[0]} cells: the zero-shot row, and one for each phase"
                raise misplaced(f"scores.{variant}", allowed)
        for place, cell in self.cells():
            if self.means(place.variant)[place.stage][place.task] is None and cell is not None:
                raise misplaced(place.keys, "must be null, as the results have no score there")
        return self


class EvidenceFile(Form):
    """A file of evidence. Its validation needs its number of characters as context."""

    kind: Annotated[str, BeforeValidator(_ours)] = Field(default="", validate_default=True)
    version: Annotated[int, known_version(SCHEMA)] = Field(alias="schema")
    tasks: dict[str, EvidenceTask] = Field(min_length=1)
    runs: list[EvidenceRun] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise misplaced("runs", "must have different names")
        for line, run in enumerate(self.runs):
            self._check_cells(f"runs.{line}", run)
        return self

    def _check_cells(self, here: str, run: EvidenceRun) -> None:
        for label in run.results.labels:
            if label not in self.tasks:
                raise misplaced(f"{here}.results.tasks", f"must be among the file's tasks, {', '.join(self.tasks)}")
        sizes = [len(self.tasks[label].ids) for label in run.results.labels]
        for place, cell in run.cells():
            scored = run.means(place.variant)[place.stage][place.task] is not None
            if scored and len(cell or ()) != sizes[place.task]:
                allowed = f"must have {sizes[place.task]} scores: a text of 0 and 1, or a list of numbers from 0 to 1"
                raise misplaced(f"{here}.{place.keys}", allowed)
