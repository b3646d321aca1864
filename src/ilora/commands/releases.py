"""`ilora promote`, `rollback` and `history`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilora.releases import change
from ilora.releases import history as months
from ilora.releases.store import Release
from ilora.report.html import write_report


def promote(
    run: str | Path, *, gate: dict[str, Any] | None = None, note: str = "", server: str | None = None
) -> Release:
    """Make a release of a run's last finished phase, and the current one.

    gate: what the gate found, as plain JSON, for the manifest. note: why, for the history. server: the address of a
    vLLM or SGLang server, which loads the release and drops the one before; its key is in $ILORA_SERVER_KEY.
    Raises InputError, with nothing written, where the run is not finished or the phase is a release already, and
    IloraError, with the current release as it was, where the server refuses.
    """
    return change.promote(run, gate=gate, note=note, server=server, report=write_report)


def rollback(run: str | Path, *, to: int | None = None, note: str = "", server: str | None = None) -> Release:
    """Go back to an earlier release (default: the one before the current one), memory and method state included.

    The next `add` starts from there; what came later is kept in RUN/releases/withdrawn/. server: as for `promote`.
    Raises InputError, with nothing changed, where there is no such release or it is damaged, and IloraError where the
    server refuses.
    """
    return change.rollback(run, to=to, note=note, server=server, report=write_report)


def history(run: str | Path) -> dict[str, Any]:
    """The months of a run (`phases`), its events and the number of its current release, as plain JSON."""
    return months.history(change.open_run(run, write_report))
