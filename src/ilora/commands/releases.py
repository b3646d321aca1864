"""`ilora promote`, `rollback`, `history` and `forget`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilora.errors import IloraError
from ilora.files import locked
from ilora.gates.decision import brief, decide, judge_of, read_gate, write_gate
from ilora.releases import change
from ilora.releases import history as months
from ilora.releases.deletion import Left
from ilora.releases.opening import open_run
from ilora.releases.store import Release
from ilora.report.html import write_report
from ilora.results.reader import phase_labels, read_results


def promote(
    run: str | Path,
    *,
    gate: dict[str, Any] | None = None,
    note: str = "",
    server: str | None = None,
    force: bool = False,
    repaired: bool = False,
) -> Release:
    """Make a release of a run's last finished phase, and the current one.

    gate: what the gate found, as plain JSON, for the manifest; None: what RUN/gate.json says of the phase.
    force: also where the gate failed; the manifest and the history keep what it found.
    repaired: first take the adapter that `gate(run, repair=True)` found for the phase's own; the next `add` begins with
    it.
    note: why, for the history. server: the address of a vLLM or SGLang server, which loads the release and drops the
    one before; its key is in $ILORA_SERVER_KEY.
    Raises InputError, with nothing written, where the run is not finished or the phase is a release already, and
    IloraError, with the current release as it was, where the gate failed or the server refuses.
    """
    run = open_run(run, write_report)
    if repaired:
        _adopt(run, note)
    gate = _gate(run, force=force) if gate is None else gate
    if gate is not None and gate.get("outcome") == "failed" and not force:
        reasons = "".join(f"\n  {reason}" for reason in [*gate.get("fail", ()), *gate.get("undecidable", ())])
        raise IloraError(
            f"{run}: the gate failed for the last phase; --repaired promotes an adapter that "
            f"`ilora gate {run} --repair` found, and --force the phase all the same{reasons}"
        )
    release = change.promote(run, gate=gate, note=note, server=server, report=write_report)
    if (run / "report.html").is_file():
        write_report(run)
    return release


def _adopt(run: Path, note: str) -> None:
    """Take the repaired adapter for the last phase's own, and decide anew by the rules that it passed."""
    from ilora.gates.repaired import find_repaired  # here, as it imports torch

    folder, rules, source = find_repaired(run)
    if not folder.is_relative_to(run / "adapters"):  # else: taken already, by a command that was stopped
        change.adopt(run, folder, note=note, report=write_report)
    with locked(run, what="run"):
        write_gate(run, decide(judge_of(run, rules, source, None), source))


def _gate(run: Path, *, force: bool) -> dict[str, Any] | None:
    """The decision of `ilora gate` on the last phase, in short; None where it was not asked.

    Raises IloraError for a decision on files that have changed since, unless `force`.
    """
    if not (run / "results.json").is_file():
        return None
    label, kept = phase_labels(read_results(run))[-1], read_gate(run)
    if kept is None or kept["phase"] != label:
        return None
    decision = read_gate(run, label)
    if decision is None and not force:
        raise IloraError(f"{run}: files changed since the gate decided; `ilora gate {run}` decides again")
    return None if decision is None else brief(decision)


def rollback(run: str | Path, *, to: int | None = None, note: str = "", server: str | None = None) -> Release:
    """Go back to an earlier release (default: the one before the current one), memory and method state included.

    The next `add` starts from there; what came later is kept in RUN/releases/withdrawn/. server: as for `promote`.
    Raises InputError, with nothing changed, where there is no such release or it is damaged, and IloraError where the
    server refuses.
    """
    return change.rollback(run, to=to, note=note, server=server, report=write_report)


def history(run: str | Path) -> dict[str, Any]:
    """The months of a run (`phases`), its events and the number of its current release, as plain JSON."""
    return months.history(open_run(run, write_report))


def forget(run: str | Path, task: str) -> Left:
    """Delete a task's rows from a run, its releases and what was set aside: remembered rows, frames, predictions.

    Scores and adapters stay: this is deletion of data, not unlearning. Returns what it did not touch.
    Raises InputError, with nothing changed, where there is no such task, the run is not finished or is damaged.
    """
    return change.forget(run, task, report=write_report)
