"""What a run begins with: an adapter that was trained elsewhere, and rows for the memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilora.config import Config
from ilora.data.digests import training_digest
from ilora.data.encoding import Encoder
from ilora.data.task import Phase, Task
from ilora.errors import InputError
from ilora.methods.base import Method
from ilora.model.start import Start
from ilora.stream import rows_before
from ilora.training.encoded import EncodedStream


def begin_from(config: Config, method: Method[Any], encoder: Encoder) -> dict[str, Any] | None:
    """Fill the adapter and the memory before the first task. Returns what they came from, as `origin` gives it.

    The adapter `fast` gets the weights, from which the methods make the others. Raises InputError where adapter or rows
    cannot be used.
    """
    if config.adapter.start_from is not None:
        start = Start.read(config.adapter.start_from)
        start.refuse_other_base(method.engine.base)
        start.fill(method.engine.model, "fast")
    before = rows_before(config.data)
    if before is not None:
        method.remember(encoder.encode(encoder.fitting(before), "train"))
    return origin(config)


def retire_replaced(method: Method[Any], phase: Phase, stream: EncodedStream) -> None:
    """Leave out of memory and method what they hold of the rows that a phase's tasks replace, before it begins."""
    for old in (task.replaces for task in phase.tasks if task.replaces):
        method.memory.forget(old, shown=len(stream.train[old]))
        state = method.without_task(method.state_dict(), old)
        if type(method).without_task.__func__ is not Method.without_task.__func__:  # type: ignore[attr-defined]
            method.load_state_dict(state)


def refuse_deleted_rows(path: Path, tasks: Sequence[Task]) -> None:
    """Raises InputError where a task would be trained from the start, and its rows were deleted. path: of the run."""
    for task in tasks:
        if task.forgotten:
            raise InputError(
                f"{path}: task '{task.name}' would be trained from the start, and its rows were deleted on "
                f"{task.forgotten}; take it out of data.tasks"
            )


def origin(config: Config) -> dict[str, Any] | None:
    """SHA-256 of the adapter's weights, and number and SHA-256 of the rows, as far as they are there; None: nothing."""
    folder, rows = config.adapter.start_from, config.data.start_rows
    found: dict[str, Any] = {}
    if folder is not None and folder.is_dir():
        found["adapter_sha256"] = Start.read(folder).sha256
    if rows is not None and rows.exists() and (before := rows_before(config.data)) is not None:
        found |= {"rows": len(before.rows["train"]), "rows_sha256": training_digest(before)}
    return found or None


def refuse_other_start(config: Config, then: dict[str, Any] | None) -> None:
    """Raises InputError where the run began from another adapter or other rows than lie there now.

    They need not be there any more: a checkpoint has all of them that the run still needs.
    """
    if not then:
        return
    places: dict[str, tuple[str, Path | None]] = {
        "adapter_sha256": ("adapter.start_from", config.adapter.start_from),
        "rows_sha256": ("data.start_rows", config.data.start_rows),
    }
    now = origin(config) or {}
    for key, (setting, place) in places.items():
        if key in now and now[key] != then.get(key):
            raise InputError(f"{setting}: {place} changed since the run began. Put it back, or start a new run")
