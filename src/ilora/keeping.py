"""The section `keep` of a configuration: which files of a run stay when a task is finished."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ilora.section import Section


class KeepConfig(Section):
    """Which files of a run stay. What is dropped is never needed to resume, and but for `moments` never to add."""

    checkpoints: Annotated[int, Field(ge=1, le=2)] = Field(
        1, description="resumable states of a finished run; while it trains, the two newest stay"
    )
    moments: bool = Field(
        False,
        description="AdamW's moments at the end of a task after which the optimizer is made anew; of use only to "
        "`add` a task with training.reset_optimizer=false",
    )
    trajectory: Literal["none", "last", "all"] = Field(
        "last", description="snapshots (training.trajectory) of no task, of the last one, or of all tasks"
    )
    adapters: Literal["last", "answering", "all"] = Field(
        "all",
        description="of earlier tasks none, the answering adapter, or all; the last task's adapters always stay, and "
        "so do those of a method that answers each task with another adapter",
    )
    predictions: Literal["plain", "compressed"] = Field(
        "plain", description="compressed: prediction files as .jsonl.gz, about a seventh of the size"
    )


EVERYTHING = KeepConfig(checkpoints=2, moments=True, trajectory="all", adapters="all", predictions="plain")
