"""Where a task's rows come from: a package in TRACE's form, the original files, or the hub. All give the same rows."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ilora.data import tables
from ilora.data.duplicates import key
from ilora.data.formats import SPLIT_NAMES, hub_place, load_hub
from ilora.data.forms import RowReader
from ilora.data.rows import collect
from ilora.data.tables import Entry, Problem
from ilora.data.task import SPLITS, Row, Task
from ilora.errors import InputError
from ilora.registry import did_you_mean
from ilora.settings import TaskConfig

Original = Mapping[str, Any]
_PLAIN = RowReader({"prompt": "prompt", "answer": "answer"})


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub.

    splits: its own names of its splits, unless a task's `splits` name them.
    adapt: turns an entry into the form of the original files, where the two differ.
    """

    dataset: str
    subset: str | None = None
    splits: tuple[str, ...] = ("train", "validation", "test")
    adapt: Callable[[Original], Original] = lambda entry: entry


@dataclass(frozen=True)
class Spec:
    """One task of a benchmark.

    convert: makes (text, answer) of an entry of the original files, None of one that is not a row of the task.
    frame: what the prompt has before and after the text.
    folders: other names that the task's folder may have.
    parts: several original files together make a split.
    """

    name: str
    metric: str
    max_new_tokens: int
    frame: tuple[str, str]
    convert: Callable[[Original], tuple[str, str] | None]
    choices: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    parts: bool = False
    hub: Hub | None = None

    def row(self, entry: Any, adapt: Callable[[Original], Original] = lambda entry: entry) -> Row | None:
        """The row of an entry, which is in the package's form or, after `adapt`, in that of the original files."""
        if isinstance(entry, Problem):
            raise entry
        if isinstance(entry, Mapping) and {"prompt", "answer"} <= set(entry):
            return _PLAIN(entry)
        if not isinstance(entry, Mapping):
            raise Problem(f"the row is {tables.kind(entry)}; expected an object")
        try:
            made = self.convert(adapt(entry))
        except KeyError as error:
            has = ", ".join(map(repr, entry)) or "nothing"
            raise Problem(f"no {error} for {self.name}, and no 'prompt' and 'answer'; the row has {has}") from None
        return made and Row(self.frame[0] + made[0] + self.frame[1], made[1])

    def task(self, rows: Mapping[str, Sequence[Row]], source: str) -> Task:
        """The task with these rows."""
        return Task(
            self.name,
            rows,
            metric=self.metric,
            choices=self.choices,
            max_new_tokens=self.max_new_tokens,
            source=source,
            frame=self.frame,
        )


def read(spec: Spec, chosen: TaskConfig, folder: Path | None, resplit: bool) -> Task:
    """The task from its own folder, files or data set, else from `folder/<task>`, else from the hub.

    `_completed` makes up for missing splits.
    """
    refuse_columns(chosen)
    if chosen.dataset is not None or (folder is None and not chosen.placed):
        return _from_hub(spec, chosen, resplit)
    files, place = own_files(chosen), chosen.train
    if place is None:
        place = chosen.path or find_folder(folder or Path(), (spec.name, *spec.folders))
        files = files_by_split(place, parts=spec.parts)
    rows: dict[str, list[Row]] = {}
    left_out = 0
    for split, paths in files.items():
        for path in paths:
            made, without = _read_file(spec, path)
            left_out += without
            for own, found in made.items():  # a file of its own release may say for every row which split it is in
                rows.setdefault(own or split, []).extend(found)
    note = f" ({left_out} entries are no rows of this task)" if left_out else ""
    return spec.task(_completed(rows, str(place), resplit=resplit), f"{place}{note}")


def refuse_columns(chosen: TaskConfig) -> None:
    """Refuse `columns` for a task of a benchmark, which knows its own."""
    if chosen.columns:
        raise InputError(
            f"task '{chosen.name}': the benchmark knows the columns of its own tasks; leave `columns` out, or give the "
            "task another name, and a metric"
        )


def own_files(chosen: TaskConfig) -> dict[str, list[Path]]:
    """The files that a task names for its splits."""
    return {split: [path] for split in SPLITS if (path := getattr(chosen, split)) is not None}


def _read_file(spec: Spec, path: Path) -> tuple[dict[str, list[Row]], int]:
    """The rows by the split that each one names ("": none), and how many entries are not of this task."""
    splits: list[str] = []
    left_out = 0

    def convert(entry: Any) -> Row | None:
        nonlocal left_out
        made = spec.row(entry)
        if made is None:
            left_out += 1
        else:
            named = entry.get("split")
            splits.append(_SPLIT_OF_WORD.get(named, "") if isinstance(named, str) else "")
        return made

    rows = collect(tables.entries(path, original=True), convert, str(path), empty=True)
    by_split: dict[str, list[Row]] = {}
    for split, made in zip(splits, rows, strict=True):
        by_split.setdefault(split, []).append(made)
    return by_split, left_out


def _from_hub(spec: Spec, chosen: TaskConfig, resplit: bool) -> Task:
    hub, rows = _hub(spec, chosen), {}
    splits = {_SPLIT_OF_WORD[theirs]: theirs for theirs in hub.splits}
    if "splits" in chosen.model_fields_set:
        splits = {str(ours): theirs for ours, theirs in chosen.splits.items()}
    for ours, theirs in splits.items():
        place = hub_place(hub.dataset, hub.subset, theirs)
        data = _without_decoding(load_hub(hub.dataset, hub.subset, split=theirs, revision=chosen.revision))
        entries: Iterable[Entry] = ((f"{place}, row {number}", entry) for number, entry in enumerate(data, 1))
        rows[ours] = collect(entries, partial(spec.row, adapt=hub.adapt), place, empty=True)
    return spec.task(_completed(rows, hub.dataset, resplit=resplit), hub.dataset)


def _hub(spec: Spec, chosen: TaskConfig) -> Hub:
    """Where the task is on the hub. A data set that the task names is read as if it had the known one's columns."""
    if chosen.dataset is not None:
        known = spec.hub or Hub("")
        return replace(known, dataset=chosen.dataset, subset=chosen.subset or known.subset)
    assert spec.hub is not None  # the benchmark has refused it
    return spec.hub


def _without_decoding(data: Any) -> Any:
    """The data set with undecoded pictures: we only ask whether there is one."""
    for name, feature in data.features.items():
        if type(feature).__name__ == "Image":
            data = data.cast_column(name, type(feature)(decode=False))
    return data


_NO_ROWS = ("labels", "pid_splits")  # files beside the rows: O-LoRA's list of labels, ScienceQA's list of ids
_SPLIT_OF_WORD = {word: split for split, words in SPLIT_NAMES.items() for word in words}


def normal(name: str) -> str:
    """A name without case, dashes, underscores and spaces: `SST-2` = `sst2`."""
    return re.sub(r"[-_ ]", "", name).casefold()


def find_folder(folder: Path, names: Sequence[str]) -> Path:
    """The subfolder with one of these names, whatever its case, dashes and spaces."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one with a folder for each task")
    there = {normal(entry.name): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    for name in names:
        if normal(name) in there:
            return there[normal(name)]
    known = sorted(entry.name for entry in there.values())
    listed = ", ".join(known) or "none"
    raise InputError(f"{folder}: no folder '{names[0]}'{did_you_mean(names[0], known)}; folders there: {listed}")


def files_by_split(folder: Path, *, parts: bool = False) -> dict[str, list[Path]]:
    """The data files of each split. Files whose names tell no split are under "", if no other file names one.

    Where a split has a file with its exact name (`train.json`), its other files are left out. A split may also be a
    folder with one file for each entry.
    parts: several files may make up a split.
    Raises InputError where there is no folder or no file, and for several files of one split.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one with a task's files")
    found = {split: _exact_or_all(files) for split, files in _by_name(folder).items() if files}
    if not found:
        raise InputError(f"{folder}: no data files; expected {', '.join(tables.SUFFIXES)}")
    for split, files in found.items():
        in_folders = any(file.parent != folder for file in files)
        if len(files) > 1 and not parts and not in_folders:
            names = ", ".join(file.name for file in files)
            raise InputError(f"{folder}: several files for {split or 'all splits'}: {names}; keep one of them")
    named = {split: files for split, files in found.items() if split}
    return named or found  # beside named splits, a file of another name is a list of ids or the like


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """All data files, by the split that their names or folders tell."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name.lower() in _SPLIT_OF_WORD:
            found.setdefault(_SPLIT_OF_WORD[entry.name.lower()], []).extend(sorted(entry.glob("*.json")))
        elif entry.suffix in tables.SUFFIXES and entry.stem not in _NO_ROWS:
            found.setdefault(_split_of(entry.stem), []).append(entry)
    return found


def _exact_or_all(files: list[Path]) -> list[Path]:
    return [file for file in files if file.stem.lower() in _SPLIT_OF_WORD] or files


def _split_of(stem: str) -> str:
    words = re.split(r"[^a-z]+", stem.lower())
    return next((_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD), "")


def _completed(rows: Mapping[str, Sequence[Row]], place: str, *, resplit: bool) -> dict[str, Sequence[Row]]:
    """All three splits. Eval replaces a missing test, and a tenth of train a missing eval.

    resplit: divide all rows anew instead, 8 : 1 : 1. A row's prompt alone decides its split, so that equal prompts stay
    together.
    """
    filled = {split: found for split, found in rows.items() if found}
    if resplit:
        pool = [item for found in filled.values() for item in found]
        return {split: [item for item in pool if tenth(item) == split] for split in SPLITS}
    if "train" in filled and "eval" in filled and "test" not in filled:
        filled["test"] = filled.pop("eval")  # the official test answers are often not public
    missing = [split for split in ("train", "test") if split not in filled]
    if missing:
        raise InputError(
            f"{place}: no {' and no '.join(missing)} rows with an answer; "
            "`data.resplit: true` divides the rows that are there 8 : 1 : 1"
        )
    if "eval" not in filled:
        filled = filled | {
            "train": [item for item in filled["train"] if tenth(item) != "eval"],
            "eval": [item for item in filled["train"] if tenth(item) == "eval"],
        }
    return {split: filled[split] for split in SPLITS}


def tenth(item: Row) -> str:
    """The split of a row by the hash of its prompt: of ten rows, one goes to eval and one to test.

    Rows that `duplicates` takes for the same go to the same split.
    """
    return {0: "eval", 1: "test"}.get(zlib.crc32(key(item)) % 10, "train")
