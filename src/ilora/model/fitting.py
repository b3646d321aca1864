"""Where memory ends: the same computation in smaller parts, or with its activations computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from ilora.data.examples import Example
from ilora.errors import NoRoomError
from ilora.model.engine import Engine
from ilora.model.gradients import TooManyTogether

R = TypeVar("R")
T = TypeVar("T")


def fitted(engine: Engine, rows: Sequence[Example], compute: Callable[[], T], *, size: int | None = None) -> T:
    """What `compute` returns, which takes these rows in the engine's micro-batches; begun again where memory ends.

    The micro-batches are then half as large, from now on; where they are single rows, activations are computed again
    (`recompute`). rows: of this process. compute: begins anew each time, and exchanges nothing with other processes.
    size: rows in a micro-batch, where `compute` says so itself: they are not halved.
    Raises NoRoomError where nothing is left to make smaller.
    """
    while True:
        counted = dict(engine.passes)
        try:
            return compute()
        except torch.OutOfMemoryError as error:
            reason, again = _reason(error), isinstance(error, TooManyTogether)
        # Outside of `except`, which would hold the failed pass's tensors.
        engine.passes.update(counted)  # rows count once
        _let_go(engine)
        halved = again or (size is None and halve(engine, rows))
        if not halved and not (torch.is_grad_enabled() and recompute(engine)):
            hints = [] if engine.recomputes else ["model.gradient_checkpointing: true"]
            hints += ["a smaller data.max_length", "or model.quantization: 4bit"]
            raise NoRoomError(
                f"out of memory with single rows of up to {max(map(len, rows))} tokens ({reason}); "
                f"set {', '.join(hints)}"
            )


def in_batches(
    engine: Engine, rows: Sequence[R], compute: Callable[[Sequence[R]], T], *, size: int, what: str
) -> Iterator[tuple[Sequence[R], T]]:
    """(part, compute(part)) of the rows in their order, `size` at once; half as many from where memory ends on.

    what: for messages, whose rows they are. Raises NoRoomError where not even one row fits.
    """
    start = 0
    while start < len(rows):
        part, reason = rows[start : start + size], None
        try:
            made = compute(part)
        except torch.OutOfMemoryError as error:
            reason = _reason(error)
        if reason is None:
            yield part, made
            start += len(part)
            continue
        _let_go(engine)
        if len(part) == 1:
            raise NoRoomError(
                f"{what}: out of memory with a single row ({reason}); a smaller data.max_length or "
                "model.quantization: 4bit helps"
            )
        size = len(part) // 2


@contextmanager
def memory_suffices() -> Iterator[None]:
    """Raises NoRoomError where memory ends inside the block in what has no parts, such as loading."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NoRoomError(f"out of memory ({_reason(error)}); model.quantization: 4bit needs less") from error


def halve(engine: Engine, rows: Sequence[Example]) -> bool:
    """Make micro-batches half as large after a pass over these rows failed; False where they are single rows."""
    parts = list(engine.split(rows))
    most = max(map(len, parts))
    if most == 1:
        return False
    if engine.micro_batch_size == "auto":
        several = [len(part) * max(map(len, part)) for part in parts if len(part) > 1]  # one row cannot be halved
        engine.micro_batch_tokens = min(max(several), engine.micro_batch_tokens or max(several)) // 2
    else:
        engine.micro_batch_size = most // 2
    return True


def recompute(engine: Engine) -> bool:
    """Compute activations again in the backward pass from now on; False where that is so already, or not wanted."""
    if not engine.may_recompute or engine.recomputes or not engine.core.supports_gradient_checkpointing:
        return False
    checkpoint(engine)
    return True


def checkpoint(engine: Engine) -> None:
    """Switch gradient checkpointing on. Recorded passes keep all activations, so there are none from now on."""
    core: Any = engine.core
    older = not hasattr(core, "activation_checkpointing_enable")  # the name that newer transformers want
    enable = core.gradient_checkpointing_enable if older else core.activation_checkpointing_enable
    enable({"use_reentrant": False})
    engine.recomputes = True
    if engine.graphs is not None:
        engine.graphs.remove()
        engine.graphs = None


def division(engine: Engine) -> str:
    """How a step is divided, in words."""
    again = ", activations computed again" if engine.recomputes else ""
    if engine.micro_batch_size != "auto":
        return f"{engine.micro_batch_size} rows{again}"
    tokens = engine.micro_batch_tokens
    return f"{'the whole step' if tokens is None else f'{tokens} tokens'}{again}"


def _reason(error: torch.OutOfMemoryError) -> str:
    """The error's first line."""
    return str(error).partition("\n")[0]


def _let_go(engine: Engine) -> None:
    """Give back memory that the failed pass has left behind."""
    if engine.graphs is not None:
        engine.graphs.recordings.clear()  # of shapes that were too large
    if engine.decoding is not None:
        engine.decoding.forget()
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()
