"""A large split in token ids: an Arrow file of the user's cache, written once and read by slice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from ilora.data.examples import Example
from ilora.data.stored import Stored, Writer
from ilora.errors import IloraError, InputError
from ilora.files import alone


class StoredExamples(Stored[Example]):
    """The examples of one split, in their order.

    task, label: the task's name, and what the examples' ids begin with.
    longest_answer: tokens. cut: how many rows have a prompt that is cut.
    """

    def __init__(self, file: IO[bytes], task: str, label: str) -> None:
        super().__init__(file)
        self.task, self.label, self.longest_answer, self.cut = task, label, 0, 0
        for part in self._slices:
            self.longest_answer = max(self.longest_answer, int(part.column("answer").value_lengths().to_numpy().max()))
            self.cut += part.column("cut").true_count
            self.release()

    def _make(self, first: int, block: Any) -> Iterable[Example]:
        lists = [_lists(block.column(name)) for name in ("prompt", "answer", "body")]
        for number, (prompt, answer, body, cut) in enumerate(zip(*lists, block.column("cut"), strict=True), first):
            ranges = tuple(zip(body[::2], body[1::2], strict=True))
            yield Example(self.task, f"{self.label}/{number}", prompt, answer, cut=cut.as_py(), body=ranges)


def _lists(column: Any) -> Iterator[list[int]]:
    """A column of lists; much faster than pyarrow's own `to_pylist`."""
    edges, values = column.offsets.to_numpy(), column.values.to_numpy()
    return (values[start:end].tolist() for start, end in pairwise(edges))


def stored_examples(file: Path, examples: Iterable[Example], *, task: str, label: str) -> StoredExamples:
    """The examples of a file of the user's cache; where there is none they are written there first.

    Of several processes on a machine one writes; the others wait, and read what it has made. examples: all of a split,
    in order; asked only if they must be written. Raises InputError where the cache cannot be written.
    """
    try:
        with alone(file):
            found = _read(file, task, label)
            if found is None:
                _write(file, examples)
                found = _read(file, task, label)
    except OSError as error:
        raise InputError(
            f"{file}: the tokens of a large task are kept there, and it cannot be written "
            f"({error.strerror or error}); set ILORA_CACHE to a folder that can"
        ) from error
    if found is None:
        raise IloraError(f"{file}: was written, and cannot be read")
    return found


def longest_answer(rows: Sequence[Example]) -> int:
    """Tokens of the longest answer, 0 of no rows."""
    if isinstance(rows, StoredExamples):
        return rows.longest_answer
    return max((len(example.answer) for example in rows), default=0)


def cut_rows(rows: Sequence[Example]) -> int:
    """How many rows have a prompt that is cut."""
    return rows.cut if isinstance(rows, StoredExamples) else sum(example.cut for example in rows)


def _read(file: Path, task: str, label: str) -> StoredExamples | None:
    """None where it is missing or damaged: then it is made again."""
    import pyarrow

    try:
        with file.open("rb") as opened:
            return StoredExamples(opened, task, label)
    except (FileNotFoundError, ValueError, KeyError, pyarrow.ArrowException):
        return None
    except OSError as error:
        if error.errno is None:  # pyarrow's, of a damaged file
            return None
        raise


def _write(file: Path, examples: Iterable[Example]) -> None:
    import pyarrow

    tokens = pyarrow.large_list(pyarrow.int32())
    scratch = file.with_name(f".{file.name}-writing")
    with scratch.open("wb") as opened:
        writer = Writer(opened, {"prompt": tokens, "answer": tokens, "body": tokens, "cut": pyarrow.bool_()})
        for row in examples:
            body = [edge for part in row.body for edge in part]
            writer.add((row.prompt, row.answer, body, row.cut), 4 * (len(row) + len(body)))
        writer.close()
        os.fsync(opened.fileno())
    scratch.replace(file)
