"""Files as streams of entries: JSON, JSON lines, CSV, TSV, Excel, parquet.

Every reader yields (place, value) pairs one at a time, so that a file of any length is read in constant memory (a
`.json` file alone is read whole, since JSON cannot be cut). `place` names the file and the line, or the row counted
from 1; a value that cannot be used is a `Problem`, so that one message can name all of them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ilora.errors import InputError

Entry = tuple[str, Any]
JSON_SUFFIXES = (".json", ".jsonl")
SUFFIXES = (*JSON_SUFFIXES, ".csv", ".tsv", ".xlsx", ".parquet")
_SEP = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_BOM = b"\xef\xbb\xbf"
_LONGEST_CELL = 2**31 - 1  # the csv module's own limit, 131,072 characters, is less than a meeting's transcript


class Problem(Exception):
    """Why one row cannot be used."""


def entries(path: Path, *, original: bool = False) -> Iterator[Entry]:
    """The entries of a file, by its ending.

    `.json` is a list of entries, or an object with "Instances" (a SuperNI task; each instance gets the object's
    "Definition"). original: a `.json` file of a data set's own release, which may also hold one object a line, or an
    object of objects by id. Errors: InputError for a file that cannot be read, for another ending, and for a library
    that is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _originals(path) if original else _json(path)
    if suffix == ".jsonl":
        return _json_lines(path)
    if suffix in (".csv", ".tsv"):
        return _csv(path)
    if suffix == ".xlsx":
        return _xlsx(path)
    if suffix == ".parquet":
        return _parquet(path)
    raise InputError(f"{path}: not a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")


def count(path: Path) -> int:
    """How many entries a file has, without keeping any."""
    if path.suffix.lower() == ".jsonl":
        return sum(1 for _, line in _lines(path) if line.strip())
    return sum(1 for _ in entries(path))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of every line, in UTF-8 with or without BOM; lines end in a line feed and nothing else."""
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                data = line.removeprefix(_BOM) if number == 1 else line
                try:
                    text = data.decode("utf-8")
                except UnicodeDecodeError as error:
                    start = offset + len(line) - len(data) + error.start
                    byte = f"byte 0x{data[error.start]:02x} at offset {start}"
                    raise InputError(f"{path}:{number}: not UTF-8 ({byte}); save it as UTF-8") from None
                yield number, text
                offset += len(line)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> InputError:
    """The error for a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file")
    return InputError(f"{path}: cannot be read: {error.strerror or error}")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values; json would silently take the last value of a key that stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(pairs)


_STRICT = json.JSONDecoder(object_pairs_hook=_each_once)  # takes 4 % longer than one without
# A function of Python lets other threads run. Without it a process that reads gigabytes would be silent for so long
# that the others would take it for lost (training/watch.py).
_LENIENT = json.JSONDecoder(object_pairs_hook=_object)


def _text(path: Path) -> str:
    return "".join(line for _, line in _lines(path))


def _json_lines(path: Path) -> Iterator[Entry]:
    """Every line that is not blank."""
    for number, line in _lines(path):
        if line.strip():
            try:
                yield f"{path}:{number}", _STRICT.decode(line.removesuffix("\n"))
            except json.JSONDecodeError as error:
                yield f"{path}:{number}:{error.colno}", Problem(f"not JSON: {error.msg}")
            except (ValueError, RecursionError) as error:
                yield f"{path}:{number}", Problem(f"not usable JSON: {error}")


def _json(path: Path) -> Iterator[Entry]:
    """Every entry of the list, every instance of the SuperNI task, or every line of a file that has one object each."""
    text = _text(path)
    if _is_lines(text):
        yield from _json_lines(path)
        return
    whole = _parsed(path, text)
    if isinstance(whole, dict) and isinstance(whole.get("Instances"), list):
        definition = whole.get("Definition", "")
        whole = [{"Definition": definition, **item} if isinstance(item, dict) else item for item in whole["Instances"]]
        yield from ((f"{path}, instance {number}", entry) for number, entry in enumerate(whole, 1))
    elif not isinstance(whole, list):
        raise InputError(f"{path}: the top level is {kind(whole)}; expected a list of rows")
    else:
        yield from _places(path, text, whole)


def _is_lines(text: str) -> bool:
    """Whether a text is an object followed by another one, as in .jsonl."""
    if not text.lstrip().startswith("{"):
        return False
    try:
        _LENIENT.decode(text)
    except json.JSONDecodeError as error:
        return error.msg == "Extra data" and text[error.pos] == "{"
    except (ValueError, RecursionError):
        return False
    return False


def _places(path: Path, text: str, whole: Sequence[Any]) -> Iterator[Entry]:
    """The entries of a valid list, decoded a second time one by one to see in which line each begins."""
    decoder = json.JSONDecoder()
    at, line = text.index("[") + 1, text.count("\n", 0, text.index("[")) + 1
    for number, value in enumerate(whole, 1):
        start = at
        while text[start] in " \t\r\n,":
            start += 1
        line += text.count("\n", at, start)
        try:
            _, at = _STRICT.raw_decode(text, start)
        except ValueError as error:
            value, (_, at) = Problem(f"not usable JSON: {error}"), decoder.raw_decode(text, start)
        yield f"{path}:{line} (row {number})", value
        line += text.count("\n", start, at)


def _parsed(path: Path, text: str) -> Any:
    if not text.strip():
        raise InputError(f"{path}: the file is empty; expected a list of rows")
    try:
        return _LENIENT.decode(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not usable JSON: {error}") from None


def _originals(path: Path) -> Iterator[Entry]:
    """A list, one object a line, or an object of objects by id."""
    filled = (line for _, line in _lines(path) if line.strip())
    first, second = next(filled, ""), next(filled, "")
    if first.lstrip().startswith("{") and second.lstrip().startswith("{"):
        yield from _json_lines(path)
        return
    if not first.lstrip().startswith("{"):
        yield from _json(path)
        return
    whole = _parsed(path, _text(path))
    by_id = bool(whole) and all(isinstance(value, dict) and not _numbered(value) for value in whole.values())
    yield from ((f"{path}, {key!r}", value) for key, value in (whole.items() if by_id else [("row 1", whole)]))


def _numbered(value: dict[str, Any]) -> bool:
    """Whether an object numbers the parts of one text, such as an article's paragraphs, and so is no entry itself."""
    return all(key.isdecimal() for key in value)


def _delimiter(path: Path) -> tuple[str, int]:
    """What stands between the cells, and how many lines are before the header: blank ones, and Excel's `sep=;`.

    In a .csv without such a line it is what the header has most of, since Excel writes `;` in many places.
    """
    number, header = next(((number, line) for number, line in _lines(path) if line.strip()), (1, ""))
    if "\r" in header.removesuffix("\n").removesuffix("\r"):
        raise InputError(
            f"{path}:{number}: its lines end in a carriage return alone, as on old Macs; save it with lines that end "
            "in a line feed"
        )
    if said := _SEP.fullmatch(header.strip("\r\n")):
        return said[1], number
    if path.suffix.lower() == ".tsv":
        return "\t", number - 1
    return max(",;\t|", key=lambda sign: len(next(csv.reader([header], delimiter=sign), []))), number - 1


def _csv(path: Path) -> Iterator[Entry]:
    """Every row as a mapping by the header's names."""
    csv.field_size_limit(_LONGEST_CELL)
    delimiter, before = _delimiter(path)
    lines = islice((line for _, line in _lines(path)), before, None)
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        names = list(reader.fieldnames or ())
        _refuse_twice(names, f"{path}:{1 + before}")
        for row in reader:
            place = f"{path}:{reader.line_num + before}"
            if None in row:
                yield place, Problem(f"more cells than the {len(reader.fieldnames or ())} columns of the header")
            elif None in row.values():
                yield place, Problem(f"fewer cells than the {len(reader.fieldnames or ())} columns of the header")
            else:
                yield place, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.reader.line_num + before}: not usable CSV: {error}") from None


def _refuse_twice(names: Sequence[str], place: str) -> None:
    """Raises InputError for a header that names a column twice; the last one would silently be taken."""
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(f"{place}: the column {twice[0]!r} stands twice in the header; name each once")


def _xlsx(path: Path) -> Iterator[Entry]:
    """Every row of the first sheet as a mapping by the names in its first row."""
    try:
        import openpyxl
    except ImportError:
        raise InputError(f"{path}: reading Excel files needs openpyxl: pip install 'ilora[excel]'") from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = book.worksheets[0].iter_rows(values_only=True)
        names = ["" if name is None else str(name) for name in next(rows, ())]
        _refuse_twice([name for name in names if name], f"{path}, row 1")
        for number, cells in enumerate(rows, 2):
            if any(cell is not None for cell in cells):  # a sheet may go on below its rows, formatted and empty
                yield f"{path}, row {number}", dict(zip(names, cells, strict=False))
        book.close()
    except InputError:
        raise
    except OSError as error:
        raise unreadable(path, error) from None
    except Exception as error:  # the library raises those of zip, XML and its own
        raise InputError(f"{path}: not a readable Excel file: {type(error).__name__}: {error}") from error


def _parquet(path: Path) -> Iterator[Entry]:
    """Every row as a mapping by the columns' names."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{path}: reading parquet needs pyarrow: pip install 'ilora[datasets]'") from None
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            _refuse_twice(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=1024):
                for entry in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", entry
    except OSError as error:
        raise unreadable(path, error) from None
    except ArrowException as error:
        raise InputError(f"{path}: not a readable parquet file: {error}") from error


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def kind(value: Any) -> str:
    """What a value is, in words: `a list`."""
    if isinstance(value, float) and value - value != 0:
        return "not a finite number"
    return _KINDS.get(type(value), "of another type")
