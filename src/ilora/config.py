"""The configuration of a run: pydantic sections, read from YAML, changed by dotted `key=value` overrides.

Every problem of a file is reported in one message, each with its key, what is wrong and the nearest known key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from ilora.changes import changed, for_method, standing, why_not
from ilora.data.tables import SUFFIXES
from ilora.errors import InputError
from ilora.files import from_yaml
from ilora.keeping import KeepConfig
from ilora.overrides import apply_overrides
from ilora.places import anchored
from ilora.registry import did_you_mean
from ilora.section import Section
from ilora.settings import (
    DEFAULT_METHOD,
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    TaskConfig,
    TrainingConfig,
    method_label,
)
from ilora.words import advice, translated


def _method(value: Any) -> Any:
    """`ilora` or `{name: ilora, ...}` to that method's own settings section."""
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError("give a method's name, or a mapping with `name` and the method's settings")
    return _method_settings(value["name"]).model_validate(dict(value))


def _method_settings(name: str) -> type[MethodConfig]:
    from ilora.methods import method_class

    try:
        return method_class(name).Config
    except InputError as error:
        raise ValueError(str(error)) from error  # so that pydantic reports it with the other problems


MethodChoice = Annotated[
    SerializeAsAny[MethodConfig],
    BeforeValidator(_method),
    WithJsonSchema({"type": ["string", "object"], "required": ["name"]}),
]


class Config(Section):
    """One run: a model, a stream of tasks, a method."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="default output folder: runs/<name>"
    )
    seed: int = Field(0, ge=0, lt=2**63)
    stream: Literal["sequential", "joint"] = Field(
        "sequential", description="joint: all tasks mixed in one training (upper bound)"
    )
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig
    method: MethodChoice = Field(
        DEFAULT_METHOD, description="a name, or {name: ..., settings}; `module:Class` for a method of your own"
    )  # type: ignore[assignment]
    contrast: list[MethodChoice] = Field(
        [], description="further methods to run on the same stream, into RUN/contrast/<method>"
    )
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    keep: KeepConfig = KeepConfig()
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="where to log as well as in metrics.jsonl"
    )

    @model_validator(mode="after")
    def _not_merged(self) -> Config:
        if self.evaluation.merge and self.model.quantization != "none":
            raise ValueError("evaluation.merge: quantized weights take no adapter; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _adapters_that_add_up(self) -> Config:
        from ilora.methods import method_class

        for method in (self.method, *self.contrast):
            for name in method_class(method.name).without:
                if getattr(self.adapter, name):
                    raise ValueError(f"adapter.{name}: the method {method.name} does not work with it{why_not(name)}")
        if self.adapter.use_dora and self.evaluation.merge:
            raise ValueError("evaluation.merge: a DoRA adapter cannot be added into the weights and taken out again")
        return self

    @model_validator(mode="after")
    def _rows_are_remembered(self) -> Config:
        if self.data.start_rows is not None:
            if not hasattr(self.method, "memory_size"):
                raise ValueError(f"data.start_rows: the method {self.method.name} has no memory for them")
            if self.adapter.keep_below:
                raise ValueError("data.start_rows: does not work with adapter.keep_below; leave one of the two out")
        return self

    @field_validator("contrast", mode="after")
    @classmethod
    def _distinct(cls, value: list[MethodConfig]) -> list[MethodConfig]:
        names = [method_label(method.name) for method in value]
        if len(set(names)) < len(names):
            raise ValueError("a method stands twice in `contrast`")
        return value

    @model_validator(mode="after")
    def _changes_hold(self) -> Config:
        tasks = self.data.tasks or []
        if self.stream == "joint" and any(task.settings or task.replaces for task in tasks):
            raise ValueError("data.tasks: a joint stream has no order; none can have `settings` or `replaces`")
        changed(self.training, self.method, tasks)
        standing(tasks)
        return self

    def at(self, phase: int) -> Config:
        """The configuration in phase `phase` (they count from 1): with the settings of the tasks up to it."""
        training, method = changed(self.training, self.method, (self.data.tasks or [])[:phase])
        return self.model_copy(update={"training": training, "method": method})

    def beside(self, method: MethodConfig) -> Config:
        """The configuration of a contrast run: another method on the same stream, and the changes that it knows."""
        tasks = [
            task.model_copy(update={"settings": for_method(task.settings, method)}) for task in self.data.tasks or []
        ]
        rows = self.data.start_rows if hasattr(method, "memory_size") else None
        data = self.data.model_copy(update={"tasks": tasks or None, "start_rows": rows})
        return self.model_copy(update={"method": method, "contrast": [], "data": data})

    def dump(self) -> dict[str, Any]:
        """Plain JSON types, every default written out."""
        return self.model_dump(mode="json")


def load_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Read YAML (or take a mapping), apply `a.b=value` overrides, validate. Raises InputError with all problems.

    A file or folder of rows is the configuration of a run on them, with every other setting at its default.

    Relative paths in a file count from the file's folder; those of overrides and of a mapping from the working
    directory.
    """
    place, values = _values(source, overrides)
    try:
        return Config(**values)
    except ValidationError as error:
        raise refusal(place, problems(error, values, Config)) from None


def refuse_early(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Any:
    """What `load_config` says of all but the methods' own settings, which takes no import of torch.

    Returns the sections without the methods. Raises InputError with all problems outside of `method` and `contrast`.
    """
    place, values = _values(source, overrides)
    try:
        return _beside_methods()(**{key: value for key, value in values.items() if key not in METHODS_KEYS})
    except ValidationError as error:
        note = "(the methods' own settings are checked after these)" if values.keys() & set(METHODS_KEYS) else ""
        raise refusal(place, problems(error, values, Config), note=note) from None


METHODS_KEYS = ("method", "contrast")


@cache
def _beside_methods() -> type[Section]:
    """A configuration without its methods: their settings stand in files that need torch."""
    fields = {name: (field.annotation, field) for name, field in Config.model_fields.items()}
    chosen: dict[str, Any] = {name: field for name, field in fields.items() if name not in METHODS_KEYS}
    return create_model("BesideMethods", __base__=Section, **chosen)


def refusal(place: str | Path, lines: list[str], *, note: str = "") -> InputError:
    """All problems of a file as one message."""
    return InputError("\n  ".join([f"{place}: {len(lines)} problem(s)", *lines, *filter(None, [note])]))


def _values(source: str | Path | Mapping[str, Any], overrides: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """What to call a source of settings, and the settings under our names, with overrides and places seen from here."""
    if isinstance(source, Mapping):
        values = dict(source)
    elif is_data(Path(source)):
        values = {"name": _run_name(Path(source)), "data": {"path": str(source)}}
    else:
        values = read_yaml(Path(source))
    if not all(isinstance(key, str) for key in values):
        raise InputError("configuration: expected a mapping of settings by name")
    values, typed = translated(values), list(overrides)
    apply_overrides(values, typed)
    if isinstance(source, Mapping):
        return "configuration", values
    if is_data(Path(source)):
        return str(source), values
    return str(source), anchored(values, Path(source), [override.partition("=")[0].strip() for override in typed])


def is_data(path: Path) -> bool:
    """Whether a path names rows and not a configuration."""
    return path.is_dir() or path.suffix.lower() in SUFFIXES


def _run_name(path: Path) -> str:
    """A run's name after the place of its rows, in the characters that are allowed."""
    name = path.resolve().name if path.is_dir() else path.resolve().stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:64] or "run"


def read_yaml(path: Path) -> dict[str, Any]:
    """A file's mapping. Raises InputError where there is none, or a key stands twice."""
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file")
    try:
        values = from_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: expected a mapping of settings at the top level")
    return values


def problems(error: ValidationError, values: Any, model: type[BaseModel]) -> list[str]:
    """A line for each: its key, what is wrong and the nearest known key."""
    lines: list[str] = []
    for item in error.errors():
        where = item["loc"]
        key = ".".join(str(part) for part in where) or "(top level)"
        if item["type"] == "extra_forbidden":
            near = did_you_mean(str(where[-1]), _keys_beside(where, values, model))
            message = f"unknown key{advice(str(where[-1]), model) or near}"
        elif item["type"] in ("dict_type", "model_type", "model_attributes_type"):
            message = f"expected a mapping with keys of its own, found {item['input']!r}"
        else:
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] != "missing" and type(item["input"]) in (str, int, float, type(None)):
                message += f" (got {item['input']!r})"
        lines.append(f"{key}: {message}")
    return list(dict.fromkeys(lines))


def _keys_beside(where: tuple[int | str, ...], values: Any, model: type[BaseModel]) -> list[str]:
    """The known keys of the section in which an unknown one stands."""
    for depth, part in enumerate(where[:-1]):
        if part == "method" or (part == "contrast" and isinstance(where[depth + 1], int)):
            chosen = values.get("method") if part == "method" else values["contrast"][where[depth + 1]]
            model = _method_settings(chosen["name"])
            break
        field = model.model_fields.get(str(part))
        inner = TaskConfig if part == "tasks" else field.annotation if field else None
        for kind in (inner, *get_args(inner)):  # a section, or one that may be left out
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
    return list(model.model_fields)
