"""What every section of a configuration has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def _takes_truth(annotation: Any) -> bool:
    """Whether a field of this type may be true or false."""
    return annotation in (bool, Any) or annotation is True or any(_takes_truth(part) for part in get_args(annotation))


def _has_sections(annotation: Any) -> bool:
    """Whether a field of this type holds sections, which look at their own values."""
    parts = get_args(annotation)
    return (
        any(map(_has_sections, parts)) if parts else isinstance(annotation, type) and issubclass(annotation, BaseModel)
    )


def _plain_parts(value: Any) -> list[Any]:
    """A value, or those within a list or a mapping."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses `true` and `false` where a number is meant: Python counts them as 1 and 0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        found = [item for item in _plain_parts(value) if isinstance(item, bool)]
        if found and not _takes_truth(annotation) and not _has_sections(annotation):
            raise ValueError(
                f"{str(found[0]).lower()} is neither a number nor a text; "
                "quote a word that YAML takes for it (yes, no, on, off)"
            )
        return value
