"""Test and eval rows of a task that brings only training rows: taken from those, by a hash of the prompt."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from hashlib import blake2b

from ilora.data.duplicates import key
from ilora.data.stored import Gathering, like
from ilora.data.task import SPLITS, Row, Task
from ilora.errors import InputError
from ilora.settings import SplitConfig


def split_off(task: Task, config: SplitConfig) -> Task:
    """The task with a test split, and an eval split where it has none.

    A row's place depends on its prompt and `config.seed` alone. So a row of one month never stands on the other side in
    the next, and repeated prompts stand together. A task with a test split comes back as it is, but that an eval split
    is taken from train where `config.eval` asks for one. Raises InputError where a split would be empty.
    """
    shares = _shares([split for split in ("test", "eval") if split not in task.rows], config)
    if not shares:
        return task
    most = like(task.rows["train"])
    found = {split: Gathering(most) for split in ("train", *shares)}
    for row in task.rows["train"]:
        found[_side(row, shares, config.seed)].add(row)
    parts = {split: kept.rows() for split, kept in found.items()}
    for split, rows in parts.items():
        if not rows:
            count, read = len(set(map(key, task.rows["train"]))), f" (read as {task.read_as})" if task.read_as else ""
            raise InputError(
                f"task '{task.name}': {count} distinct prompts are too few to split off {' and '.join(shares)}; "
                f"{split} would be empty{read}; raise data.split.test and data.split.eval, or give the splits as files"
            )
    every = {**task.rows, **parts}
    ordered = {split: every[split] for split in SPLITS if split in every}
    return replace(task, rows=ordered, split_off={split: len(parts[split]) for split in shares})


def stays_in_train(row: Row, task: Task, config: SplitConfig) -> bool:
    """Whether a row that was made later from the task's training rows is on their side, where it was split here."""
    return _side(row, _shares(task.split_off, config), config.seed) == "train"


def _shares(made: Container[str], config: SplitConfig) -> dict[str, float]:
    """The share of each of the splits that are made here."""
    shares = {"test": config.test} if "test" in made else {}
    if "eval" in made:
        asked = config.eval if config.eval is not None else shares.get("test", 0.0)
        shares |= {"eval": asked} if asked else {}
    return shares


def _side(row: Row, shares: dict[str, float], seed: int) -> str:
    """The split of a row. Its hash, as a number from 0 to 1, falls into the share of one of them."""
    digest = blake2b(key(row), digest_size=8, salt=seed.to_bytes(8, "big")).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"
