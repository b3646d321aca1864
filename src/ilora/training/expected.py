"""Before a run's first step: the memory and the time that it is expected to take, said and noted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ilora.config import Config
from ilora.data.examples import Example
from ilora.data.stored import Stored, some
from ilora.environment import note_expected
from ilora.errors import NoRoomError
from ilora.methods.base import Method
from ilora.model.dtype import dtype_of
from ilora.model.engine import Engine
from ilora.model.operations import operations, product_rate
from ilora.model.sizes import sizes_of
from ilora.present.numbers import duration
from ilora.progress import Display
from ilora.training.encoded import EncodedStream
from ilora.training.loop import Plan
from ilora.training.processes import on_main
from ilora.training.room import settle, step_rows

# Of a step's time, what its matrix products take at the rate that is measured here. CPU: a step of 8 rows with
# SmolLM2-135M, but 0.2 to 0.7 by dtype and length. GPU: a 7B model on an H100. Both in docs/performance.md.
SHARES = {"cpu": 0.44, "cuda": 0.68}
COUNTED = 1_000  # rows of a task whose tokens are counted, where not all are in memory with them
_ROWS = 1_024  # of the measured product, at most: more are no faster


@dataclass(frozen=True)
class Time:
    """Of a run's optimizer steps.

    operations: of all steps, over all processes. rate: operations a second of a process's matrix products.
    share: of the time, what these take. launched: passes are so small that launching them may take longer.
    """

    steps: int
    operations: float
    processes: int
    rate: float
    share: float
    launched: bool

    @property
    def seconds(self) -> float:
        """Of all steps; the processes divide the rows."""
        return self.operations / self.processes / self.rate / self.share

    @property
    def record(self) -> dict[str, Any]:
        """For environment.json."""
        return {
            "predicted_train_seconds": round(self.seconds, 3),
            "steps": self.steps,
            "products_per_second": round(self.rate),
            "share_of_products": self.share,
        }

    def line(self) -> str:
        """What is said before the first step."""
        how = "at least" if self.launched else "about"
        return (
            f"time: {how} {duration(self.seconds)} of training expected ({self.steps} steps of "
            f"{self.seconds / max(self.steps, 1):.2g} s, if {self.share:.0%} of it is matrix products)"
        )


def say_expected(
    method: Method[Any], config: Config, stream: EncodedStream, plans: Sequence[Plan], path: Path, display: Display
) -> None:
    """Choose what is `auto`, say what memory and time are expected, and note it in environment.json.

    plans: of the stream's phases. Raises NoRoomError where the process has a part of a GPU, and needs more: it may have
    more later. With all of a GPU the steps are tried.
    """
    room = settle(method, config, stream)
    lines, found = room.lines(), {"memory": room.record}
    if method.engine.seat is None:  # else steps wait for those of other runs
        expected = expected_time(method, config, stream, plans, rate=_rate(method.engine, config, room.part.places))
        lines.append(expected.line())
        found["expected_time"] = expected.record
    for line in lines:
        display.say(f"{config.method.name}: {line}")
    on_main(method.engine.accelerator, lambda: note_expected(path, found))
    if room.share < 1 and not room.suffices:
        raise NoRoomError(f"{lines[0]}; it is not begun with so little, {room.share:.0%} of the GPU's memory")


def expected_time(
    method: Method[Any], config: Config, stream: EncodedStream, plans: Sequence[Plan], *, rate: float
) -> Time:
    """How long the steps of these plans take, one for each phase.

    Counted are the rows of every step, replayed and pseudo rows among them. rate: operations a second of products.
    """
    engine = method.engine
    sizes = sizes_of(engine.core, element=1, dropout=False)  # neither of the two changes how much is computed
    if engine.below is not None:  # the states under the adapter are there
        sizes = replace(sizes, layers=sizes.layers[sizes.first :], first=0)
    trained = sum(parameter.numel() for parameter in method.trainable)
    lengths = {name: _Lengths.of(name, rows, stream.encoder.vectors) for name, rows in stream.train.items()}
    total, before = 0.0, list[_Lengths]()
    for phase, plan in zip(stream.phases, plans, strict=True):
        now = [lengths[task.name] for task in phase.tasks]
        settings = config.at(phase.index)
        beside = step_rows(settings, phase.index) / settings.training.global_batch_size - 1  # for each row of the task
        rows = plan.steps * plan.rows / max(plan.steps_per_epoch, 1)
        for count, of in ((rows, now), (rows * beside, before or now)):
            row = _Lengths.together(of)
            each = operations(
                sizes, trained=trained, tokens=row.tokens, answer=row.answer, checkpointing=engine.recomputes
            )
            total += count * row.tokens * each
        before += now
    return Time(
        steps=sum(plan.steps for plan in plans),
        operations=total,
        processes=engine.accelerator.num_processes,
        rate=rate,
        share=SHARES.get(engine.device.type, SHARES["cpu"]),
        launched=engine.graphs is not None,
    )


@dataclass(frozen=True)
class _Lengths:
    """Of rows, and on average: tokens of a row, with a soft prompt before it, and of its answer."""

    rows: int
    tokens: float
    answer: float

    @staticmethod
    def of(name: str, rows: Sequence[Example], vectors: int) -> _Lengths:
        """Of a task's rows; of those in a file, a sample is read."""
        read = some(rows, COUNTED, key=f"expected/{name}") if isinstance(rows, Stored) else rows
        if not read:
            return _Lengths(0, 0.0, 0.0)
        tokens = statistics.fmean(map(len, read)) + vectors
        return _Lengths(len(rows), tokens, statistics.fmean(len(row.answer) for row in read))

    @staticmethod
    def together(parts: Sequence[_Lengths]) -> _Lengths:
        """Of the rows of all parts."""
        rows = sum(part.rows for part in parts)
        tokens, answer = (
            sum(part.rows * getattr(part, name) for part in parts) / max(rows, 1) for name in ("tokens", "answer")
        )
        return _Lengths(rows, tokens, answer)


def _rate(engine: Engine, config: Config, places: int) -> float:
    """Of the slowest process: at a step's end they wait for each other. places: tokens of a micro-batch."""
    text: Any = engine.core.config.get_text_config()  # type: ignore[operator, union-attr]
    hidden = text.hidden_size
    found = product_rate(
        engine.device,
        dtype_of(config.model),
        rows=min(places, _ROWS),
        inner=hidden,
        outer=getattr(text, "intermediate_size", None) or 4 * hidden,
    )
    return float(min(engine.gather([found])))
