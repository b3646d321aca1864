"""Digests of tasks, by which a resume knows its data; made piece by piece, so that a task may be of any size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from ilora.data.task import Row, Task


def fingerprint(task: Task) -> str:
    """SHA-256 of everything about a task that a result depends on."""
    own = [task.template] if task.template else []  # left out where there is none, so that older digests hold
    rest = _json([task.metric, task.choices, task.scoring, task.max_new_tokens, task.frame, *own])
    splits = (chain([f"{_json(split)}: "], _rows_as_json(task.rows[split])) for split in sorted(task.rows))
    between = chain.from_iterable(chain([", "] if number else [], split) for number, split in enumerate(splits))
    return _digest(chain([f"[{_json(task.name)}, {{"], between, [f"}}, {rest[1:]}"]))


def training_digest(task: Task) -> str:
    """SHA-256 of a task's training rows: two runs are compared only if they learnt from the same ones."""
    return _digest(_rows_as_json(task.rows["train"]))


def _rows_as_json(rows: Iterable[Row]) -> Iterator[str]:
    """The rows as one JSON list, in pieces. Tools are left out where there are none: the digests of older runs hold."""
    yield "["
    for number, row in enumerate(rows):
        tools = [list(row.tools)] if row.tools else []
        text = _json([row.prompt, row.answer, [dict(turn) for turn in row.messages], *tools])
        yield f", {text}" if number else text
    yield "]"


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, sort_keys=True)


def _digest(pieces: Iterable[str]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece.encode())
    return found.hexdigest()
