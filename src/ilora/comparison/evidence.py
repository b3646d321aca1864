"""Evidence: what a comparison needs of its runs and nothing of their data, in one file that can be published.

    {"kind": "ilora evidence", "schema": 1,
    "tasks": {label: {"digest": of ids, prompts and references, "ids": [...] or (numbered from 0) what is before the
        number, then with "rows": how many}, ...},
    "runs": [{"name", "label", "results", "settings", "scores": {variant: [[cell, ...], ...]}}, ...]}

`scores` has the form of R with the zero-shot row above it. A cell is the scores of the task's rows in the order of its
ids: "0110" where all are 0 or 1, else a list of numbers; null where R has none. Every task and run has a line of its
own, so that a difference between two versions of a file is one of runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ilora.comparison.items import cell_scores
from ilora.comparison.run import Cell, Items, Run, used_results, used_settings
from ilora.comparison.statistics import Floats
from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.present.numbers import number, plain
from ilora.results.reader import check_results, task_labels

SCHEMA = 1
KIND = "ilora evidence"
_HEAD = f'{{"kind": "{KIND}", "schema": '


# -- written -------------------------------------------------------------------------------------------------------


def refuse_other(file: Path) -> None:
    """Raises InputError where evidence would replace something else."""
    if file.is_dir():
        raise InputError(f"{file}: a folder; --save names a file")
    if file.exists() and file.stat().st_size:
        with file.open("rb") as stream:
            if stream.read(len(_HEAD)) != _HEAD.encode():
                raise InputError(f"{file}: exists and is not evidence; --save names a new file, or one that it made")


def write_evidence(file: Path, runs: Sequence[Run]) -> None:
    """Raises InputError for a prediction file that is missing or does not give the score in results.json."""
    items = runs[0].items
    tasks = [f"{_json(label)}: {_json(_task(items, label))}" for label in items.ids]
    lines = [_json(_entry(run, name)) for run, name in zip(runs, _names(runs), strict=True)]
    text = f'{_HEAD}{SCHEMA},\n"tasks": {{\n{_joined(tasks)}\n}},\n"runs": [\n{_joined(lines)}\n]}}\n'
    write_atomic(file, text)


def _joined(parts: Sequence[str]) -> str:
    return ",\n".join(parts)


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _task(items: Items, label: str) -> dict[str, Any]:
    ids, digest = items.ids[label], items.digests[label]
    start = ids[0].removesuffix("0")
    if ids == _numbered(start, len(ids)):
        return {"digest": digest, "ids": start, "rows": len(ids)}
    return {"digest": digest, "ids": ids}


def _numbered(start: str, count: int) -> list[str]:
    return [f"{start}{n}" for n in range(count)]


def _names(runs: Sequence[Run]) -> list[str]:
    """Each run's, with a number where another has it: folders of one name may lie in different places."""
    made: list[str] = []
    for run in runs:
        name, count = run.name, 1
        while name in made:
            count += 1
            name = f"{run.name}-{count}"
        made.append(name)
    return made


def _entry(run: Run, name: str) -> dict[str, Any]:
    scores = {
        variant: [
            [
                None if mean is None else _encoded(cell_scores(run, variant, stage, label))
                for label, mean in zip(run.order, means, strict=True)
            ]
            for stage, means in enumerate(run.rows(variant))
        ]
        for variant in run.variants
    }
    return {"name": name, "label": run.own_label, "results": run.results, "settings": run.settings, "scores": scores}


def _encoded(scores: Floats) -> str | list[float]:
    if np.isin(scores, (0, 1)).all():
        return "".join("1" if score else "0" for score in scores)
    listed: list[float] = scores.tolist()
    return listed


# -- read ----------------------------------------------------------------------------------------------------------


def read_evidence(file: Path) -> list[Run]:
    """The runs of a file. Raises InputError naming the file, the run and what is wrong."""
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        _check_head(file, content)
        items = Items()
        for label, task in content["tasks"].items():
            items.ids[label], items.digests[label] = _read_task(f"{file}: tasks.{label}", task, most=len(text))
        runs = [_read_run(file, line, entry, items) for line, entry in enumerate(content["runs"], 1)]
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    names = [run.name for run in runs]
    _require(len(set(names)) == len(names), file, "two of its runs have one name")
    return runs


def _require(fits: bool, place: object, allowed: str) -> None:
    if not fits:
        raise InputError(f"{place}: {allowed}")


def _check_head(file: Path, content: Any) -> None:
    ours = isinstance(content, dict) and content.get("kind") == KIND
    _require(ours, file, "not evidence; `ilora compare RUN... --save FILE` makes a file of it")
    schema = content.get("schema")
    newer = isinstance(schema, int) and schema > SCHEMA
    advice = "a newer ilora wrote it" if newer else "the file is damaged"
    _require(schema == SCHEMA, file, f"schema {schema!r} is unknown; this version reads {SCHEMA}: {advice}")
    for key, kind in {"tasks": dict, "runs": list}.items():
        fits = isinstance(content.get(key), kind) and bool(content[key])
        _require(fits, file, f"'{key}' must be {'an object' if kind is dict else 'a list'} with something in it")


def _read_task(place: str, task: Any, *, most: int) -> tuple[list[str], str]:
    """The ids and the digest. most: of rows, more than these would not fit into the file."""
    _require(isinstance(task, dict), place, "expected an object with 'digest' and 'ids'")
    ids, rows, digest = task.get("ids"), task.get("rows"), task.get("digest")
    _require(
        isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None,
        place,
        f"'digest' must be a SHA-256 in 64 hexadecimal digits, found {plain(digest, 80)!r}",
    )
    if isinstance(ids, str):
        fits = isinstance(rows, int) and not isinstance(rows, bool) and 0 < rows <= most
        _require(fits, place, f"'rows' must be the number of test rows, found {plain(rows, 80)!r}")
        return _numbered(ids, rows), digest
    fits = isinstance(ids, list) and bool(ids) and all(isinstance(key, str) for key in ids)
    _require(fits and len(set(ids)) == len(ids), place, "'ids' must be a text, or a list of different texts")
    return ids, digest


def _read_run(file: Path, line: int, entry: Any, items: Items) -> Run:
    place = f"{file}, run {line}"
    _require(isinstance(entry, dict), place, "expected an object with name, label, results, settings and scores")
    name, label, settings, scores = (entry.get(key) for key in ("name", "label", "settings", "scores"))
    _require(_is_inner_path(name), place, f"'name' must be a relative path without '..', found {plain(name, 80)!r}")
    place = f"{file}: {plain(name)}"
    _require(isinstance(label, str) and bool(label.strip()), place, f"'label' must be a text, found {label!r}")
    _require(isinstance(settings, dict), place, "'settings' must be an object")
    results = used_results(check_results(entry.get("results"), f"{place}: results"), f"{place}: results")
    order = task_labels(results)
    for task in order:
        _require(task in items.ids, place, f"the task {task!r} is not among the file's tasks: {', '.join(items.ids)}")
    own = Items({task: items.ids[task] for task in order}, {task: items.digests[task] for task in order})
    cells = partial(_cell, place, scores, order, own)
    run = Run(place, plain(name), plain(label, 60), results, used_settings(settings), own, cells)
    _check_scores(run, scores)
    return run


def _is_inner_path(name: Any) -> bool:
    path = PurePosixPath(name) if isinstance(name, str) and name else PurePosixPath("/")
    return not path.is_absolute() and ".." not in path.parts


def _check_scores(run: Run, scores: Any) -> None:
    place, variants = f"{run.place}: scores", run.variants
    fits = isinstance(scores, dict) and set(scores) == set(variants)
    _require(fits, place, f"expected those of the variants {', '.join(variants)}")
    for variant in variants:
        rows, table = run.rows(variant), scores[variant]
        fits = isinstance(table, list) and all(isinstance(row, list) for row in table)
        _require(
            fits and [len(row) for row in table] == [len(row) for row in rows],
            f"{place}.{variant}",
            f"expected {len(rows)} rows of {len(run.order)} cells: the zero-shot row, and one for each phase",
        )
        for stage, cells in enumerate(table):
            for label, cell, mean in zip(run.order, cells, rows[stage], strict=True):
                here = f"{place}.{variant}, stage {stage}, task {label!r}"
                size = len(run.items.ids[label])
                if mean is None:
                    _require(cell is None, here, "expected null, as results have no score there")
                else:
                    allowed = f"expected {size} scores: a text of 0 and 1, or a list of numbers from 0 to 1"
                    _require(len(_decoded(cell)) == size, here, allowed)


def _decoded(cell: Any) -> list[float]:
    """The scores; none where this is not a cell."""
    if isinstance(cell, str):
        return [float(digit) for digit in cell] if set(cell) <= {"0", "1"} else []
    scores = [number(score) for score in cell] if isinstance(cell, list) else []
    known = [score for score in scores if score is not None and 0 <= score <= 1]
    return known if len(known) == len(scores) else []


def _cell(
    place: str, scores: Mapping[str, Any], order: Sequence[str], items: Items, stage: int, variant: str, label: str
) -> Cell:
    cell = scores[variant][stage][order.index(label)]
    return Cell(f"{place}: scores.{variant}, stage {stage}, task {label!r}", items.ids[label], _decoded(cell))
