"""The decision: every rule on every task, with the noise of the rows.

A loss fails a rule where it is above the limit and its interval leaves 0 out, or where it is above the hard limit.
With fewer rows than it takes to see a loss of the limit, a rule that does not fail is undecidable. With more, the limit
alone decides: the interval of a loss above it then leaves 0 out.

All intervals of a gate together have the confidence of the rules (Bonferroni). The best so far is the best of several
phases, so each of these counts: the best of many equal scores looks better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from scipy import special

from ilora.gates.evidence import Ability, Evidence, Rows, paired
from ilora.gates.loss import Loss, paired_loss, rows_needed, shortfall
from ilora.gates.rules import Rules
from ilora.present.numbers import number as finite
from ilora.present.numbers import plain
from ilora.results.scores import BASE

Verdict = Literal["pass", "fail", "undecidable"]
_SAME = 1e-9  # a loss of exactly the limit is allowed, whatever the rounding
_BASE = "base model"
_ALL = "all groups"


@dataclass(frozen=True)
class Check:
    """A rule on one thing.

    rule: `best`, `release`, `least`, `gain`, `perplexity`, `harness`, `probes` (subject: the group) or `text`.
    subject: the task's label, or what was measured. against: the phase's label, `base model` or `rule`.
    unit: of all numbers: `points`, `per cent` or `nats`.
    lost: above 0 = worse; low, high: the interval that is shown (`Loss.interval`).
    worse, better: rows whose score fell and rose.
    needed: rows that see a loss of the limit.
    """

    rule: str
    subject: str
    against: str
    unit: str
    limit: float
    before: float
    now: float
    lost: float
    verdict: Verdict
    why: str
    low: float | None = None
    high: float | None = None
    hard: float | None = None
    rows: int | None = None
    needed: int | None = None
    worse: int | None = None
    better: int | None = None

    def content(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


class Judge:
    """Rules on the evidence of a run. Every file is read once."""

    def __init__(self, rules: Rules, evidence: Evidence) -> None:
        self.rules, self.evidence = rules, evidence
        self.release = evidence.release()
        self.before = {task: evidence.before(task) for task in evidence.earlier}
        self.untrained = {task: evidence.untrained(task) for task in evidence.new}
        self.ability = evidence.ability(BASE)
        self.harness = [row for row in evidence.harness() if _in_unit(row)]
        self.comparisons = max(1, sum(self._weights()))

    @property
    def error(self) -> float:
        """The error of one interval on its side of a loss."""
        return (1 - self.rules.confidence) / self.comparisons

    def _weights(self) -> Iterator[int]:
        """How many comparisons each rule makes."""
        for phases in self.before.values():
            yield len({tuple(rows.values()) for rows in phases.values()})
        for task in self.evidence.new:
            yield (self.untrained[task] is not None) + (self.rules.limit("least", task) is not None)
        yield len(self.harness)
        if self.ability.probes is not None:
            yield len(self.ability.probes.scores) + 2

    def judge(self, now: Mapping[str, Rows], ability: Ability, *, harness: bool = True) -> list[Check]:
        """All checks. now: by task the rows to judge. harness: whether general.json belongs to these weights."""
        return [
            *(check for task in self.evidence.earlier for check in self._earlier(task, now[task])),
            *(check for task in self.evidence.new for check in self._new(task, now[task])),
            *self._perplexity(ability),
            *self._probes(ability),
            *(check for row in self.harness if harness for check in self._harness(row)),
        ]

    # -- tasks --

    def _earlier(self, task: str, now: Rows) -> Iterator[Check]:
        phases = self.before[task]
        if not phases:
            return
        best = max(phases, key=lambda phase: sum(phases[phase].values()))
        against = {"best": best} | ({"release": self.release[1]} if self.release else {})
        for rule, phase in against.items():
            limit = self.rules.limit(rule, task)
            if limit is None or phase not in phases:
                continue
            before, after = paired(phases[phase], now, f"{self.evidence.run}: task {task}, {phase}")
            loss = paired_loss(before, after, error=self.error)
            yield self._in_points(rule, task, phase, loss, limit, before=100 * sum(before) / len(before))

    def _new(self, task: str, now: Rows) -> Iterator[Check]:
        least, gain, untrained = self.rules.limit("least", task), self.rules.limit("gain", task), self.untrained[task]
        if least is not None:
            loss = shortfall(list(now.values()), least / 100, error=self.error)
            yield self._in_points("least", task, "rule", loss, 0.0, before=least)
        if gain is not None and untrained is not None:
            before, after = paired(untrained, now, f"{self.evidence.run}: task {task}, {BASE}")
            loss = paired_loss(before, after, error=self.error).moved(gain / 100)
            yield self._in_points("gain", task, _BASE, loss, 0.0, before=100 * sum(before) / len(before) + gain)

    def _in_points(self, rule: str, task: str, against: str, loss: Loss, limit: float, *, before: float) -> Check:
        hard = self.rules.limit("hard", task)
        verdict, needed = _decided(loss, limit / 100, None if hard is None else hard / 100, self.error)
        return _check(rule, task, against, "points", loss.moved(0, times=100), limit, before, verdict, needed, hard)

    # -- general ability --

    def _perplexity(self, ability: Ability) -> Iterator[Check]:
        limit, before, now = self.rules.general.perplexity, self.ability.perplexity, ability.perplexity
        if limit is None or before is None or now is None:
            return
        rise = 100 * (now / before - 1)
        verdict: Verdict = "fail" if rise > limit + _SAME else "pass"
        why = f"rose by {rise:.1f} per cent, at most {limit:g} are allowed" if verdict == "fail" else ""
        yield Check("perplexity", "perplexity", _BASE, "per cent", limit, before, now, rise, verdict, why)

    def _probes(self, ability: Ability) -> Iterator[Check]:
        rules, before, now = self.rules.general, self.ability.probes, ability.probes
        if before is None or now is None or before.made_from != now.made_from:
            return
        if rules.probes is not None:
            for group, check in self._groups(before.scores, now.scores, rules.probes):
                # Whether there are rows enough is asked of all groups together.
                told = group != _ALL and check.verdict == "undecidable"
                yield replace(check, verdict="pass", why="") if told else check
        if rules.text is not None:
            # More loss is worse, so that what was before takes the place of what is now.
            loss = paired_loss(now.text, before.text, error=self.error)
            counts = loss.low is not None and loss.low > 0
            verdict: Verdict = "fail" if loss.mean > rules.text + _SAME and counts else "pass"
            mean = sum(before.text) / len(before.text)
            yield _check("text", "general text", _BASE, "nats", loss, rules.text, mean, verdict, None, None)

    def _groups(self, before: Mapping[str, Rows], now: Mapping[str, Rows], limit: float) -> Iterator[tuple[str, Check]]:
        """A check of all probes, and one of each group."""
        one_group = [(name, rows, now[name]) for name, rows in before.items()]
        for group, one, other in [(_ALL, _together(before), _together(now)), *one_group]:
            scores, after = paired(one, other, f"{self.evidence.run}: probes, {group}")
            loss = paired_loss(scores, after, error=self.error)
            mean = 100 * sum(scores) / len(scores)
            yield group, self._in_points("probes", group, _BASE, loss, limit, before=mean)

    def _harness(self, row: Mapping[str, Any]) -> Iterator[Check]:
        limit, before, now = self.rules.general.harness, finite(row.get("before")), finite(row.get("after"))
        if limit is None or before is None or now is None:
            return
        errors = [finite(row.get(key)) for key in ("before_stderr", "after_stderr")]
        reach = -float(special.ndtri(self.error))  # these scores come without rows
        half = None if None in errors else reach * math.hypot(*(error or 0.0 for error in errors))
        lost = before - now
        low, high = (None, None) if half is None else (lost - half, lost + half)
        loss = Loss(lost, low, high, 0, 0, 0, 0.0, exact=False).moved(0, times=100)
        hard = self.rules.hard
        beyond = hard is not None and loss.mean > hard + _SAME
        fails = beyond or (loss.mean > limit + _SAME and (loss.low is None or loss.low > 0))
        name = f"{row.get('task')} {row.get('metric')}"
        check = _check(
            "harness", name, _BASE, "points", loss, limit, 100 * before, "fail" if fails else "pass", None, hard
        )
        yield replace(check, rows=None, worse=None, better=None)


def notes(judge: Judge) -> list[str]:
    """What the rules could not look at, each as a sentence."""
    evidence, now = judge.evidence, judge.evidence.ability(judge.evidence.phase)
    found = []
    if judge.release is None:
        found.append("There is no release yet, so nothing was compared with one.")
    for task in evidence.unjudged:
        found.append(f"{evidence.retired[task]} It is judged no longer.")
    for task in evidence.earlier:
        if not judge.before[task]:
            found.append(f"Task {task} has no scores of an earlier phase.")
    for task in evidence.new:
        if judge.untrained[task] is None:
            found.append(f"Task {task} was not scored before training, so its gain is not known.")
    before = judge.ability
    if before.probes is None or now.probes is None:
        found.append(f"The probes were not measured; `ilora gate {evidence.run} --probes` does it.")
    elif before.probes.made_from != now.probes.made_from:
        found.append(f"The probes of before are others than those of now; `ilora gate {evidence.run} --probes` helps.")
    if before.perplexity is None or now.perplexity is None:
        found.append("The perplexity was not measured (evaluation.perplexity_file).")
    if not judge.harness:
        found.append("`ilora general` was not run on this phase.")
    return found


def failed(rules: Rules, checks: list[Check]) -> bool:
    """Whether the checks fail the gate."""
    bad = {"fail", "undecidable"} if rules.few_rows == "fail" else {"fail"}
    return any(check.verdict in bad for check in checks)


def _decided(loss: Loss, limit: float, hard: float | None, error: float) -> tuple[Verdict, int | None]:
    """The verdict, and the rows that see a loss of the limit (for a limit of 0: a loss as large as this one)."""
    above = loss.mean > limit + _SAME
    seen = limit if limit > 0 else loss.mean
    needed = rows_needed(loss, seen, error=error) if 0 < seen < 1 else None
    if hard is not None and loss.mean > hard + _SAME:
        return "fail", needed
    if above and loss.low is not None and loss.low > 0:
        return "fail", needed
    if above or (limit > 0 and needed is not None and loss.rows < needed):
        return "undecidable", needed
    return "pass", needed


def _check(
    rule: str, subject: str, against: str, unit: str, loss: Loss, limit: float, before: float, verdict: Verdict,
    needed: int | None, hard: float | None,
) -> Check:  # fmt: skip
    """Numbers in the unit. before: what it was, or has to be; less the loss it is what is now."""
    shown = {"points": "{:.1f} points", "nats": "{:.3f} nats"}[unit]
    why, (low, high) = "", loss.interval
    if verdict == "fail":
        interval = "" if low is None else f" (interval {low:.3g} to {high:.3g})"
        at_most = f"at most {limit:g} allowed" if limit else "it must not be worse"
        beyond = hard is not None and loss.mean > hard + _SAME
        why = f"lost {shown.format(loss.mean)}{interval}, {f'the hard limit is {hard:g}' if beyond else at_most}"
    elif verdict == "undecidable":
        seen = limit if limit else loss.mean
        why = f"needs {needed} rows to see {seen:.3g} {unit}, has {loss.rows}"
    now = before + loss.mean if unit == "nats" else before - loss.mean
    return Check(
        rule, plain(subject, 80), against, unit, limit, before, now, loss.mean, verdict, why,
        low, high, hard, loss.rows, needed, loss.worse, loss.better,
    )  # fmt: skip


def _together(groups: Mapping[str, Rows]) -> Rows:
    return {key: score for rows in groups.values() for key, score in rows.items()}


_LOWER_IS_BETTER = ("perplexity", "byte", "bits", "ppl", "loss", "wer", "ter")


def _in_unit(row: Mapping[str, Any]) -> bool:
    """Whether a score of the harness is one in [0, 1], the higher the better: it does not say which it is."""
    words = str(row.get("metric")).lower().replace(",", "_").split("_")
    scores = [finite(row.get(key)) for key in ("before", "after")]
    return all(score is not None and 0 <= score <= 1 for score in scores) and not any(
        word in _LOWER_IS_BETTER for word in words
    )
