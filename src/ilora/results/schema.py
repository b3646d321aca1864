"""The form of results.json as far as its readers rely on it. A file may hold more."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PureWindowsPath
from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ilora.errors import InputError
from ilora.present.numbers import plain

SCHEMA = 1
_WORDS = {
    "missing": "is missing",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a text",
}


def misplaced(place: object, allowed: str) -> PydanticCustomError:
    """An error at a place below the value that a validator looks at. place: keys joined by dots."""
    return PydanticCustomError("misplaced", "{allowed}", {"place": str(place), "allowed": allowed})


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], content: object, source: str, **context: object) -> Model:
    """`content` in the form of `model`.

    source: the file, for messages.
    context: what the validators of `model` need to know.
    Raises InputError with the source, the place (its keys joined by dots) and what is allowed there.
    """
    try:
        return model.model_validate(content, context=context)
    except ValidationError as error:
        raise InputError(f"{source}: {_message(error.errors()[0])}") from None


def _message(error: ErrorDetails) -> str:
    place = [str(key) for key in error["loc"]]
    if error["type"] == "misplaced":
        return f"{'.'.join([*place, error['ctx']['place']])}: {error['ctx']['allowed']}"
    told = error["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must", 1)
    allowed = _WORDS.get(error["type"], told)
    found = "" if error["type"] == "missing" else f", found {plain(repr(error['input']), 80)}"
    return f"{'.'.join(place) or 'the whole content'}: {allowed}{found}"


def known_version(known: int) -> BeforeValidator:
    """For the field that says in which version of its form a file is written."""

    def check(version: object) -> object:
        if version != known or isinstance(version, bool):
            newer = isinstance(version, int) and version > known
            advice = "a newer ilora wrote the file" if newer else "the file is damaged"
            raise ValueError(f"must be {known}, the only version that this ilora reads ({advice})")
        return version

    return BeforeValidator(check)


def _is_file_name(name: str) -> bool:
    # PureWindowsPath knows both kinds of slash.
    return PureWindowsPath(name).name == name and name not in ("", "..")


def _file_name(name: str) -> str:
    if not _is_file_name(name):
        raise ValueError("must be a file name: a path could leave the run folder")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]
Score = Annotated[float, Field(ge=0, le=1)] | None


class Form(BaseModel):
    """A part of a file: nothing is converted, and further keys are left alone."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class TaskEntry(Form):
    """A task. Its label names its files and pairs it between runs; without one its name does."""

    name: str
    label: str | None = None

    @model_validator(mode="after")
    def _names_a_file(self) -> Self:
        if not _is_file_name(self.label or self.name):
            raise ValueError("must have a label that can be a file name: a path could leave the run folder")
        return self


class VariantEntry(Form):
    """The scores of a variant: a row of R for each phase, a column for each task. None: not evaluated."""

    R: list[list[Score]]
    zero_shot: list[Score] | None = None
    se: list[list[float | None]] | None = None
    summary: dict[str, float | None] | None = None


class PhaseSteps(Form):
    """The optimizer steps of a phase. best_step: that of the lowest validation loss, where one was measured."""

    taken: int
    planned: int
    best_step: int | None = None
    validation_loss: float | None = None


class ResultsFile(Form):
    """results.json of a run, finished or not."""

    version: Annotated[int, known_version(SCHEMA)] = Field(alias="schema")
    stream: str | None = None
    tasks: list[TaskEntry] = Field(min_length=1)
    variants: dict[str, VariantEntry]
    answers_with: str
    phases: list[str] | None = None
    phase_steps: dict[str, PhaseSteps] | None = None
    cost: dict[str, object] | None = None
    perplexity: dict[str, object] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.answers_with not in self.variants:
            raise misplaced("answers_with", f"must name one of the variants, {_listed(self.variants)}")
        count = len(self.tasks)
        for name, variant in self.variants.items():
            if any(len(row) != count for row in variant.R):
                raise misplaced(f"variants.{name}.R", f"must have {count} scores in each row, one for each task")
            if variant.zero_shot is not None and len(variant.zero_shot) != count:
                raise misplaced(f"variants.{name}.zero_shot", f"must be null or have {count} scores")
            if variant.se and [len(row) for row in variant.se] != [len(row) for row in variant.R]:
                raise misplaced(f"variants.{name}.se", "must have the form of R")
        return self


def _listed(names: Iterable[str]) -> str:
    return plain(", ".join(names), 200)
