"""The sections of a run's configuration, and the values that are allowed in them; config.py puts them together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ilora.files import expanded
from ilora.section import Section
from ilora.stopping import StopWhen

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
LEAST_LENGTH = 16  # tokens of a row
Place = Annotated[Path, AfterValidator(lambda path: Path(expanded(str(path))))]  # `~` and `$HOME` are written out
Name = Annotated[str, AfterValidator(expanded)]  # of a hub, or a place


def method_label(name: str) -> str:
    """A method's name in paths: `er` stays `er`, `my_module:MyMethod` becomes `my_module-mymethod`."""
    return re.sub(r"[^\w+-]+", "-", name.lower())[-64:].strip("-") or "method"


class MethodConfig(Section):
    """Settings that every method has; a method adds its own in a subclass."""

    name: str
    learning_rate: float | None = Field(None, gt=0, lt=1e30, description="instead of training.learning_rate")

    @property
    def memory_capacity(self) -> int:
        """How many rows the replay memory holds: the setting `memory_size`, or 0 for a method without one."""
        return int(getattr(self, "memory_size", 0))

    def prompt_tokens(self, tasks: int) -> int:
        """How many vectors the method puts before a row, at most, in a stream of `tasks` tasks."""
        del tasks
        return 0


class ModelConfig(Section):
    """The base model, which stays frozen."""

    name: Name = Field("smollm2-135m", description="an alias (`ilora list models`), a hub id or a local folder")
    revision: str | None = Field(None, description="branch, tag or commit of a model on the hub")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="type of the frozen weights; adapters are trained in float32"
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="auto: our own for short bfloat16 rows on a CPU, where it is faster; sdpa elsewhere"
    )
    dropout: bool = Field(False, description="keep the base model's own dropout in training (GPT-2, OPT and others)")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="of the frozen weights, with bitsandbytes; 4bit: NF4 with double quantization (QLoRA)"
    )
    kernels: Literal["auto", "plain", "compiled"] = Field(
        "auto",
        description="of the decoder's layers; compiled: fused by torch.compile (auto: on a GPU, from 1B parameters)",
    )
    graphs: Literal["auto", "off"] = Field(
        "auto", description="auto: on a GPU, record the passes of a model under 1B parameters as CUDA graphs"
    )
    liger: bool = Field(False, description="use liger-kernel's fused norms, rotary positions and gated MLPs (on a GPU)")
    trust_remote_code: bool = Field(False, description="run the Python code that comes with a model on the hub")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


_PEFT_NAMES = ("lora_alpha", "lora_dropout")
_MORE_OF_PEFT = (
    "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform",
    "init_lora_weights",
)  # fmt: skip


_SHARED_BASE = "changes the base weights, which every adapter of a run shares and which stay frozen"
_REFUSED_INITS = ("pissa", "olora", "loftq", "eva", "corda", "mica", "lora_ga")  # or need data before training
_REFUSED_SETTINGS = {
    "trainable_token_indices": "trains rows of the embedding, which stays frozen here",
    "modules_to_save": "trains whole layers, which stay frozen here",
    "bias": "trains biases, which stay frozen here",
    "lora_bias": "is a bias, which merging and averaging adapters do not know",
}


def _of_lora_config(config: Any) -> dict[str, Any]:
    """The settings of a `peft.LoraConfig`. Raises ValueError for one that is no setting here."""
    taken = ("r", *_PEFT_NAMES, "target_modules", *_MORE_OF_PEFT)
    describing = ("task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
    values, plain = config.to_dict(), type(config)().to_dict()
    changed = [key for key, item in values.items() if item != plain.get(key) and key not in (*taken, *describing)]
    if changed:
        raise ValueError(f"these settings of {type(config).__name__} are not supported: {', '.join(sorted(changed))}")
    found = {key: sorted(item) if isinstance(item, set) else item for key, item in values.items() if key in taken}
    return {key: item for key, item in found.items() if item is not None}


class AdapterConfig(Section):
    """The LoRA adapter (rank r, scaling alpha / r), in the terms of PEFT's LoraConfig."""

    r: PositiveInt = 8
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["auto", "all-linear"] = Field(
        "auto", description="names of linear layers; auto: the attention's query and value projections"
    )
    layers: PositiveInt | None = Field(
        None, description="number of layers with the adapter, counted from the last one; None: all"
    )
    layers_to_transform: Annotated[list[int], Field(min_length=1)] | None = Field(
        None, description="numbers of the layers with the adapter; None: all, or those of `layers`"
    )
    exclude_modules: list[str] = Field([], description="names of layers that get no adapter")
    use_rslora: bool = Field(False, description="scaling alpha / √r (rank-stabilised LoRA)")
    use_dora: bool = Field(False, description="a trained magnitude for each output beside the update (DoRA)")
    rank_pattern: dict[str, PositiveInt] = Field({}, description="layer names or patterns: another rank there")
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="layer names or patterns: another alpha there"
    )
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = Field(
        True, description="how A and B begin; true: A as a linear layer (Kaiming), B zero"
    )
    start_from: Place | None = Field(
        None, description="a PEFT LoRA folder of any trainer, with whose weights the first task begins"
    )
    keep_below: bool = Field(
        False,
        description="with `layers`: compute what is below the adapter once for each row, and keep it in $ILORA_CACHE",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_peft_writes_it(cls, value: Any) -> Any:
        """Takes a `peft.LoraConfig`, and PEFT's names `lora_alpha` and `lora_dropout`."""
        values = _of_lora_config(value) if hasattr(value, "peft_type") else value
        if not isinstance(values, Mapping):
            return values
        for name in _REFUSED_SETTINGS.keys() & values.keys():
            raise ValueError(f"{name} is not supported: it {_REFUSED_SETTINGS[name]}")
        init = values.get("init_lora_weights")
        if isinstance(init, str) and init.startswith(_REFUSED_INITS):
            raise ValueError(f"init_lora_weights: {init} is not supported: it {_SHARED_BASE}")
        targets = values.get("target_modules")
        if isinstance(targets, str) and targets not in ("auto", "all-linear"):
            values = {**values, "target_modules": [targets]}
        twice = [name for name in ("alpha", "dropout") if {name, f"lora_{name}"} <= values.keys()]
        if twice:
            raise ValueError(f"{twice[0]} and lora_{twice[0]} are the same setting; give one of them")
        return {str(key).removeprefix("lora_") if key in _PEFT_NAMES else key: item for key, item in values.items()}

    @model_validator(mode="after")
    def _something_below(self) -> AdapterConfig:
        if self.keep_below and self.layers is None:
            raise ValueError("keep_below: needs `layers`; where all layers carry the adapter, nothing below them stays")
        if self.layers is not None and self.layers_to_transform is not None:
            raise ValueError("layers and layers_to_transform say the same thing; give one of them")
        return self


Columns = dict[Literal["prompt", "answer", "messages"], str]
_COLUMNS = (
    "our name of a field: the file's column; '{title} {text}' puts columns together (default: known forms and usual "
    "names)"
)


class TaskConfig(Section):
    """A task of the stream: where its rows are, and how its answers are scored."""

    name: str
    path: Place | None = Field(
        None,
        description="a file (.json, .jsonl, .csv, .tsv, .xlsx or .parquet), or a folder with train, eval and test, or "
        "with files that are read as one",
    )
    train: Place | None = None
    eval: Place | None = None
    test: Place | None = None
    dataset: Name | None = Field(
        None, description="Hugging Face dataset id, or a local folder that `datasets` can load"
    )
    subset: str | None = None
    revision: str | None = None
    splits: dict[Literal["train", "eval", "test"], str] = Field(
        {"train": "train", "eval": "validation", "test": "test"},
        description="our name of a split: the data set's name of it",
    )
    columns: Columns = Field({}, description=_COLUMNS)
    marker: str | None = Field(
        None, min_length=1, description="for rows that are one text: what stands in it before the answer"
    )
    metric: str | None = Field(
        None, description="a name from `ilora list metrics`; None: accuracy with `choices`, else inferred"
    )
    choices: list[str] | None = Field(None, description="allowed answers; None: inferred from the training answers")
    scoring: Literal["generate", "rank"] = Field(
        "generate", description="rank: the prediction is the choice with the highest likelihood"
    )
    max_new_tokens: PositiveInt | None = None
    frame: tuple[str, str] = Field(
        ("", ""), description="text before and after the subject in every prompt, which the metric sari leaves out"
    )
    settings: dict[str, Any] = Field(
        {}, description="dotted settings of training and method that hold from this task on: training.epochs: 1"
    )
    replaces: str | None = Field(
        None,
        description="an earlier task for which this one stands: from here on its rows leave the memory, and it is "
        "scored no longer",
    )
    forgotten: str = Field(
        "", description="written by `ilora forget`: the day on which its rows were deleted; it is scored no longer"
    )

    @model_validator(mode="after")
    def _one_source(self) -> TaskConfig:
        files = self.train is not None or self.eval is not None or self.test is not None
        if (self.path is not None) + files + (self.dataset is not None) > 1:
            raise ValueError("give one source: `path`, or the files `train`/`eval`/`test`, or `dataset`")
        if files and self.train is None:
            raise ValueError("a task from files needs at least `train`")
        if "train" not in self.splits:
            raise ValueError("`splits` needs at least `train`")
        return self

    @property
    def placed(self) -> bool:
        """Whether the section says where the rows are, so that `data.path` need not."""
        return any(place is not None for place in (self.path, self.train, self.dataset))


class LimitConfig(Section):
    """The largest number of rows in each split; the same random subset for every seed. None: all rows."""

    train: PositiveInt | None = None
    eval: PositiveInt | None = None
    test: PositiveInt | None = None


class SplitConfig(Section):
    """What is taken from train for a task without a test split: by a hash of the prompt, so no row changes sides."""

    test: float = Field(0.1, gt=0, lt=0.9, description="share of the training rows that are held out for testing")
    eval: float | None = Field(
        None, ge=0, lt=0.9, description="share held out for tuning; None: as `test`, but 0 beside a test split"
    )
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _leaves_some(self) -> SplitConfig:
        if self.test + (self.test if self.eval is None else self.eval) >= 1:
            raise ValueError("`test` and `eval` together leave nothing to train on")
        return self


class DataConfig(Section):
    """Where the tasks come from, and how a row becomes tokens."""

    benchmark: str | None = Field(None, description="a name from `ilora list benchmarks`")
    path: Place | None = Field(
        None,
        description="a file, a task folder, or a folder of those, one for each task; or a benchmark's files",
    )
    columns: Columns = Field({}, description=_COLUMNS)
    marker: str | None = Field(None, min_length=1, description="as of a task, for all tasks that have none")
    start_rows: Place | None = Field(
        None, description="rows of what was learnt before the first task (a file or folder): they enter the memory"
    )
    split: SplitConfig = SplitConfig()
    train_on: Literal["last", "assistant"] = Field(
        "last",
        description="of a conversation: its last answer, or every turn of the assistant (each as a training row)",
    )
    prompts: Literal["trace-1"] = Field(
        "trace-1",
        description="version of a benchmark's prompts; config.yaml keeps it, although there is only one so far",
    )
    resplit: bool = Field(False, description="split a benchmark's rows again into train, eval and test, 8 : 1 : 1")
    deduplicate: bool = Field(
        False,
        description="drop repeated rows, and training rows that are also in eval or test (see `ilora data check`)",
    )
    tasks: list[TaskConfig] | None = Field(
        None,
        min_length=1,
        description="names in the order of the stream, or whole sections; None: all tasks of the source",
    )
    limit: LimitConfig = LimitConfig()
    template: Literal["auto", "none", "alpaca", "chat"] = Field(
        "auto",
        description="text around the prompt; chat: the model's own chat template; auto: chat where the model has one, "
        "but none for a benchmark, whose prompts are defined",
    )
    separator: str = Field(
        " ",
        description="put between prompt and answer, unless the prompt ends in white space (with template none)",
    )
    max_length: int = Field(
        512, ge=LEAST_LENGTH, description="tokens of prompt and answer together; a long prompt is cut, an answer never"
    )
    cut: Literal["start", "middle", "end"] = Field("middle", description="the part of a long prompt that is dropped")
    too_long: Literal["error", "drop"] = Field(
        "error", description="what to do about a row whose answer alone is longer than max_length"
    )

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
        if self.benchmark is not None and (self.columns or self.marker):
            raise ValueError("columns, marker: a benchmark knows its own; give them to a task with a place of its own")
        return self


class TrainingConfig(Section):
    """The optimizer and its step."""

    epochs: PositiveInt = 3
    max_steps: PositiveInt | None = Field(None, description="optimizer steps of a task, at most; None: all its epochs")
    stop_when: StopWhen | None = Field(None, description="end a task early, by its validation loss: {patience: 3}")
    global_batch_size: PositiveInt = Field(
        16, description="new rows in an optimizer step, over all processes (replayed rows come on top)"
    )
    micro_batch_size: PositiveInt | Literal["auto"] = Field(
        8,
        description="rows in a forward pass of one process, halved where memory ends; auto: by tokens, on a GPU as "
        "many as fit; changes memory and speed, not the result (but for dropout's masks)",
    )
    learning_rate: float = Field(2e-4, gt=0, lt=1e30)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate after warm-up, within each task"
    )
    warmup_ratio: Fraction = Field(0.1, description="share of a task's steps in which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0, description="None: no clipping")
    reset_optimizer: bool = Field(True, description="clear AdamW's moments at the start of each task")
    loss_average: Literal["tokens", "rows"] = Field(
        "tokens", description="rows: each row has the same weight, whatever the length of its answer"
    )
    checkpoint_every: PositiveInt = Field(
        50, description="optimizer steps between checkpoints; the two newest are kept"
    )
    trajectory: int = Field(
        4,
        ge=0,
        description="save the adapters between so many parts of each task, in trajectory/ (for `connect`); 0: never",
    )

    log_every: PositiveInt | None = Field(
        None, description="optimizer steps between lines on the screen; metrics.jsonl has every step"
    )

    @property
    def rows_at_once(self) -> int:
        """The micro-batch's rows, where their number is asked for."""
        return 8 if self.micro_batch_size == "auto" else self.micro_batch_size


class EvaluationConfig(Section):
    """What is measured after each task."""

    split: Literal["eval", "test"] = "test"
    batch_size: PositiveInt = 32
    max_new_tokens: PositiveInt | Literal["auto"] = Field(
        "auto", description="auto: 1.5 times the longest training answer, plus 4, at most 128"
    )
    merge: bool = Field(
        False, description="merge the adapter into the weights during evaluation (they are restored bit for bit)"
    )
    zero_shot: bool = Field(True, description="score the base model on every task before training")
    unseen: Literal["none", "next", "all"] = Field(
        "next", description="tasks that are scored before they are trained; FWT needs `next`"
    )
    perplexity_file: Place | None = Field(
        None, description="a UTF-8 text whose perplexity before the first and after the last task the report shows"
    )
    perplexity_tokens: Annotated[int, Field(ge=2)] = Field(20_000, description="tokens of it that are read, at most")
