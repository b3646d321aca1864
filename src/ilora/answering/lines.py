"""A file of JSON lines that grows in order, and that a killed process leaves so that the next one goes on with it.

`FILE.origin.json` beside it says what the lines were made from. Lines are added a block at a time; after a kill the
last block may be cut off, and is then made again whole, so that the file does not depend on where it was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ilora.errors import IloraError, InputError
from ilora.files import write_atomic


class GrowingFile:
    """The file at `path`. origin: what its lines are made from. total: how many there will be, in blocks of `block`."""

    def __init__(self, path: Path, origin: Mapping[str, Any], *, total: int, block: int) -> None:
        self.path, self.total, self.block = path, total, block
        self.origin: dict[str, Any] = json.loads(json.dumps(origin))
        self.sidecar = path.with_name(f"{path.name}.origin.json")
        self._file: BinaryIO | None = None

    def open(self) -> int:
        """Take the file for this process, drop a block that was cut off; returns how many lines there are.

        Raises InputError, with nothing changed, where there is a file of another origin, or another process has it.
        """
        self._refuse_another()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.sidecar.exists():
                write_atomic(self.sidecar, json.dumps(self.origin, ensure_ascii=False, indent=1) + "\n")
            self._file = self.path.open("ab+")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._cut()
        except BlockingIOError:
            raise InputError(f"{self.path}: another process is writing it") from None
        except OSError as error:
            raise self._unwritable(error) from error

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add a block, and wait until the disk has it. What JSON does not know (a date) is written as text."""
        assert self._file is not None
        try:
            for record in records:
                self._file.write((json.dumps(record, ensure_ascii=False, default=str) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Let other processes have it."""
        if self._file is not None:
            self._file.close()

    def _refuse_another(self) -> None:
        if not self.sidecar.exists():
            if self.path.exists():
                raise InputError(f"{self.path}: exists already, and is no file to go on with; give another --out")
            return
        try:
            before = json.loads(self.sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.sidecar}: cannot be read: {error}; move it and {self.path.name} away") from None
        if before != self.origin:
            keys = {*before, *self.origin} if isinstance(before, dict) else ()
            changed = ", ".join(sorted(key for key in keys if before.get(key) != self.origin.get(key)))
            raise InputError(f"{self.path}: exists, made from other {changed or 'things'}; give another --out")

    def _cut(self) -> int:
        """Drop what is behind the last whole block."""
        assert self._file is not None
        self._file.seek(0)
        lines = size = kept = ends = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            lines, size = lines + 1, size + len(line)
            if lines % self.block == 0 or lines == self.total:
                ends, kept = size, lines
        if lines > self.total:
            raise InputError(f"{self.path}: it has more lines than its input; move it and {self.sidecar.name} away")
        self._file.truncate(ends)
        return kept

    def _unwritable(self, error: OSError) -> IloraError:
        return IloraError(f"{self.path}: cannot write: {error.strerror or error}; the same command goes on")
