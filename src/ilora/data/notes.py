"""What was decided while reading a task, in words: for the screen, `data check`, the report and the model card."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping


def length_notes(*, train: int, cut: int, length: str, scored: int, unreachable: int, limit: int) -> Iterator[str]:
    """What the lengths of a task's rows do to it: an answer that cannot be given, prompts of which little is left.

    cut: of `train` prompts. length: `max_length` in words. unreachable: of `scored` reference answers, those with more
    tokens than the `limit` of a generated one.
    """
    if unreachable:
        yield (
            f"{unreachable:,} of {scored:,} reference answers are longer than max_new_tokens ({limit}); no answer can "
            "equal them: raise evaluation.max_new_tokens"
        )
    if 2 * cut > train:
        yield f"{cut:,} of {train:,} training prompts are cut to {length}; raise it, or shorten the prompts"


def reading_words(read_as: str, split_off: Mapping[str, int]) -> list[tuple[str, str]]:
    """Each with its level (note or warning): the form of the rows, and the splits that were made here.

    read_as, split_off: as of a `Task`.
    """
    notes = [("note", f"read as {read_as}")] if read_as else []
    taken = {split: rows for split, rows in split_off.items() if rows}
    if taken:
        parts = " and ".join(f"{rows:,} rows for {split}" for split, rows in taken.items())
        notes.append(("note", f"{parts} were taken out of train by a hash of the prompt (data.split)"))
    if count := taken.get("test"):
        notes.append(
            (
                "warning",
                f"no test split of its own: a score on {count:,} of its training rows tells about rows like these, "
                f"to about ±{100 / math.sqrt(count):.0f} points of 100",
            )
        )
    return notes
