"""Rows from files, folders and the `datasets` library.

A file is `.json` (a list of rows, one object a line, or a SuperNI task), `.jsonl` (one row a line, blank lines
skipped), `.csv` or `.tsv` (a header and rows), all in UTF-8 with or without BOM; `.xlsx` (the first sheet, its first
row the header) or `.parquet`. `data/forms.py` has the forms of a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ilora.data import tables
from ilora.data.forms import Columns, RowReader, parts
from ilora.data.rows import Selection, collect
from ilora.data.tables import SUFFIXES, Problem
from ilora.data.task import SPLITS, Row, name_after
from ilora.errors import InputError

SPLIT_NAMES = {"train": ("train",), "eval": ("eval", "dev", "val", "valid", "validation"), "test": ("test",)}

_PART_OF_SPLIT = re.compile(
    rf"({'|'.join(name for names in SPLIT_NAMES.values() for name in names)})[-_.]", re.IGNORECASE
)


def read_rows(
    path: Path,
    *,
    columns: Columns | None = None,
    marker: str | None = None,
    unanswered: str = "error",
    selection: Selection | None = None,
) -> Sequence[Row]:
    """The rows of a file, in order. Rows that `selection` does not choose are never kept in memory.

    columns, marker, unanswered: as for `RowReader`. Errors: InputError that names the file and the line (in `.json`
    also the row, counted from 1) of everything that is wrong.
    """
    reader = RowReader(columns, marker=marker, place=str(path), unanswered=unanswered)
    found = tables.entries(path)
    chosen = selection.choose(lambda: tables.count(path)) if selection else None
    rows = collect(found, reader, str(path), chosen=chosen, selection=selection)
    if selection is not None:
        selection.note(reader.read_as)
    return rows


def has_columns(place: Path, columns: Columns) -> bool:
    """Whether the first row of a task's files has all columns of these names."""
    file = next(iter(task_files(place).values()))[0]
    _, entry = next(iter(tables.entries(file)), ("", {}))
    return isinstance(entry, Mapping) and all(part in entry for name in columns.values() for part in parts(name))


def task_files(path: Path) -> dict[str, list[Path]]:
    """The files of a task's rows by split: of a file itself, of a folder with splits, or of one with other files.

    Rows without a split of their own are training rows, from which `data/split.py` takes the others. Errors: InputError
    for a missing place, a split in several files, or a folder without a file.
    """
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; expected a file of rows, or a folder with {_file_names()}")
    files = {split: found for split in SPLITS if (found := split_files(path, split))}
    for found in files.values():
        if len(found) > 1:
            raise InputError(f"{path}: both {' and '.join(file.name for file in found)}; keep one of them")
    loose = _not_of_a_split([file for file in data_files(path) if [file] not in files.values()])
    if not files and loose:
        return {"train": loose}
    _refuse_beside(path, loose, "its splits; name the files of the task")
    if "train" not in files:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise InputError(f"{path}: no train split; expected {_file_names(['train'])}; there is {there}")
    return files


def task_places(path: Path) -> dict[str, Path]:
    """The tasks of a place by name, sorted: a file, a task folder, or a folder of task folders or of files.

    Errors: InputError where there is no task, or a file is named as a part of a split.
    """
    if path.is_file() or _has_splits(path):
        return {name_after(path): path}
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; expected rows, or a folder with one for each task")
    inner = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    inner = [entry for entry in inner if not (entry / "config.yaml").is_file()]  # a run's folder
    found = [folder for folder in inner if _has_splits(folder)]
    loose = _not_of_a_split(data_files(path)) + [d for d in inner if d not in found and data_files(d)]
    if found:
        _refuse_beside(path, loose, "its task folders; give each a folder with train, or name the tasks (data.tasks)")
    found = found or loose
    if not found:
        raise InputError(
            f"{path}: no tasks; expected a folder for each task with {_file_names()}, or a file for each task"
        )
    places: dict[str, Path] = {}
    for place in sorted(found, key=_own_name):
        if (name := name_after(place)) in places:
            raise InputError(f"{path}: both {places[name].name} and {place.name} would be the task '{name}'; keep one")
        places[name] = place
    return places


def _refuse_beside(path: Path, others: Sequence[Path], what: str) -> None:
    """Raises InputError for rows that would be passed over; a .json file alone may say something about the data."""
    left = [one for one in others if any(file.suffix.lower() != ".json" for file in (data_files(one) or [one]))]
    if left:
        names = ", ".join(sorted(one.name for one in left)[:5])
        raise InputError(f"{path}: {names} would be passed over beside {what}, or take {names} away")


def _not_of_a_split(files: Sequence[Path]) -> list[Path]:
    """The files, none of which may be a part of a split: test rows must not be trained by mistake."""
    for file in files:
        if _PART_OF_SPLIT.match(file.stem):
            raise InputError(
                f"{file}: is it a part of a split? Name one file for each split (train{file.suffix}, "
                f"test{file.suffix}), or give the folder as `dataset`"
            )
    return list(files)


def _own_name(place: Path) -> str:
    return place.stem if place.is_file() else place.name


def _has_splits(path: Path) -> bool:
    return any(split_files(path, split) for split in SPLITS)


def data_files(folder: Path) -> list[Path]:
    """The files of a folder that can be read, sorted."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def load_hub(dataset: str, subset: str | None = None, *, split: str, revision: str | None = None) -> Any:
    """One split of a Hugging Face data set, or of a local folder that `datasets` can load. Errors: InputError."""
    place = hub_place(dataset, subset, split)
    from ilora.hub import within_reach  # here, since it takes a second

    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{place}: reading data sets needs the `datasets` library: pip install 'ilora[datasets]'"
        ) from None
    with within_reach(dataset, revision, kind="dataset"):
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
    marker: str | None = None,
    unanswered: str = "error",
    revision: str | None = None,
    selection: Selection | None = None,
) -> Sequence[Row]:
    """The rows of one split of a Hugging Face data set, or of a local folder of parquet, jsonl or csv files.

    split: the data set's own name (`validation`) or slice (`train[:500]`). Class labels are read by name. Needs the
    optional `datasets` library, and the network unless the data set is local or cached. Errors: InputError for a
    missing library, data set, split or column, and for unusable rows.
    """
    place = hub_place(dataset, subset, split)
    reader = RowReader(columns, marker=marker, place=place, unanswered=unanswered)
    data = load_hub(dataset, subset, split=split, revision=revision)
    try:
        form = reader.form(data.column_names)
    except Problem as problem:
        raise InputError(f"{place}: {problem}") from None
    data = data.select_columns([name for name in dict.fromkeys(form.columns) if name in data.column_names])
    entries = ((f"{place}, row {number}", entry) for number, entry in enumerate(named_labels(data), 1))
    chosen = selection.choose(lambda: len(data)) if selection else None
    rows = collect(entries, reader, place, chosen=chosen, selection=selection)
    if selection is not None:
        selection.note(reader.read_as)
    return rows


def named_labels(data: Any) -> Iterator[Mapping[str, Any]]:
    """The entries of a `datasets.Dataset` with class labels by name; the label -1 (unknown) becomes null."""
    labels = {name: feature.int2str for name, feature in data.features.items() if hasattr(feature, "int2str")}
    for entry in data:
        found = {name: entry[name] for name in labels}
        known = {
            name: labels[name](value) if value is not None and value >= 0 else None for name, value in found.items()
        }
        yield {**entry, **known}


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a task folder that are named for the split."""
    return [
        path for name in SPLIT_NAMES[split] for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()
    ]


def _file_names(splits: Sequence[str] = SPLITS) -> str:
    return f"{', '.join(' or '.join(SPLIT_NAMES[split][:2]) for split in splits)} as {', '.join(SUFFIXES)}"
