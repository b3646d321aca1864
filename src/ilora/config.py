"""The configuration of a run: pydantic sections, read from YAML, changed by dotted `key=value` overrides.

Every problem of a file is reported in one message, each with its key, what is wrong and the nearest known key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ilora.errors import InputError
from ilora.registry import did_you_mean

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def method_label(name: str) -> str:
    """A method's name as it may stand in a path: `er`, and of `my_module:MyMethod` `my_module-mymethod`."""
    return re.sub(r"[^\w+-]+", "-", name.lower())[-64:].strip("-") or "method"


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class MethodConfig(Section):
    """Settings of one method; each method extends it with its own."""

    name: str
    learning_rate: float | None = Field(None, gt=0, lt=1e30, description="instead of training.learning_rate")


class ModelConfig(Section):
    """The base model, frozen during training."""

    name: str = Field("smollm2-135m", description="alias (`ilora list models`), hub id or local folder")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="of the frozen weights; adapters train in float32"
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="auto: short rows in bfloat16 on a CPU have one of our own (measured faster), else sdpa"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="of the frozen weights, by bitsandbytes; 4bit: NF4, double quantization (QLoRA)"
    )
    liger: bool = Field(
        False, description="norms, rotary positions and gated MLPs by liger-kernel's fused kernels (on a GPU)"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with a hub model")


class AdapterConfig(Section):
    """The LoRA adapter (rank r, scaling alpha / r)."""

    r: Count = 8
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = Field(["q_proj", "v_proj"], min_length=1)
    layers: Count | None = Field(None, description="the last so many layers carry the adapter; None: all")
    keep_below: bool = Field(
        False,
        description="with `layers`: compute the states below once for each row and keep them on disk ($ILORA_CACHE)",
    )

    @model_validator(mode="after")
    def _something_below(self) -> AdapterConfig:
        if self.keep_below and self.layers is None:
            raise ValueError("keep_below: needs `layers`; where all layers carry the adapter, nothing below them stays")
        return self


class TaskConfig(Section):
    """One task of the stream that is not (only) a name in `data.path` or `data.benchmark`."""

    name: str
    path: Path | None = Field(None, description="folder with {train,eval,test}.json or .jsonl")
    train: Path | None = None
    eval: Path | None = None
    test: Path | None = None
    dataset: str | None = Field(None, description="Hugging Face dataset id, or a local folder that `datasets` can load")
    subset: str | None = None
    revision: str | None = None
    splits: dict[Literal["train", "eval", "test"], str] = Field(
        {"train": "train", "eval": "validation", "test": "test"}, description="our split name: the data set's"
    )
    columns: dict[Literal["prompt", "answer", "messages"], str] = Field(
        {}, description="our field name: the file's column"
    )
    metric: str | None = Field(None, description="`ilora list metrics`; None: inferred from the training answers")
    choices: list[str] | None = Field(None, description="allowed answers; None: inferred from the training answers")
    scoring: Literal["generate", "rank"] = Field(
        "generate", description="rank: the likeliest of the choices is the prediction"
    )
    max_new_tokens: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TaskConfig:
        files = self.train is not None or self.eval is not None or self.test is not None
        if (self.path is not None) + files + (self.dataset is not None) > 1:
            raise ValueError("give one source: `path`, or the files `train`/`eval`/`test`, or `dataset`")
        if files and (self.train is None or self.test is None):
            raise ValueError("a task from files needs at least `train` and `test`")
        if not {"train", "test"} <= set(self.splits):
            raise ValueError("`splits` needs at least `train` and `test`")
        return self

    @property
    def placed(self) -> bool:
        """Whether the task says itself where its rows are."""
        return any(place is not None for place in (self.path, self.train, self.dataset))


class LimitConfig(Section):
    """At most so many rows a split (a fixed random subset, the same for every seed); None: all."""

    train: Count | None = None
    eval: Count | None = None
    test: Count | None = None


class DataConfig(Section):
    """Where the tasks come from, and how a row becomes tokens."""

    benchmark: str | None = Field(None, description="`ilora list benchmarks`")
    path: Path | None = Field(
        None, description="folder of task folders: <Task>/{train,eval,test}.json or .jsonl; of a benchmark: its files"
    )
    prompts: Literal["trace-1"] = Field(
        "trace-1",
        description="version of a benchmark's prompts; there is one so far, and a run's config.yaml keeps which it was",
    )
    resplit: bool = Field(False, description="divide a benchmark's rows anew into train, eval and test, 8 : 1 : 1")
    deduplicate: bool = Field(
        False, description="drop repeated rows, and training rows that stand in eval or test (`ilora data check`)"
    )
    tasks: list[TaskConfig] | None = Field(
        None, min_length=1, description="names in stream order, or full task sections; None: all of the source"
    )
    limit: LimitConfig = LimitConfig()
    template: Literal["none", "alpaca", "chat"] = Field(
        "none", description="what is put round the prompt; chat: the model's own"
    )
    separator: str = Field(
        " ",
        description="joins prompt and answer where the prompt does not end in white space (template none)",
    )
    max_length: int = Field(512, ge=16, description="tokens of prompt + answer; the prompt is cut, never the answer")
    cut: Literal["start", "middle", "end"] = Field("middle", description="which part of an over-long prompt is dropped")

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"name": item} if isinstance(item, str) else item for item in value]

    @model_validator(mode="after")
    def _some_source(self) -> DataConfig:
        if self.benchmark is None and self.path is None and not self.tasks:
            raise ValueError("no data: give `benchmark`, `path` or `tasks`")
        return self


class TrainingConfig(Section):
    """The optimizer and its step."""

    epochs: Count = 3
    global_batch_size: Count = Field(16, description="current rows per optimizer step, over all processes")
    micro_batch_size: Count = Field(
        8, description="rows per forward pass and process; changes memory and speed, not the result"
    )
    learning_rate: float = Field(2e-4, gt=0, lt=1e30)
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after warm-up, within each task")
    warmup_ratio: Fraction = Field(0.1, description="share of a task's steps over which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0, description="None: no clipping")
    reset_optimizer: bool = Field(True, description="forget AdamW's moments at the start of a task")
    loss_average: Literal["tokens", "rows"] = Field(
        "tokens", description="rows: every row counts alike, however long its answer"
    )
    checkpoint_every: Count = Field(50, description="optimizer steps between resumable checkpoints (two are kept)")
    trajectory: int = Field(
        4,
        ge=0,
        description="parts of a task between which the adapters are kept in trajectory/, for `connect`; 0: none",
    )


class EvaluationConfig(Section):
    """What is measured after each task."""

    split: Literal["eval", "test"] = "test"
    batch_size: Count = 32
    max_new_tokens: Count | Literal["auto"] = Field(
        "auto", description="auto: 1.5 x the longest training answer + 4, at most 128"
    )
    merge: bool = Field(False, description="merge the adapter into the weights while evaluating (restored bit for bit)")
    zero_shot: bool = Field(True, description="score the base model on every task before training")
    unseen: Literal["none", "next", "all"] = Field(
        "next", description="tasks not yet trained that are scored too; FWT needs `next`"
    )
    perplexity_file: Path | None = Field(
        None, description="a UTF-8 text: its perplexity before the first and after the last task goes into the report"
    )
    perplexity_tokens: Annotated[int, Field(ge=2)] = Field(20_000, description="read at most so many tokens of it")


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
    method: MethodChoice = Field("ilora", description="name, or {name: ..., settings}; `module:Class` for your own")  # type: ignore[assignment]
    contrast: list[MethodChoice] = Field(
        [], description="methods run beside it on the same stream, into RUN/contrast/<method>"
    )
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="optional extra logs beside metrics.jsonl"
    )

    @model_validator(mode="after")
    def _not_merged(self) -> Config:
        if self.evaluation.merge and self.model.quantization != "none":
            raise ValueError("evaluation.merge: quantized weights take no adapter; leave one of the two out")
        return self

    @field_validator("contrast", mode="after")
    @classmethod
    def _distinct(cls, value: list[MethodConfig]) -> list[MethodConfig]:
        names = [method_label(method.name) for method in value]
        if len(set(names)) < len(names):
            raise ValueError("a method stands twice in `contrast`")
        return value

    def dump(self) -> dict[str, Any]:
        """Plain JSON types, every default written out."""
        return self.model_dump(mode="json")


def load_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Read YAML (or take a mapping), apply `a.b=value` overrides, validate. Raises InputError with all problems.

    Relative paths in a file count from the working directory, like paths on the command line.
    """
    if isinstance(source, Mapping):
        place, values = "configuration", dict(source)
    else:
        place, values = str(source), read_yaml(Path(source))
    for override in overrides:
        apply_override(values, override)
    try:
        return Config(**values)
    except ValidationError as error:
        lines = [f"  {line}" for line in problems(error, values, Config)]
        raise InputError(f"{place}: {len(lines)} problem(s)\n" + "\n".join(lines)) from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node.value, str) and key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' stands twice", key_node.start_mark
                )
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A file's mapping. Raises InputError where there is none, or a key stands twice."""
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: expected a mapping of settings at the top level")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in nested settings, in place. Raises InputError for what is not such a thing."""
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise InputError(f"override {override!r}: expected key=value, for example training.epochs=2")
    *parents, leaf = key.strip().split(".")
    section = values
    if parents == ["method"]:
        values.setdefault("method", Config.model_fields["method"].default)
    for parent in parents:
        inner = section.get(parent)
        if not isinstance(inner, Mapping | str | None):
            raise InputError(f"override {override!r}: '{parent}' is {inner!r}, not a section with keys of its own")
        # `method: ilora` and `method.gamma=1` together mean the mapping form.
        section[parent] = {"name": inner} if isinstance(inner, str) else dict(inner or {})
        section = section[parent]
    try:
        section[leaf] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"override {override!r}: {text!r} is not a YAML value") from None


def problems(error: ValidationError, values: Any, model: type[BaseModel]) -> list[str]:
    """A line for each: its key, what is wrong and the nearest known key."""
    lines: list[str] = []
    for item in error.errors():
        where = item["loc"]
        key = ".".join(str(part) for part in where) or "(top level)"
        if item["type"] == "extra_forbidden":
            message = "unknown key" + did_you_mean(str(where[-1]), _keys_beside(where, values, model))
        else:
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] != "missing" and not isinstance(item["input"], Mapping | list):
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
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
