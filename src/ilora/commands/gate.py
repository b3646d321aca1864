"""`ilora gate`: decide, measure what is missing, repair, and write what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilora.errors import InputError
from ilora.files import locked, write_atomic
from ilora.gates.decision import decide, judge_of, read_gate, write_gate
from ilora.gates.outputs import as_junit, as_markdown
from ilora.gates.rules import read_rules
from ilora.releases.opening import open_run
from ilora.results.reader import phase_labels, read_results, refuse_no_results

__all__ = ["gate", "read_gate", "write_outputs"]


def gate(
    run: str | Path,
    *,
    rules: str | Path | None = None,
    phase: int | None = None,
    probes: bool = False,
    repair: bool = False,
    train_hours: float | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Whether a phase of a run keeps the rules; returns the decision, which is also written to RUN/gate.json.

    rules: a file; None: RUN/gate.yaml, or else the defaults.
    phase: its number, from 1; None: the last one that was evaluated.
    probes: measure the general skills before and after, where they are not measured yet; this loads the model.
    repair: where the phase fails, look for an adapter that passes; it is written below RUN/gate/. What needs no
        training comes first; then the phase is trained again in other ways, below RUN/gate/, until one passes.
    train_hours: what that training may take together, by the time that the phase took; 0: no training; None: no limit.
    Returns `outcome` (`passed` or `failed`), `checks`, `advice` and what they stand on; see docs/practice.md.
    A decision on an earlier phase than the last is not kept.
    Raises InputError where the run, the phase or a rule cannot be used.
    """
    refuse_no_results(Path(run))
    if train_hours is not None and not (repair and train_hours >= 0):
        raise InputError(
            f"--train-hours: hours for --repair, 0 or more (got {train_hours}{'' if repair else ', and no --repair'})"
        )
    folder = open_run(run, _report)
    with locked(folder, what="run"):
        found, source = read_rules(folder, None if rules is None else Path(rules))
        if probes or repair:
            return _working(folder, found, source, phase, probes=probes, repair=repair, hours=train_hours, quiet=quiet)
        decision = decide(judge_of(folder, found, source, phase), source)
        _keep(folder, decision)
    return decision


def _report(run: Path) -> None:
    from ilora.report.html import write_report  # here: it draws, so it takes longer to import than to decide

    write_report(run)


def _keep(run: Path, decision: dict[str, Any]) -> None:
    """Write gate.json, and the report that begins with it. A decision on an earlier phase is not kept."""
    if decision["phase"] != phase_labels(read_results(run))[-1]:
        return
    write_gate(run, decision)
    if (run / "report.html").is_file():
        _report(run)


def _working(
    run: Path,
    rules: Any,
    source: str,
    phase: int | None,
    *,
    probes: bool,
    repair: bool,
    hours: float | None,
    quiet: bool,
) -> dict[str, Any]:
    """What needs the model, which takes long to import."""
    if probes:
        from ilora.gates.measuring import measure_probes

        measure_probes(run, phase, quiet=quiet)
    judge = judge_of(run, rules, source, phase)
    decision = decide(judge, source)
    if repair and decision["outcome"] == "failed":
        from ilora.gates.repair import repair_phase

        found = decision["repair"] = repair_phase(judge, source=source, hours=hours, quiet=quiet)
        tried = {one["candidate"] for one in found["tries"]}
        decision["advice"] = [
            entry
            for entry in decision["advice"]
            if not entry["command"].endswith("--repair") and entry.get("candidate") not in tried
        ]
    _keep(run, decision)
    return decision


def write_outputs(
    decision: dict[str, Any], *, json_file: Path | None, junit: Path | None, markdown: Path | None
) -> None:
    """The decision in other forms."""
    import json

    if json_file is not None:
        write_atomic(json_file, json.dumps(decision, ensure_ascii=False, indent=1) + "\n")
    if junit is not None:
        write_atomic(junit, as_junit(decision))
    if markdown is not None:
        write_atomic(markdown, as_markdown(decision))
