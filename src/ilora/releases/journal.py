"""What is under way and what was done: releases/pending.json and releases/history.jsonl.

A promotion, a rollback or a deletion of rows is written down in pending.json before anything of the run changes, and
done from there. Each of its steps may be repeated, so that one that was killed is finished by the next command that
opens the run.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ilora.errors import InputError
from ilora.files import flush_folder, pending_file, write_atomic
from ilora.releases.manifest import Manifest, read_manifest
from ilora.releases.store import current, release_folder
from ilora.results.reader import Results, read_text, task_labels
from ilora.results.schema import Form, known_version, validated

FORMAT = 1


class Event(Form):
    """A line of history.jsonl. scores: of the answering variant, the summary and the last row of R.

    It may have more: a promotion `gate` (what the gate found, or None), a rollback `left` (the release before it), a
    repair `repaired` (how).
    `forget` has the task whose rows were deleted in `tasks`, and the current release, if there is one.
    """

    id: int = Field(ge=1)
    time: str
    event: str
    release: int | None = Field(ge=1)
    phase: str
    tasks: list[str]
    scores: dict[str, Any]
    note: str = ""
    ilora: str


class Pending(Form):
    """A promotion or a rollback that has begun.

    number: the release that becomes current.
    withdrawn: of a rollback, the number of the folder below releases/withdrawn/ that takes what is set aside.
    server: the address of a server that drops the release before at the end; of a promotion, it must take the new one
        first.
    """

    format: Annotated[int, known_version(FORMAT)] = FORMAT
    what: Literal["promote", "rollback"]
    number: int = Field(ge=1)
    withdrawn: int | None = None
    server: str | None = None
    event: Event


class Deletion(Form):
    """A deletion of a task's rows that has begun (`ilora forget`). day: of the deletion, in UTC."""

    format: Annotated[int, known_version(FORMAT)] = FORMAT
    what: Literal["forget"] = "forget"
    task: str
    day: str
    event: Event


class Adoption(Form):
    """A repaired adapter that is about to take the place of a phase's own (`ilora promote --repaired`).

    withdrawn: the number of the folder below releases/withdrawn/ that takes what is set aside.
    """

    format: Annotated[int, known_version(FORMAT)] = FORMAT
    what: Literal["repair"] = "repair"
    phase: str
    withdrawn: int = Field(ge=1)
    event: Event


Begun = Pending | Deletion | Adoption


def now() -> str:
    """The present time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def version() -> str:
    """The version of ilora that is at work."""
    return importlib.metadata.version("ilora")


def new_event(run: Path, what: str, manifest: Manifest, results: Results, **more: Any) -> Event:
    """The next line of the history, not written yet. more: further fields, as plain JSON; `note` among them."""
    variant = results["variants"][results["answers_with"]]
    last = dict(zip(task_labels(results), variant["R"][-1], strict=True)) if variant["R"] else {}
    return Event(
        id=next_id(run),
        time=now(),
        event=what,
        release=manifest.number,
        phase=manifest.phase,
        tasks=manifest.tasks,
        scores={"summary": variant.get("summary"), "tasks": last},
        ilora=version(),
        **more,
    )


def next_id(run: Path) -> int:
    """Of the next event. Not how many there are: somebody may have deleted a damaged line."""
    return max((event.id for event in events(run)), default=0) + 1


def line(run: Path) -> list[int]:
    """The numbers of the releases that led to the current one, the current one last; none that was left behind.

    The manifests say so; where one of them is damaged or missing, the history does. Raises InputError where neither
    can be read.
    """
    found: list[int] = []
    number = last = current(run)
    try:
        while number is not None and number not in found:
            found.append(number)
            number = read_manifest(release_folder(run, number)).previous
    except InputError:
        found = _line_told(run)[::-1]
        if found[:1] != [last]:
            raise
    return found[::-1]


def _line_told(run: Path) -> list[int]:
    """`line`, as the history tells it; empty where events are missing from it."""
    told = events(run)
    if [event.id for event in told] != list(range(1, len(told) + 1)):
        return []
    found: list[int] = []
    for event in told:
        if event.event == "promote" and event.release is not None:
            found.append(event.release)
        elif event.event == "rollback" and event.release in found:
            del found[found.index(event.release) + 1 :]
    return found


def events(run: Path) -> list[Event]:
    """The lines of releases/history.jsonl. Raises InputError naming a line that is damaged."""
    path = run / "releases" / "history.jsonl"
    if not path.is_file():
        return []
    found = []
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if text:
            try:
                found.append(validated(Event, json.loads(text), f"{path}:{number}"))
            except (json.JSONDecodeError, RecursionError, InputError) as error:
                why = str(error) if isinstance(error, InputError) else f"{path}:{number}: not JSON: {error}"
                raise InputError(
                    f"{why}. Mend the line or delete it: it tells of a change, and no release needs it"
                ) from None
    return found


def record(run: Path, event: Event) -> None:
    """Add a line to the history, unless it is there already."""
    lines = events(run)
    if all(line.id != event.id for line in lines):
        whole = [*lines, event]
        text = "".join(json.dumps(line.model_dump(mode="json"), ensure_ascii=False) + "\n" for line in whole)
        write_atomic(run / "releases" / "history.jsonl", text)


def begin(run: Path, pending: Begun) -> None:
    """Write down what is to be done; from here on it will be done."""
    write_atomic(pending_file(run), json.dumps(pending.model_dump(mode="json"), indent=1) + "\n")


def under_way(run: Path) -> Begun | None:
    """What was begun and is not finished. Raises InputError where pending.json is damaged."""
    path = pending_file(run)
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{path}: not valid JSON: {error}. Put it back from a copy, or move it away: then `ilora rollback {run} "
            "--to N` makes the run whole, as it was at release N"
        ) from error
    what = content.get("what") if isinstance(content, dict) else None
    if what == "forget":
        return validated(Deletion, content, str(path))
    return validated(Adoption, content, str(path)) if what == "repair" else validated(Pending, content, str(path))


def drop(run: Path) -> None:
    """What was begun is not done: nothing of it is left."""
    pending_file(run).unlink(missing_ok=True)
    flush_folder(run / "releases")


def finish(run: Path, pending: Begun) -> None:
    """The last step of all: a line in the history, and nothing is under way any more."""
    record(run, pending.event)
    drop(run)
