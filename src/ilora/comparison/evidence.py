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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ilora.comparison.items import cell_scores
from ilora.comparison.run import CellScores, Items, Run, used_results, used_settings
from ilora.comparison.schema import KIND, SCHEMA, CellPlace, EvidenceFile, EvidenceRun
from ilora.comparison.statistics import Floats
from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.present.numbers import plain
from ilora.results.reader import Results
from ilora.results.schema import validated

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
    if ids == [f"{start}{number}" for number in range(len(ids))]:
        return {"digest": digest, "ids": start, "rows": len(ids)}
    return {"digest": digest, "ids": ids}


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
    """The runs of a file. Raises InputError naming the file, the place in it and what is allowed there."""
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    evidence = validated(EvidenceFile, content, str(file), characters=len(text))
    # What counts of the results is taken from the file itself: the forms add defaults to it.
    written = [entry["results"] for entry in content["runs"]]
    return [_run(file, run, results, evidence) for run, results in zip(evidence.runs, written, strict=True)]


def _run(file: Path, run: EvidenceRun, results: Results, evidence: EvidenceFile) -> Run:
    order = run.results.labels
    items = Items(
        ids={label: evidence.tasks[label].ids for label in order},
        digests={label: evidence.tasks[label].digest for label in order},
    )
    place = f"{file}: {plain(run.name)}"
    return Run(
        place=place,
        name=plain(run.name),
        own_label=plain(run.label, 60),
        results=used_results(results),
        settings=used_settings(run.settings),
        items=items,
        read_cell=partial(_read_cell, place, run, items),
    )


def _read_cell(place: str, run: EvidenceRun, items: Items, stage: int, variant: str, label: str) -> CellScores:
    found = CellPlace(variant, stage, run.results.labels.index(label))
    scores = run.scores[variant][stage][found.task]
    return CellScores(f"{place}: {found.keys}", items.ids[label], scores or [])
