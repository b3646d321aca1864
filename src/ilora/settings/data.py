"""Where the tasks come from, and how a row becomes tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ilora.section import Section
from ilora.settings.fields import LEAST_LENGTH, Name, Place, PositiveInt

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
    columns: Columns | None = Field(None, description=f"{_COLUMNS}; None: those of `data.columns`")
    marker: str | None = Field(
        None, min_length=1, description="for rows that are one text: what stands in it before the answer"
    )
    unanswered: Literal["error", "drop"] | None = Field(None, description="as `data.unanswered`; None: that")
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
    template: Literal["none", "alpaca", "chat"] | None = Field(
        None, description="text around its prompts; None: that of `data.template`"
    )
    settings: dict[str, Any] = Field(
        {}, description="dotted settings of training and method that hold from this task on: training.epochs: 1"
    )
    replaces: str | None = Field(
        None,
        description="an earlier task for which this one stands: from here on its rows leave the memory, and it is "
        "scored no longer",
    )
    read_as: str = Field("", description="written for rows that were given from Python: the forms in which they stood")
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
    unanswered: Literal["error", "drop"] = Field(
        "error",
        description="what to do about a conversation that does not end with the assistant's answer; drop: leave out "
        "the turns behind its last answer",
    )
    prompts: Literal["trace-1"] = Field(
        "trace-1",
        description="version of a benchmark's prompts; config.yaml keeps it, although there is only one so far",
    )
    rows_in_memory: PositiveInt = Field(
        50_000,
        description="training rows of a task that are kept in memory, at most; more lie in Arrow files in $ILORA_CACHE "
        "(needs pyarrow, which comes with `datasets`); changes memory, not the result",
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
