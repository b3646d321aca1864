"""Opening a run: what was interrupted in it is finished first. What that needs is imported only where it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ilora.early import config_of, own_run
from ilora.errors import InputError
from ilora.files import locked
from ilora.releases import journal

WriteReport = Callable[[Path], object]


def open_run(path: str | Path, report: WriteReport) -> Path:
    """A run folder that is nobody's part, after what was interrupted in it is finished. Every command begins so.

    report: writes report.html, where the change that has to be finished asks for it.
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
            finish(path, report)
    return path


def finish(run: Path, report: WriteReport) -> None:
    """Do all that is left of what is under way. To be called under the run's lock."""
    pending = journal.under_way(run)  # read under the lock: another process may have finished it
    if isinstance(pending, journal.Deletion):
        from ilora.releases import deletion

        deletion.finish(run, pending, report)
    elif isinstance(pending, journal.Adoption):
        from ilora.releases import adoption

        adoption.finish(run, pending, report)
    elif pending is not None and pending.what == "promote":
        from ilora.releases import promotion

        promotion.finish(run, pending)
    elif pending is not None:
        from ilora.releases import withdrawal

        withdrawal.finish(run, pending, report)
