"""Making a release of a candidate: its folder is complete before anything points at it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ilora.errors import IloraError, InputError
from ilora.files import flush_folder, flush_tree, link_or_copy, write_flushed
from ilora.releases import journal
from ilora.releases.candidate import Candidate, Part
from ilora.releases.card import card
from ilora.releases.journal import Pending
from ilora.releases.manifest import read_manifest, write_manifest
from ilora.releases.server import Server, retire, served_name
from ilora.releases.store import current, numbers, point_to, read_release, release_folder
from ilora.results.reader import phase_names, prompt_template, read_text

REPAIR = "repair.json"  # beside the weights of an adapter that was repaired
GROWING = ("adapters", "trajectory", "data", "contrast")  # folders of a run that get entries with time


def prepare(candidate: Candidate, *, gate: dict[str, Any] | None, note: str, server: Server | None = None) -> Pending:
    """Write the release's folder under a scratch name. Raises InputError where the phase is a release already."""
    run = candidate.run
    refuse_twice(candidate)
    if server is not None and candidate.adapter is None:
        raise InputError(f"{run}: {candidate.results['method']} answers with more than one adapter; no server takes it")
    given = [event.release for event in journal.events(run) if event.release is not None]
    number = max([*numbers(run), *given], default=0) + 1
    scratch = _scratch(run, number)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        for part in candidate.parts:
            _write_part(scratch / part.place, part)
        adapter = _copy_adapter(candidate, scratch)
        _write_json(scratch / "data.json", _fingerprints(candidate.parts[0]))
        content = _content(candidate, number, adapter) | {"gate": gate, "note": note}
        write_flushed(scratch / "card.md", card(content, candidate.results).encode())
        write_manifest(scratch, content)
        flush_tree(scratch)
    except InputError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise IloraError(f"{release_folder(run, number)}: cannot write the release: {error}") from error
    event = journal.new_event(run, "promote", read_manifest(scratch), candidate.results, note=note, gate=gate)
    return Pending(what="promote", number=number, server=server.url if server else None, event=event)


def finish(run: Path, pending: Pending) -> None:
    """Give the folder its name, and make it the current release.

    Raises IloraError, with nothing left of the promotion, where a server does not take it.
    """
    scratch, final = _scratch(run, pending.number), release_folder(run, pending.number)
    if not final.exists():
        scratch.rename(final)
        flush_folder(final.parent)
    if pending.server is not None and current(run) != pending.number:  # once it is current, it is done
        try:
            Server(pending.server).load(served_name(final), final / "adapter")
        except IloraError:
            final.rename(scratch)
            journal.drop(run)
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    point_to(run, pending.number)
    before = read_manifest(final).previous
    if pending.server is not None and before is not None:
        retire(Server(pending.server), release_folder(run, before))
    journal.finish(run, pending)


def entries(folder: Path) -> Iterator[str]:
    """What grows with each phase in the folder of a run or a contrast run, as paths in it."""
    for name in GROWING:
        yield from (f"{name}/{path.name}" for path in sorted((folder / name).glob("*")))
    for path in sorted((folder / "predictions").rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _scratch(run: Path, number: int) -> Path:
    return run / "releases" / f".{number}-writing"


def refuse_twice(candidate: Candidate) -> None:
    """Raises InputError for a phase that is the current release. A damaged one may be made anew."""
    number = current(candidate.run)
    if number is None:
        return
    try:
        found = read_release(candidate.run, number).manifest
    except InputError:
        return
    if len(found.phases) == len(phase_names(candidate.results)):
        raise InputError(f"{candidate.run}: phase {candidate.phase} is release {number} already")


def _write_part(target: Path, part: Part) -> None:
    """The state, scores and configuration of the run or of a contrast run.

    Checkpoints are only ever dropped, never changed, so that their files may be shared with the release.
    """
    (target / "state").mkdir(parents=True)
    for file in sorted(part.state.iterdir()):
        link_or_copy(file, target / "state" / file.name)
    shutil.copyfile(part.folder / "results.json", target / "scores.json")
    shutil.copyfile(part.folder / "config.yaml", target / "config.yaml")


def _copy_adapter(candidate: Candidate, scratch: Path) -> str | None:
    """Copied, not linked: people work on adapter folders. Raises InputError where a file of weights is cut off."""
    if candidate.adapter is None:
        name, source = "adapters", candidate.run / "adapters" / candidate.phase
    else:
        name, source = "adapter", candidate.adapter
    if not source.is_dir():
        raise InputError(f"{source}: is missing, no release can be made without it")
    shutil.copytree(source, scratch / name)
    for file in (scratch / name).rglob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            place = source / file.relative_to(scratch / name)
            raise InputError(f"{place}: damaged, no release can be made of it: {error}") from None
    return None if candidate.adapter is None else name


def _content(candidate: Candidate, number: int, adapter: str | None) -> dict[str, Any]:
    """The fields of the manifest."""
    results, part = candidate.results, candidate.parts[0]
    return {
        "number": number,
        "previous": current(candidate.run),
        "phase": candidate.phase,
        "phases": phase_names(results),
        "tasks": [task["name"] for task in results["tasks"]],
        "method": results["method"],
        "answers_with": results["answers_with"],
        "adapter": adapter,
        "base": part.values.get("base"),
        "tokenizer_sha256": results.get("tokenizer_sha256"),
        "template": prompt_template(results),
        "steps": part.values["counters"]["steps"],
        "repaired": None if candidate.adapter is None else repair_told(candidate.adapter),
        "created": journal.now(),
        "ilora": journal.version(),
        "run": [f"{one.place}/{entry}".lstrip("/") for one in candidate.parts for entry in entries(one.folder)],
    }


def repair_told(adapter: Path) -> dict[str, Any] | None:
    """How an adapter was repaired: candidate, its place between two adapters, phase; None where it was not."""
    file = adapter / REPAIR
    if not file.is_file():
        return None
    try:
        told = json.loads(read_text(file))
        return {key: told[key] for key in ("candidate", "space", "t", "c", "settings", "phase") if key in told}
    except (ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None


def _fingerprints(part: Part) -> list[dict[str, Any]]:
    """What data.json says of every task."""
    found = []
    for task, fingerprint in zip(part.results["tasks"], part.values["fingerprints"], strict=True):
        rows = {split: task[split] for split in ("train", "eval", "test") if split in task}
        kept = {key: task.get(key) for key in ("name", "label", "source", "train_sha256")}
        found.append(kept | {"rows": rows, "fingerprint": fingerprint})
    return found


def _write_json(path: Path, content: Any) -> None:
    write_flushed(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
