"""The sections of a run's configuration, and what their values may be. `config.py` puts them together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]


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

    @property
    def memory_capacity(self) -> int:
        """Rows that the replay memory holds at most: a method's setting `memory_size`, 0 where it has none."""
        return int(getattr(self, "memory_size", 0))


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


_PEFT_NAMES = ("lora_alpha", "lora_dropout")


def _of_lora_config(config: Any) -> dict[str, Any]:
    """The settings of a `peft.LoraConfig`. Raises ValueError for one that is no setting here."""
    taken = ("r", *_PEFT_NAMES, "target_modules")
    describing = ("task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
    values, plain = config.to_dict(), type(config)().to_dict()
    changed = [key for key, item in values.items() if item != plain.get(key) and key not in (*taken, *describing)]
    if changed:
        raise ValueError(f"these settings of {type(config).__name__} are not supported: {', '.join(sorted(changed))}")
    modules = values["target_modules"]
    found = {key: values[key] for key in taken if key != "target_modules"}
    if modules is None:
        return found
    return found | {"target_modules": modules if isinstance(modules, str) else sorted(modules)}


class AdapterConfig(Section):
    """The LoRA adapter (rank r, scaling alpha / r)."""

    r: PositiveInt = 8
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = Field(["q_proj", "v_proj"], min_length=1)
    layers: PositiveInt | None = Field(None, description="the last so many layers carry the adapter; None: all")
    keep_below: bool = Field(
        False,
        description="with `layers`: compute the states below once for each row and keep them on disk ($ILORA_CACHE)",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_peft_writes_it(cls, value: Any) -> Any:
        """Takes a `peft.LoraConfig`, and PEFT's names `lora_alpha` and `lora_dropout`."""
        values = _of_lora_config(value) if hasattr(value, "peft_type") else value
        if not isinstance(values, Mapping):
            return values
        twice = [name for name in ("alpha", "dropout") if {name, f"lora_{name}"} <= values.keys()]
        if twice:
            raise ValueError(f"{twice[0]} and lora_{twice[0]} are the same setting; give one of them")
        return {str(key).removeprefix("lora_") if key in _PEFT_NAMES else key: item for key, item in values.items()}

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
    max_new_tokens: PositiveInt | None = None

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

    train: PositiveInt | None = None
    eval: PositiveInt | None = None
    test: PositiveInt | None = None


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

    epochs: PositiveInt = 3
    global_batch_size: PositiveInt = Field(16, description="current rows per optimizer step, over all processes")
    micro_batch_size: PositiveInt = Field(
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
    checkpoint_every: PositiveInt = Field(
        50, description="optimizer steps between resumable checkpoints (two are kept)"
    )
    trajectory: int = Field(
        4,
        ge=0,
        description="parts of a task between which the adapters are kept in trajectory/, for `connect`; 0: none",
    )


class EvaluationConfig(Section):
    """What is measured after each task."""

    split: Literal["eval", "test"] = "test"
    batch_size: PositiveInt = 32
    max_new_tokens: PositiveInt | Literal["auto"] = Field(
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
