"""What to try where the gate failed, from the run itself, in the order of what it costs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ilora.errors import InputError
from ilora.files import from_yaml
from ilora.gates.judge import Check
from ilora.present.numbers import plain
from ilora.results.reader import Results, deleted, read_text, task_labels

MORE_MEMORY, PLUS, LONGER = "more memory", "ilora+", "longer training"  # candidates of `--repair`
LEARNT = ("least", "gain")  # rules that ask for more learning, not for less


def advice(
    run: Path, results: Results, checks: Sequence[Check], *, number: int, release: int | None, strict: bool = False
) -> list[dict[str, str]]:
    """`what` to try, `why`, and the `command`; empty where nothing failed.

    `ilora gate --repair` tries most of it itself: what has that command, and what names the `candidate` of a trial.
    number: of the phase. release: the one that the phase follows, if there is one. strict: whether a rule that too few
    rows cannot decide fails.
    """
    failed = [check for check in checks if check.verdict == "fail"]
    lost = [check for check in failed if check.rule not in LEARNT]
    method = _method(run)
    found = _without_training(run, results, number, remembers=bool(method.get("memory_size"))) if lost else []
    if lost:
        gone = {task_labels(results)[number] for number in deleted(results)}  # no rows to train on again
        found += _with_training(run, method, worst([check for check in lost if check.subject not in gone]), release)
    if any(check.rule in LEARNT for check in failed):
        epochs = shlex.join(["ilora", "add", str(run), "TASK", "training.epochs=5"])
        command = _after_going_back(run, release, epochs)
        found.append(_entry("train the new task longer", "its own score is below the rule", command, LONGER))
    if strict and any(check.verdict == "undecidable" for check in checks):
        more = shlex.join(["ilora", "gate", "--show-rules"])
        found.append(_entry("more test rows", "few_rows: fail, and too few rows cannot decide a rule", more))
    return found


def _without_training(run: Path, results: Results, number: int, *, remembers: bool) -> list[dict[str, str]]:
    """remembers: the method has a replay memory, without which `connect --select` does not see the earlier tasks."""
    found, repair = [], shlex.join(["ilora", "gate", str(run), "--repair"])
    if len(results["variants"]) > 1:
        others = ", ".join(plain(name, 40) for name in results["variants"] if name != results["answers_with"])
        found.append(_entry("another adapter of the method", f"{others} was trained and scored, too", repair))
    if number > 1 and results.get("adapter"):
        found.append(
            _entry(
                "another point on the path between the adapter before and now",
                "between two minima there often is a point that is good at both",
                shlex.join(["ilora", "connect", str(run), "--select"]) if remembers else repair,
                "path",
            )
        )
        found.append(
            _entry("a smaller last update", "it is shrunk until the rules hold (STABLE, arXiv 2510.16089)", repair)
        )
    return found


def _with_training(
    run: Path, method: Mapping[str, Any], worst: Check | None, release: int | None
) -> list[dict[str, str]]:
    add = ["ilora", "add", str(run), "TASK"]
    size, found = method.get("memory_size"), []
    if isinstance(size, int) and size > 0:
        larger = shlex.join([*add, f"method.memory_size={2 * size}"])
        command = _after_going_back(run, release, larger)
        found.append(_entry("more memory", f"it has {size} rows now", command, MORE_MEMORY))
    if method.get("name") != PLUS:
        other = shlex.join(["ilora", "run", str(run / "config.yaml"), "method=ilora+", "--out", f"{run}-ilora-plus"])
        found.append(
            _entry("the method ilora+", "it also asks the earlier tasks' questions about present texts", other, PLUS)
        )
    if worst is not None:
        again = shlex.join(["ilora", "add", str(run), f"{worst.subject}-again.jsonl", "training.epochs=1"])
        why = f"it lost the most, {worst.lost:.1f} points; the file holds rows of it under a name of its own"
        found.append(_entry(f"train task {worst.subject} again", why, again))
    return found


def worst(lost: Sequence[Check]) -> Check | None:
    """Of checks that failed, that of the task that lost the most; None where no task lost."""
    return max(
        (check for check in lost if check.rule in ("best", "release")), key=lambda check: check.lost, default=None
    )


def _after_going_back(run: Path, release: int | None, command: str) -> str:
    """The command on what the run was before the phase; without a release there is no way back to it."""
    if release is None:
        return f"{command}   # in a new run: this one has no release to go back to"
    return f"{shlex.join(['ilora', 'rollback', str(run), '--to', str(release)])} && {command}"


def _entry(what: str, why: str, command: str, candidate: str = "") -> dict[str, str]:
    """candidate: of `--repair`, which makes the entry needless once it was tried."""
    return {"what": what, "why": why, "command": command} | ({"candidate": candidate} if candidate else {})


def _method(run: Path) -> Mapping[str, Any]:
    """The method's section of config.yaml, which is written out in full."""
    file = run / "config.yaml"
    try:
        content = from_yaml(read_text(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid YAML: {error}") from None
    method = content.get("method") if isinstance(content, dict) else None
    return method if isinstance(method, dict) else {"name": method}
