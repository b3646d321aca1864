"""Rows from files, folders and the `datasets` library.

A file is `.json` (a list of rows, or a SuperNI task), `.jsonl` (one row a line, blank lines skipped), `.csv` or `.tsv`
(a header and rows), all in UTF-8 with or without BOM; `.xlsx` (the first sheet, its first row the header) or
`.parquet`. `data/rows.py` has the forms of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilora.data import tables
from ilora.data.rows import Columns, Selection, collect, field_names, form_of, listed, row
from ilora.data.tables import SUFFIXES
from ilora.data.task import SPLITS, Row
from ilora.errors import InputError

__all__ = ["Columns", "Selection", "list_task_folders", "listed", "read_folder", "read_hub", "read_rows"]

SPLIT_NAMES = {"train": ("train",), "eval": ("eval", "dev", "val", "valid", "validation"), "test": ("test",)}


def read_rows(path: Path, *, columns: Columns | None = None, selection: Selection | None = None) -> list[Row]:
    """The rows of a file, in order. Rows that `selection` does not choose are never kept in memory.

    columns: our field names mapped to the file's, such as {"prompt": "question", "answer": "label"}; a field
    that is not in it has its own name, and naming a field of one form rules out the other forms. Errors: InputError
    that names the file and the line (in `.json` also the row, counted from 1) of everything that is wrong, the first
    ten problems in full.
    """
    names = field_names(columns, str(path))
    found = tables.entries(path)
    chosen = selection.choose(lambda: tables.count(path)) if selection else None
    return collect(found, lambda entry: row(entry, names), str(path), chosen=chosen, selection=selection)


def read_folder(
    path: Path, *, columns: Columns | None = None, selections: Mapping[str, Selection] | None = None
) -> dict[str, list[Row]]:
    """The rows of a task folder with one file for each of train, eval (or dev, validation) and test.

    A folder may lack eval, which is read only where something is tuned. Errors: InputError for a missing folder or
    split, for a split in several files, and as `read_rows`.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected one that holds {_file_names()}")
    files = {split: split_files(path, split) for split in SPLITS}
    missing = [split for split, found in files.items() if not found and split != "eval"]
    if missing:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise InputError(
            f"{path}: no {' and no '.join(missing)} split; allowed are {_file_names(missing)}; there is {there}"
        )
    for found in files.values():
        if len(found) > 1:
            raise InputError(f"{path}: both {' and '.join(file.name for file in found)}; keep one of them")
    chosen = selections or {}
    return {
        split: read_rows(found[0], columns=columns, selection=chosen.get(split))
        for split, found in files.items()
        if found
    }


def list_task_folders(path: Path) -> list[str]:
    """The names of the subfolders with a split's file, sorted. Errors: InputError if there is none."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected one that holds task folders")
    names = [
        folder.name
        for folder in path.iterdir()
        if folder.is_dir() and any(split_files(folder, split) for split in SPLITS)
    ]
    if not names:
        hint = " (it is a task folder itself: give its parent)" if any(split_files(path, s) for s in SPLITS) else ""
        raise InputError(f"{path}: no task folders{hint}; a task folder holds {_file_names()}")
    return sorted(names)


def load_hub(dataset: str, subset: str | None = None, *, split: str, revision: str | None = None) -> Any:
    """One split of a Hugging Face data set, or of a local folder that `datasets` can load. Errors: InputError."""
    place = hub_place(dataset, subset, split)
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{place}: reading data sets needs the `datasets` library: pip install 'ilora[datasets]'"
        ) from None
    try:
        return datasets.load_dataset(dataset, subset, split=split, revision=revision)
    except Exception as error:  # the library raises its own, its back ends' and plain errors
        raise InputError(f"{place}: cannot be loaded: {type(error).__name__}: {error}") from error


def hub_place(dataset: str, subset: str | None, split: str) -> str:
    """How a split of a data set is named in messages."""
    return f"{dataset}{f' ({subset})' if subset else ''}, split {split}"


def read_hub(
    dataset: str,
    subset: str | None = None,
    *,
    split: str,
    columns: Columns | None = None,
    revision: str | None = None,
    selection: Selection | None = None,
) -> list[Row]:
    """The rows of one split of a Hugging Face data set, or of a local folder of parquet, jsonl or csv files.

    split: the data set's own name (`validation`) or slice (`train[:500]`). An answer in a column of class
    labels is the label's name. Needs the optional `datasets` library, and the network unless the data set is
    local or cached. Errors: InputError for a missing library, data set, split or column, and for unusable
    rows.
    """
    place = hub_place(dataset, subset, split)
    names = field_names(columns, place)
    data = load_hub(dataset, subset, split=split, revision=revision)
    columns_there = list(data.column_names)
    wanted = form_of(names, columns_there)
    unknown = [names[field] for field in wanted if names[field] not in columns_there]
    if unknown:
        raise InputError(
            f"{place}: no column {' or '.join(map(repr, unknown))}; there are {', '.join(columns_there)}; "
            "name them with `columns`"
        )
    data = data.select_columns([names[field] for field in wanted])
    labels = getattr(data.features[names["answer"]], "int2str", None) if "answer" in wanted else None
    entries = (
        (f"{place}, row {number}", _named(entry, names["answer"], labels) if labels else entry)
        for number, entry in enumerate(data, 1)
    )
    chosen = selection.choose(lambda: len(data)) if selection else None
    return collect(entries, lambda entry: row(entry, names), place, chosen=chosen, selection=selection)


def _named(entry: Mapping[str, Any], column: str, labels: Any) -> Mapping[str, Any]:
    """The entry with its class label as a name; the label -1 (unknown) becomes null, which is refused."""
    value = entry[column]
    known = value is not None and value >= 0
    return {**entry, column: labels(value) if known else None}


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a task folder that are named for the split."""
    return [
        path for name in SPLIT_NAMES[split] for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()
    ]


def _file_names(splits: Sequence[str] = SPLITS) -> str:
    return f"{', '.join(' or '.join(SPLIT_NAMES[split][:2]) for split in splits)} as {', '.join(SUFFIXES)}"
