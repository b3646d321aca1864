"""Rows that do not fit into memory: sequences in an Arrow file, whose items are made when they are asked for.

The file is mapped into memory, read by slice, and its pages are handed back to the system as the reading goes on, so
that a pass over any number of items costs the memory of a few thousand.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import tempfile
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from random import Random
from typing import IO, Any, TypeVar, overload

from ilora.data.task import Row
from ilora.errors import InputError
from ilora.files import cache_folder

ROWS, BYTES = 16_384, 2**24  # of a slice of the file, at most: what is written at once
_BLOCK, _BLOCKS = 256, 64  # items that are made at once; blocks after which pages are handed back
ORDER_IN_MEMORY = 2**20  # numbers of an order; more lie in a file
Item = TypeVar("Item")


def installed() -> bool:
    """Whether Arrow files can be written and read: pyarrow is there."""
    return importlib.util.find_spec("pyarrow") is not None


def scratch_file() -> IO[bytes]:
    """A file without a name in the user's cache: it is gone with the process, however that ends.

    Raises InputError where it cannot be made.
    """
    folder = cache_folder() / "rows"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> InputError:
    return InputError(
        f"{cache_folder() / 'rows'}: large tasks are kept there while a command works, and it cannot be written "
        f"({error.strerror or error}); set ILORA_CACHE to a folder that can"
    )


class Writer:
    """Writes an Arrow file slice by slice. fields: the columns' names and types."""

    def __init__(self, file: IO[bytes], fields: dict[str, Any]) -> None:
        import pyarrow

        self.schema = pyarrow.schema(list(fields.items()))
        self.file, self.writer = file, pyarrow.ipc.new_file(file, self.schema)
        self.columns: list[list[Any]] = [[] for _ in fields]
        self.bytes = 0

    def add(self, values: Sequence[Any], size: int) -> None:
        """One more item. size: its bytes, about."""
        for column, value in zip(self.columns, values, strict=True):
            column.append(value)
        self.bytes += size
        if len(self.columns[0]) >= ROWS or self.bytes >= BYTES:
            self._write()

    def close(self) -> None:
        """Write the rest, and the end of the file."""
        if self.columns[0]:
            self._write()
        self.writer.close()
        self.file.flush()

    def _write(self) -> None:
        import pyarrow

        arrays = [pyarrow.array(column, field.type) for column, field in zip(self.columns, self.schema, strict=True)]
        self.writer.write_batch(pyarrow.record_batch(arrays, schema=self.schema))
        self.columns, self.bytes = [[] for _ in self.columns], 0


class Numbered(Sequence[Item], ABC):
    """A sequence whose items are made or looked up one by one: what numbers and slices mean is written here."""

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        if isinstance(place, slice):
            return self._some(range(*place.indices(len(self))))
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(place)
        return self._one(number)

    @abstractmethod
    def _one(self, number: int) -> Item:
        """The item of a number from 0 on."""

    def _some(self, numbers: range) -> list[Item]:
        return [self._one(number) for number in numbers]


class Stored(Numbered[Item]):
    """A sequence in an Arrow file; a subclass makes the items. Raises ValueError for a file that is not whole."""

    def __init__(self, file: IO[bytes]) -> None:
        import pyarrow

        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pyarrow.ipc.open_file(pyarrow.BufferReader(pyarrow.py_buffer(self._map)))
        self._slices = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._starts: list[int] = [0, *accumulate(part.num_rows for part in self._slices)]
        self._blocks = 0  # that were read since the last `release`

    def __len__(self) -> int:
        return self._starts[-1]

    def _one(self, number: int) -> Item:
        return next(self._between(number, number + 1))

    def _some(self, numbers: range) -> list[Item]:
        return list(self._between(numbers.start, numbers.stop)) if numbers.step == 1 else super()._some(numbers)

    def __iter__(self) -> Iterator[Item]:
        return self._between(0, len(self))

    def _between(self, first: int, last: int) -> Iterator[Item]:
        """The items from `first` up to `last`, a block at a time."""
        while first < last:
            where = bisect_right(self._starts, first) - 1
            start, end = self._starts[where : where + 2]
            stop = min(last, end, first + _BLOCK)
            block = self._slices[where].slice(first - start, stop - first)
            self._blocks += 1 if stop - first == _BLOCK else _BLOCKS // 4  # a single row may bring megabytes of pages
            if self._blocks >= _BLOCKS:  # before the items are given: nobody may ask for more
                self.release()
            yield from self._make(first, block)
            first = stop

    def release(self) -> None:
        """Hand the pages of the file that were read back to the system."""
        self._map.madvise(mmap.MADV_DONTNEED)
        self._blocks = 0

    def _make(self, first: int, block: Any) -> Iterable[Item]:
        """The items of a block of the file's rows, of which the first has the number `first`."""
        raise NotImplementedError


class StoredRows(Stored[Row]):
    """Rows of text. most: of more rows than these, what is chosen of them lies in a file again."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        super().__init__(file)
        self.most = most

    def _make(self, first: int, block: Any) -> Iterable[Row]:
        del first
        return map(_row, *(column.to_pylist() for column in block.columns))


def _row(prompt: str, answer: str, messages: str | None, tools: str | None) -> Row:
    if messages is None and tools is None:
        return Row(prompt, answer)
    return Row(prompt, answer, tuple(json.loads(messages or "[]")), tuple(json.loads(tools or "[]")))


class Gathering:
    """Rows that come one by one: up to `most` of them are a list, more lie in a file. None: always a list."""

    def __init__(self, most: int | None) -> None:
        self.most = most if installed() else None
        self.list: list[Row] = []
        self.writer: Writer | None = None

    def add(self, row: Row) -> None:
        """One more row. Raises InputError where it cannot be written, as on a full disk."""
        if self.writer is not None:
            self._write(self.writer, row)
            return
        self.list.append(row)
        if self.most is not None and len(self.list) > self.most:
            import pyarrow

            text = pyarrow.large_string()
            fields = {"prompt": text, "answer": text, "messages": text, "tools": text}
            self.writer = Writer(scratch_file(), fields)
            for one in self.list:
                self._write(self.writer, one)
            self.list = []

    @staticmethod
    def _write(writer: Writer, row: Row) -> None:
        messages = json.dumps([dict(turn) for turn in row.messages]) if row.messages else None
        tools = json.dumps(list(row.tools)) if row.tools else None
        size = len(row.prompt) + len(row.answer) + len(messages or "") + len(tools or "")
        try:
            writer.add((row.prompt, row.answer, messages, tools), size)
        except OSError as error:
            raise _unwritable(error) from error

    def rows(self) -> Sequence[Row]:
        """All of them. Called once, at the end."""
        if self.writer is None or self.most is None:
            return self.list
        try:
            self.writer.close()
        except OSError as error:
            raise _unwritable(error) from error
        return StoredRows(self.writer.file, self.most)


def gathered(rows: Iterable[Row], most: int | None) -> Sequence[Row]:
    """The rows as `Gathering` keeps them."""
    kept = Gathering(most)
    for row in rows:
        kept.add(row)
    return kept.rows()


def like(rows: Sequence[Row]) -> int | None:
    """What `Gathering` needs to keep a part of these rows as they are kept."""
    return rows.most if isinstance(rows, StoredRows) else None


class Joined(Numbered[Item]):
    """Sequences one behind the other, as one."""

    def __init__(self, parts: Sequence[Sequence[Item]]) -> None:
        self.parts, self.starts = parts, [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self.starts[-1]

    def _one(self, number: int) -> Item:
        where = bisect_right(self.starts, number) - 1
        return self.parts[where][number - self.starts[where]]

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self.parts)


def joined(parts: Sequence[Sequence[Item]]) -> Sequence[Item]:
    """Sequences one behind the other: a list, unless one of them lies in a file."""
    if len(parts) == 1:
        return parts[0]
    return Joined(parts) if any(isinstance(part, Stored) for part in parts) else list(chain.from_iterable(parts))


def some(rows: Sequence[Item], most: int, *, key: str) -> Sequence[Item]:
    """The rows; of more than `most` a random part of that size, in their order, which depends on key and number."""
    if len(rows) <= most:
        return rows
    return [rows[number] for number in sorted(Random(key).sample(range(len(rows)), most))]


def shuffled(count: int, *, key: str) -> Any:
    """The numbers below `count` in the order of `random.Random(key).shuffle`: 4 bytes each, of many in a file.

    Slices have `tolist`.
    """
    if count <= ORDER_IN_MEMORY:
        order: Any = array("i", range(count))
    else:
        with scratch_file() as file:
            os.truncate(file.fileno(), 4 * count)
            order = memoryview(mmap.mmap(file.fileno(), 4 * count)).cast("i")
        for start in range(0, count, ORDER_IN_MEMORY):
            end = min(start + ORDER_IN_MEMORY, count)
            order[start:end] = memoryview(array("i", range(start, end)))
    Random(key).shuffle(order)
    return order
