"""The table of months: every phase of a run, what it scored, what became of it, and when the run went back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from ilora.errors import InputError
from ilora.present.numbers import plain, points
from ilora.releases.journal import events, line
from ilora.releases.manifest import Manifest, read_manifest
from ilora.releases.store import Release, current, numbers, release_folder
from ilora.results.matrix import forgetting, mean_of_all, overall_performance, still_scored
from ilora.results.reader import (
    Results,
    changes,
    matrix,
    other_templates,
    phase_labels,
    phase_names,
    read_results,
    retired,
)

_COLUMNS = ("phase", "tasks", "date", "score", "mean", "forgotten", "release", "gate", "state")
_WHOLE = ("date", "release", "state")  # on a narrow terminal the others are folded
_NUMBERS = ("score", "mean", "forgotten", "release")


def history(run: Path) -> dict[str, Any]:
    """The months and events of a run, as plain JSON.

    `phases`: by phase and release, each with `phase`, `tasks`, `date` (UTC), `score` (of its own task just after it),
    `mean` (over the tasks so far) and `forgotten`, all in [0, 1] or None; `release` (a number or None), `state`
    (`candidate`: finished, no release; `earlier`: a later phase was trained on it; `released`, `current`, or
    `withdrawn`: a rollback left it behind), `gate` (what it found) and `note`.
    `changes`: a sentence for each task with which settings changed, or whose prompts stand in a template of its own.
    `events`: the lines of releases/history.jsonl. `damaged`: a sentence for each release whose manifest is.
    """
    now, led = current(run), line(run)
    releases, damaged = _manifests(run)
    of_phase = {len(manifest.phases): manifest for manifest in releases if manifest.number in led}
    months, changed = [], []
    if (run / "results.json").is_file():
        results = read_results(run)
        changed = [f"from {change}" for change in changes(results)]
        changed += [f"{name}: prompts in the template {own}" for name, own in other_templates(results).items()]
        months = [
            _month(run, results, number, of_phase.get(number), now)
            for number in range(1, len(matrix(results, results["answers_with"])) + 1)
        ]
    for manifest in releases:
        if manifest.number not in led:
            then = Release(release_folder(run, manifest.number), manifest).scores()
            months.append(_month(run, then, len(manifest.phases), manifest, now) | {"state": "withdrawn"})
    months.sort(key=lambda month: (month.pop("number"), month["release"] is None, month["release"] or 0))
    told = [event.model_dump(mode="json") for event in events(run)]
    return {"current": now, "phases": months, "changes": changed, "events": told, "damaged": damaged}


def _manifests(run: Path) -> tuple[list[Manifest], list[str]]:
    """The manifests of all releases, and what is wrong with those that cannot be read."""
    found, damaged = [], []
    for number in numbers(run):
        try:
            found.append(read_manifest(release_folder(run, number)))
        except InputError as error:
            damaged.append(f"release {number}: {error}")
    return found, damaged


def _month(run: Path, results: Results, number: int, manifest: Manifest | None, now: int | None) -> dict[str, Any]:
    """A line of the table. number: of the phase, from 1."""
    names, rows = phase_names(results)[:number], matrix(results, results["answers_with"])
    label, joint = phase_labels(results)[number - 1], results.get("stream") == "joint"
    tasks = [task["name"] for task in results["tasks"]]
    row = rows[number - 1] if number <= len(rows) else [None] * len(tasks)
    counted = still_scored(rows[:number], retired(results))
    square = [[rows[k][task] for task in counted] for k in counted]
    last = number == len(phase_names(results)) and results.get("complete")
    state = ("candidate" if last else "earlier") if manifest is None else "released"
    return {
        "number": number,
        "phase": label,
        "tasks": tasks if joint else names[-1:],
        "date": manifest.created if manifest else _date(run / "adapters" / label),
        "score": None if joint else row[number - 1],
        "mean": mean_of_all(row) if joint else overall_performance(square),
        "forgotten": None if joint or not square else forgetting(square),
        "release": manifest.number if manifest else None,
        "state": "current" if manifest and manifest.number == now else state,
        "repaired": manifest.repaired if manifest else None,
        "gate": manifest.gate if manifest else None,
        "note": manifest.note if manifest else "",
    }


def history_table(found: Mapping[str, Any]) -> Table:
    """`history` as a table, with what went back in its caption."""
    table = Table(box=None, pad_edge=False, caption=_caption(found), caption_justify="left")
    for column in _COLUMNS:
        justify: Literal["left", "right"] = "right" if column in _NUMBERS else "left"
        table.add_column(column, justify=justify, no_wrap=column in _WHOLE)
    for month in found["phases"]:
        shown = month | {key: points(month[key]) for key in ("score", "mean", "forgotten")}
        shown["tasks"] = ", ".join(month["tasks"])
        shown["date"] = (month["date"] or "")[:10]
        shown["release"] = "" if month["release"] is None else month["release"]
        shown["gate"] = "" if month["gate"] is None else month["gate"].get("outcome", "asked")
        if month["repaired"]:
            shown["gate"] = "repaired" if shown["gate"] in ("", "passed") else f"{shown['gate']}, repaired"
        style = {"current": "bold", "withdrawn": "dim"}.get(month["state"], "")
        table.add_row(*(Text(plain(shown[column], 40)) for column in _COLUMNS), style=style)
    return table


def _caption(found: Mapping[str, Any]) -> Text:
    """One line for each change of settings, each event that is no promotion, and each damaged release."""
    told = [
        f"{line['time'][:16]} {line['event']}: {_what(line)}"
        + (f" (from {line['left']})" if line.get("left") else "")
        + (f": {line['note']}" if line["note"] else "")
        for line in found["events"]
        if line["event"] != "promote"
    ]
    return Text("\n".join(plain(text, 200) for text in [*found["changes"], *told, *found["damaged"]]))


def _what(line: Mapping[str, Any]) -> str:
    if line["event"] == "repair":
        return f"phase {line['phase']}, {line['repaired']['candidate']}"
    return ", ".join(line["tasks"]) if line["event"] == "forget" else f"release {line['release']}"


def _date(folder: Path) -> str | None:
    """When an adapter folder was written, in UTC; None where there is none."""
    if not folder.is_dir():
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(folder.stat().st_mtime))
