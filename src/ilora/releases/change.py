"""What changes a run and its line of releases as a whole: promote, rollback, forget, and the end of one that was
interrupted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ilora.early import config_of, own_run
from ilora.errors import IloraError, InputError
from ilora.files import locked
from ilora.releases import deletion, journal, promotion, withdrawal
from ilora.releases.candidate import candidate
from ilora.releases.server import Server
from ilora.releases.store import Release, current, read_release, refuse_without_links, release_folder

WriteReport = Callable[[Path], object]


def open_run(path: str | Path, report: WriteReport) -> Path:
    """A run folder that is nobody's part, after what was interrupted in it is finished. Every command begins so.

    report: writes report.html, where a rollback has to be finished.
    Raises InputError where it is no run folder, or a contrast run, whose run's lock and configuration rule over it.
    """
    path = own_run(path)
    config_of(path)
    if journal.under_way(path) is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"{path}: a promotion, a rollback or a deletion was interrupted; `ilora history {path}` finishes it"
            )
        with locked(path, what="run"):
            _finish(path, report)
    return path


def _finish(run: Path, report: WriteReport) -> None:
    pending = journal.under_way(run)  # read under the lock: another process may have finished it
    if isinstance(pending, journal.Deletion):
        deletion.finish(run, pending, report)
    elif pending is not None and pending.what == "promote":
        promotion.finish(run, pending)
    elif pending is not None:
        withdrawal.finish(run, pending, report)


def promote(
    run: str | Path,
    *,
    gate: dict[str, Any] | None = None,
    note: str = "",
    server: str | None = None,
    report: WriteReport,
) -> Release:
    """Make a release of the last finished phase, and the current one.

    gate: what the gate found, as plain JSON. note: why, for the history. server: the address of a vLLM or SGLang server
    that loads the release, and then drops the one before.
    Raises InputError, with nothing written, where the run is not finished or the phase is a release already, and
    IloraError, with the current release as it was, where the server refuses.
    """
    run, serving = open_run(run, report), None if server is None else Server(server)
    with locked(run, what="run"):
        _finish(run, report)
        refuse_without_links(run)
        before = current(run)
        journal.begin(run, promotion.prepare(candidate(run), gate=gate, note=note, server=serving))
        _finish(run, report)
    release = read_release(run)
    if serving is not None and before is not None:
        _drop(serving, run, before)
    return release


def rollback(
    run: str | Path, *, to: int | None = None, note: str = "", server: str | None = None, report: WriteReport
) -> Release:
    """Go back to an earlier release (default: the one before the current one), memory and method state included.

    The next `add` starts from there. What came later is kept in releases/withdrawn/.
    server: as for `promote`; it loads the earlier release before anything changes.
    Raises InputError, with nothing changed, where there is no such release or it is damaged, and IloraError where the
    server refuses.
    """
    run, serving = open_run(run, report), None if server is None else Server(server)
    with locked(run, what="run"):
        _finish(run, report)
        refuse_without_links(run)
        before, pending = current(run), withdrawal.prepare(run, to, note=note)
        if serving is not None:
            _serve(serving, read_release(run, pending.number))
        journal.begin(run, pending)
        _finish(run, report)
    release = read_release(run)
    if serving is not None and before is not None and before != release.number:
        _drop(serving, run, before)
    return release


def _serve(server: Server, release: Release) -> None:
    if release.adapter is None:
        raise InputError(f"{release.folder}: it answers with more than one adapter; no server takes it")
    server.load(promotion.served_name(release.folder), release.adapter)


def _drop(server: Server, run: Path, number: int) -> None:
    """Unload a release. The new one is current already, so a refusal is a warning."""
    try:
        server.unload(promotion.served_name(release_folder(run, number)))
    except IloraError as error:
        warnings.warn(f"{error}; release {number} is still served", stacklevel=3)


def forget(run: str | Path, task: str, *, report: WriteReport) -> deletion.Left:
    """Delete the rows of a task wherever the run has them; the adapters stay. Returns what is for others to delete.

    Raises InputError, with nothing changed, where there is no such task, the run is not finished or something of it is
    damaged.
    """
    run = open_run(run, report)
    with locked(run, what="run"):
        _finish(run, report)
        pending, left = deletion.prepare(run, task)
        journal.begin(run, pending)
        _finish(run, report)
    return left
