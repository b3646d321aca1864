"""The decision as data, and RUN/gate.json, where it is kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.gates.advice import advice
from ilora.gates.evidence import Evidence, digest
from ilora.gates.judge import Check, Judge, Verdict, failed, notes
from ilora.gates.rules import FILE as RULES
from ilora.gates.rules import Rules, are_of_run
from ilora.results.reader import read_text
from ilora.results.schema import Form, known_version, validated

FILE = "gate.json"
FORMAT = 1


class _Check(Form):
    rule: str
    subject: str
    against: str
    unit: Literal["points", "per cent", "nats"]
    limit: float
    before: float
    now: float
    lost: float
    verdict: Verdict
    why: str
    low: float | None
    high: float | None
    rows: int | None


class _Advice(Form):
    what: str
    why: str
    command: str


class _Chosen(Form):
    split: str
    before: float
    now: float


class _Try(Form):
    candidate: str
    outcome: str
    checks: list[_Check]
    scores: dict[str, float] = Field(default_factory=dict)
    chosen_on: dict[str, _Chosen] = Field(default_factory=dict)
    t: float = 0.0
    c: float = 0.0


class _Repair(Form):
    passed: str | None
    adapter: str | None
    command: str | None = None
    tries: list[_Try]
    notes: list[str]


class _Strictness(Form):
    few_rows: Literal["pass", "fail"]


class Decision(Form):
    """gate.json, as far as its readers rely on it."""

    format: Annotated[int, known_version(FORMAT)]
    outcome: Literal["passed", "failed"]
    phase: str
    run: str
    checks: list[_Check]
    advice: list[_Advice]
    notes: list[str]
    repair: _Repair | None
    rules: _Strictness
    files: dict[str, str | None]


def decide(judge: Judge, source: str) -> dict[str, Any]:
    """The decision on a phase, as plain JSON, with all that it stood on. source: where the rules come from."""
    evidence, rules = judge.evidence, judge.rules
    checks = judge.judge(evidence.now(), evidence.ability(evidence.phase))
    read = {RULES: digest(evidence.run / RULES)} if are_of_run(evidence.run, source) else {}
    return {
        "format": FORMAT,
        "outcome": outcome(rules, checks),
        "run": str(evidence.results.get("name", "run")),
        "phase": evidence.phase,
        "method": evidence.results.get("method"),
        "answers_with": evidence.answering,
        "release": None if judge.release is None else {"number": judge.release[0], "phase": judge.release[1]},
        "checks": [check.content() for check in checks],
        "notes": notes(judge),
        "advice": advice(
            evidence.run,
            evidence.results,
            checks,
            number=evidence.number,
            release=None if judge.release is None else judge.release[0],
            strict=rules.few_rows == "fail",
        ),
        "repair": None,
        "rules": rules.model_dump(mode="json"),
        "rules_from": source,
        "comparisons": judge.comparisons,
        "files": dict(sorted((evidence.files | read).items())),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def outcome(rules: Rules, checks: list[Check]) -> str:
    """`passed` or `failed`."""
    return "failed" if failed(rules, checks) else "passed"


def write_gate(run: Path, decision: dict[str, Any]) -> None:
    """Keep the decision in RUN/gate.json."""
    write_atomic(run / FILE, json.dumps(decision, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_gate(run: str | Path, phase: str | None = None) -> dict[str, Any] | None:
    """The decision that a run folder holds; None where there is none.

    phase: its label; a decision on another phase, or on files that have changed since, is none.
    Raises InputError for a damaged file.
    """
    file = Path(run) / FILE
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON: {error}") from None
    found = validated(Decision, content, str(file))
    if phase is not None and (found.phase != phase or not _fresh(Path(run), found)):
        return None
    return content


def brief(decision: dict[str, Any]) -> dict[str, Any]:
    """The decision for a release's manifest: `outcome`, `time`, and a sentence for each rule that did not pass."""
    found: dict[str, Any] = {key: decision.get(key) for key in ("outcome", "time", "rules_from")}
    for verdict in ("fail", "undecidable"):
        found[verdict] = [
            f"{check['subject']}, {check['rule']}: {check['why']}"
            for check in decision["checks"]
            if check["verdict"] == verdict
        ]
    return found


def _fresh(run: Path, decision: Decision) -> bool:
    return all(digest(run / name) == known for name, known in decision.files.items())


def judge_of(run: Path, rules: Rules, source: str, number: int | None) -> Judge:
    """The judge of a phase. Raises InputError for a phase without scores, and for rules of tasks that are not there."""
    evidence = Evidence(run, number)
    rules.refuse_unknown(evidence.labels, source)
    return Judge(rules, evidence)
