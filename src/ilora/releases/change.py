"""What changes a run and its line of releases as a whole: promote, rollback and forget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilora.errors import InputError
from ilora.files import locked
from ilora.releases import adoption, deletion, journal, promotion, withdrawal
from ilora.releases.candidate import candidate
from ilora.releases.opening import WriteReport, finish, open_run
from ilora.releases.server import Server, served_name
from ilora.releases.store import Release, read_release, refuse_without_links


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
        finish(run, report)
        refuse_without_links(run)
        journal.begin(run, promotion.prepare(candidate(run), gate=gate, note=note, server=serving))
        finish(run, report)
    return read_release(run)


def adopt(run: str | Path, repaired: Path, *, note: str = "", report: WriteReport) -> None:
    """Take a repaired adapter for the last phase's own, in the state that the next task begins with, too.

    repaired: the folder that `ilora gate --repair` wrote.
    Raises InputError, with nothing changed, where the run is not finished, the phase is a release already, or the
    adapter does not fit.
    """
    run = open_run(run, report)
    with locked(run, what="run"):
        finish(run, report)
        journal.begin(run, adoption.prepare(candidate(run), repaired, note=note))
        finish(run, report)


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
        finish(run, report)
        refuse_without_links(run)
        pending = withdrawal.prepare(run, to, note=note, server=serving)
        if serving is not None:
            _serve(serving, read_release(run, pending.number))
        journal.begin(run, pending)
        finish(run, report)
    return read_release(run)


def _serve(server: Server, release: Release) -> None:
    if release.adapter is None:
        raise InputError(f"{release.folder}: it answers with more than one adapter; no server takes it")
    server.load(served_name(release.folder), release.adapter)


def forget(run: str | Path, task: str, *, report: WriteReport) -> deletion.Left:
    """Delete the rows of a task wherever the run has them; the adapters stay. Returns what is for others to delete.

    Raises InputError, with nothing changed, where there is no such task, the run is not finished or something of it is
    damaged.
    """
    run = open_run(run, report)
    with locked(run, what="run"):
        finish(run, report)
        pending, left = deletion.prepare(run, task)
        journal.begin(run, pending)
        finish(run, report)
    return left
