"""Repair without training: other adapters that the run already has, or that lie between two of them.

Candidates come in the order of their cost: the method's other adapters; the best point on the path between the adapter
before the phase and the one after it; and the last update shrunk, before + c · (now − before), as little as it takes
(STABLE, arXiv 2510.16089), and cut to the run's rank, so that it can be trained on. A point is chosen on rows that the
gate does not judge on: of each task its eval split, or of an earlier task without one its rows in the replay memory.
Only then is it judged, on the gate's rows.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilora.connectivity import paths, space
from ilora.connectivity.choose import MEMORY, fitting, remembered
from ilora.connectivity.landscape import PointScores, average, open_landscape
from ilora.connectivity.sources import Source, read_run
from ilora.connectivity.space import Adapter
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.evaluation.perplexity import perplexity, read_text
from ilora.evaluation.scoring import EvaluationSet, evaluate
from ilora.gates.evidence import Ability, Rows
from ilora.gates.judge import Judge, failed
from ilora.gates.probes import measure
from ilora.gates.repaired import Records, place_of, write_repaired
from ilora.progress import Bar, Display
from ilora.results.scores import prediction_folder, read_records

POINTS = 11  # of a path
_STEP = 1 / 16  # of c
_SAME = 1e-9


@dataclass(frozen=True)
class Candidate:
    """An adapter that might pass. name: what it is. how: where it lies, as plain JSON."""

    name: str
    how: Mapping[str, Any]
    adapter: Adapter


def repair_phase(judge: Judge, *, source: str, quiet: bool = False) -> dict[str, Any]:
    """Try the candidates; the first one that passes is written to RUN/gate/<phase>/repaired.

    source: where the rules come from.
    Returns `tries`, each with `candidate`, its `checks` and `outcome` (`not measured`: nothing of it fails, but the
    phase failed a rule that was not measured of it); `passed`: the name of the one that passes, or None; `adapter`: its
    PEFT folder, as a path in the run; `command`: what promotes it; and `notes`: why a candidate could not be made.
    """
    tries: list[dict[str, Any]] = []
    reasons: list[str] = []
    for name, made in _variants(judge):
        tries.append(made)
        if made["outcome"] == "passed":
            return _found(tries, reasons, name, judge, _write_variant(judge, name, source))
    try:
        bench = Bench(judge, quiet=quiet)
    except InputError as error:
        return {"passed": None, "adapter": None, "command": None, "tries": tries, "notes": [*reasons, str(error)]}
    with bench.display:
        for candidate in bench.candidates(reasons):
            made, records, ability = bench.judged(candidate)
            tries.append(made)
            if made["outcome"] == "passed":
                folder = _write(judge, candidate, records, ability, source)
                return _found(tries, reasons, candidate.name, judge, folder)
    return {"passed": None, "adapter": None, "command": None, "tries": tries, "notes": reasons}


def _found(tries: list[Any], reasons: list[str], name: str, judge: Judge, folder: Path | None) -> dict[str, Any]:
    evidence = judge.evidence
    last = folder is not None and evidence.number == len(evidence.phases)
    return {
        "passed": name,
        "adapter": None if folder is None else folder.relative_to(evidence.run).as_posix(),
        "command": shlex.join(["ilora", "promote", str(evidence.run), "--repaired"]) if last else None,
        "tries": tries,
        "notes": reasons,
    }


def _variants(judge: Judge) -> Iterator[tuple[str, dict[str, Any]]]:
    """The method's other adapters, whose answers are in the run already."""
    evidence = judge.evidence
    for variant in evidence.results["variants"]:
        if variant != evidence.answering:
            ability = evidence.ability(evidence.phase, variant)
            yield variant, _tried(judge, variant, {}, evidence.now(variant), ability)


def _tried(
    judge: Judge, name: str, how: Mapping[str, Any], now: Mapping[str, Rows], ability: Ability
) -> dict[str, Any]:
    """What the gate says. A rule that the phase failed has to be measured anew: without that there is no passing."""
    checks = judge.judge(now, ability, harness=False)
    phase = judge.judge(judge.evidence.now(), judge.evidence.ability(judge.evidence.phase))
    owed = {(check.rule, check.subject) for check in phase if check.verdict == "fail"}
    missing = owed - {(check.rule, check.subject) for check in checks}
    outcome = "failed" if failed(judge.rules, checks) else "not measured" if missing else "passed"
    return {"candidate": name, **how, "outcome": outcome, "checks": [check.content() for check in checks]}


class Bench:
    """The model, the two adapters, and the rows to choose on. The gate's own rows are looked at last."""

    def __init__(self, judge: Judge, *, quiet: bool) -> None:
        """Raises InputError where a method has no such adapters, or no rows are left to choose on."""
        evidence = judge.evidence
        self.judge, self.run = judge, evidence.run
        self.config, tasks, _ = read_run(self.run)
        self.split = self.config.evaluation.split
        self.before, self.now = (self._adapter(number) for number in (evidence.number - 1, evidence.number))
        if gone := sorted(evidence.deleted.keys() & set(evidence.seen)):
            raise InputError(
                f"{self.run}: the rows of {', '.join(gone)} were deleted, so no other adapter is judged on them"
            )
        by_label = {task.label: task for task in tasks}
        self.tasks = fitting(Source(self.config, (), None), [by_label[label] for label in evidence.seen])
        chosen_on = self._chosen_on()
        self.display = Display(quiet=quiet)
        self.display.say(f"gate: loading {self.config.model.name}")
        self.landscape = open_landscape(self.config, [], [self.before, self.now], split=self.split)
        self.sets = [self.landscape.encoded(task, split) for task, split in chosen_on]
        self.at_before: PointScores | None = None

    def candidates(self, reasons: list[str]) -> Iterator[Candidate]:
        """The point on the path, then the shrunk update. reasons: gets a sentence where one cannot be made."""
        for make in (self._on_path, self._shrunk):
            try:
                yield make()
            except InputError as error:
                reasons.append(str(error))

    def judged(self, candidate: Candidate) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]], Ability]:
        """What the gate says of a candidate, its answers by task, and its general ability."""
        self.landscape.use(candidate.adapter)
        sets = [self.landscape.encoded(task, self.split) for task in self.tasks]
        records = {}
        with self.display.bar(f"judging {candidate.name}", sum(len(data.examples) for data in sets)) as bar:
            for data in sets:
                records[data.task.label] = self._answers(data, bar)
        now = {label: {record["id"]: record["score"] for record in found} for label, found in records.items()}
        ability = self._ability()
        return _tried(self.judge, candidate.name, candidate.how, now, ability), records, ability

    def _answers(self, data: EvaluationSet, bar: Bar) -> list[dict[str, Any]]:
        size = self.config.evaluation.batch_size
        return evaluate(data, self.landscape.engine, self.landscape.encoder, batch_size=size, advance=bar.advance)

    def _ability(self) -> Ability:
        """General ability of the adapter that is in place, as far as it was measured of the phase."""
        known, engine = self.judge.evidence.ability(self.judge.evidence.phase), self.landscape.engine
        settings, encoder, found = self.config.evaluation, self.landscape.encoder, None
        if known.perplexity is not None and settings.perplexity_file is not None:
            windows = read_text(settings.perplexity_file, encoder, most=settings.perplexity_tokens)
            found = perplexity(engine, windows)["perplexity"]
        return Ability(found, None if known.probes is None else measure(engine, encoder, self.config))

    # -- choosing --

    def _on_path(self) -> Candidate:
        """Of the points that hold, the one of the highest mean score, then of the lowest loss; no end."""
        curve, ts = paths.make_path("linear", (self.before, self.now), space="factors"), paths.grid(POINTS)[1:-1]
        found = dict(zip(ts, self._scores([curve.at(t) for t in ts], "choosing on the path"), strict=True))
        means = {t: average(scores, list(scores)) for t, scores in found.items() if self._hold(scores)}
        if not means:
            raise InputError("path: no point between the two keeps the rules on the rows to choose on")
        best = max(means, key=lambda t: (means[t]["score"], -means[t]["loss"]))
        return Candidate("path", {"space": "factors", "t": best}, curve.at(best))

    def _shrunk(self) -> Candidate:
        """The largest c, in steps of 1/16, that holds; half of the update where the whole of it does.

        Then the loss is elsewhere, as in general ability, and these rows cannot say how far to shrink.
        """
        low, high = 0.0, 1.0
        if self._hold(self._scores([self.now], "choosing: c = 1")[0]):
            low, high = 0.5, 0.5
        while high - low > _STEP:
            middle = (low + high) / 2
            holds = self._hold(self._scores([self._part(middle)], f"choosing: c = {middle:g}")[0])
            low, high = (middle, high) if holds else (low, middle)
        if not low:
            raise InputError("shrunk: even a sixteenth of the last update loses too much on the rows to choose on")
        return Candidate("shrunk", {"space": "delta", "c": low}, self._part(low))

    def _part(self, c: float) -> Adapter:
        """before + c · (now − before), in the rank of the run."""
        curve = paths.make_path("linear", (self.before, self.now), space="delta")
        return space.reduced(curve.at(c), self.now)

    def _hold(self, now: PointScores) -> bool:
        """Whether no earlier task loses more than its rules allow, or more than one row, on the rows to choose on."""
        if self.at_before is None:
            self.at_before = self._scores([self.before], "choosing: before")[0]
        for task in self.judge.evidence.earlier:
            limits = [self.judge.rules.limit(rule, task) for rule in ("best", "release", "hard")]
            one, other = self.at_before[task].scores, now[task].scores
            allowed = max(100 / len(one), min((limit for limit in limits if limit is not None), default=100.0))
            if 100 * (sum(one) - sum(other)) / len(one) > allowed + _SAME:
                return False
        return True

    def _scores(self, points: Sequence[Adapter], title: str) -> list[PointScores]:
        rows = len(points) * sum(len(data.examples) for data in self.sets)
        with self.display.bar(title, rows) as bar:
            return self.landscape.evaluate(points, sets=self.sets, advance=bar.advance)

    def _chosen_on(self) -> list[tuple[Task, str]]:
        """The rows to choose on, with the split that they are in."""
        if self.split != "test":
            raise InputError(f"{self.run}: evaluation.split is {self.split}, so the gate's rows are all there is")
        evidence = self.judge.evidence
        without = [task for task in self.tasks if task.label in evidence.earlier and not task.rows.get("eval")]
        memory = {task.label: task for task in remembered(self.run, without)} if without else {}
        found = []
        for task in self.tasks:
            if task.label not in memory and not task.rows.get("eval"):
                raise InputError(f"{self.run}: task '{task.name}' has no eval split to choose on")
            found.append((memory[task.label], MEMORY) if task.label in memory else (task, "eval"))
        return found

    def _adapter(self, number: int) -> Adapter:
        evidence = self.judge.evidence
        if number < 1:
            raise InputError(f"{self.run}: before the first phase there is no adapter to go back towards")
        label = evidence.phases[number - 1]
        folder = self.run / "adapters" / label / evidence.answering
        if not (folder / "adapter_config.json").is_file():
            raise InputError(
                f"{folder}: no adapter there to go back towards: the method ({evidence.results.get('method')}) leaves "
                "none, or keep.adapters did not keep it"
            )
        return space.read(folder, label=f"{label}/{evidence.answering}")


def _write(judge: Judge, candidate: Candidate, records: Records, ability: Ability, source: str) -> Path:
    """The adapter with its answers, in the form of the phase's own."""
    evidence, scratch = judge.evidence, _scratch(judge)
    space.write_like(candidate.adapter, evidence.run / "adapters" / evidence.phase / evidence.answering, scratch)
    told = {"candidate": candidate.name, **candidate.how}
    return write_repaired(judge, scratch, told, records, ability, source=source)


def _write_variant(judge: Judge, name: str, source: str) -> Path | None:
    """Another adapter of the method with its answers; None where the run did not keep it."""
    evidence = judge.evidence
    folder = evidence.run / "adapters" / evidence.phase / name
    if not (folder / "adapter_config.json").is_file():
        return None
    scratch = _scratch(judge)
    shutil.copytree(folder, scratch)
    files = {task: prediction_folder(evidence.run, evidence.phase) / name / f"{task}.jsonl" for task in evidence.seen}
    records = {task: read_records(file) for task, file in files.items()}
    ability = evidence.ability(evidence.phase, name)
    return write_repaired(judge, scratch, {"candidate": name}, records, ability, source=source)


def _scratch(judge: Judge) -> Path:
    """A new folder's name beside the one of the repaired adapter."""
    scratch = place_of(judge.evidence.run, judge.evidence.phase).with_name(".repaired-writing")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    return scratch
