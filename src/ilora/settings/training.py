"""The optimizer, and what is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ilora.section import Section
from ilora.settings.fields import Fraction, Place, PositiveInt
from ilora.stopping import StopWhen


class TrainingConfig(Section):
    """The optimizer and its step."""

    epochs: PositiveInt = 3
    max_steps: PositiveInt | None = Field(None, description="optimizer steps of a task, at most; None: all its epochs")
    stop_when: StopWhen | None = Field(None, description="end a task early, by its validation loss: {patience: 3}")
    global_batch_size: PositiveInt = Field(
        16, description="new rows in an optimizer step, over all processes (replayed rows come on top)"
    )
    micro_batch_size: PositiveInt | Literal["auto"] = Field(
        "auto",
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
    batch_size: PositiveInt = Field(
        32, description="rows answered together; on a GPU more of them, where `model.graphs` is at work"
    )
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
    earlier: Literal["always", "last"] = Field(
        "always",
        description="when the tasks of earlier phases are scored again: after each task, or after the last one only, "
        "which OP and BWT need; forgetting is then the loss since a task was learnt",
    )
    perplexity_file: Place | None = Field(
        None, description="a UTF-8 text whose perplexity before the first and after the last task the report shows"
    )
    perplexity_tokens: Annotated[int, Field(ge=2)] = Field(20_000, description="tokens of it that are read, at most")
