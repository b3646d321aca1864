"""The bench on which an adapter is tried in the place of a phase's own: the model, the rows to choose on, the gate's.

An adapter is chosen on rows that the gate does not judge on: of each task its eval split, or of an earlier task without
one its rows in the replay memory. Only one that holds there is judged, on the gate's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ilora.config import Config
from ilora.connectivity import space
from ilora.connectivity.choose import MEMORY, fitting, remembered
from ilora.connectivity.landscape import Landscape, PointScores, open_landscape
from ilora.connectivity.sources import Source
from ilora.connectivity.space import Adapter
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.evaluation.perplexity import perplexity, read_text
from ilora.evaluation.scoring import EvaluationSet, evaluate
from ilora.gates.evidence import Ability, Rows
from ilora.gates.judge import Judge, failed
from ilora.gates.probes import measure
from ilora.progress import Bar, Display

_SAME = 1e-9


@dataclass(frozen=True)
class Candidate:
    """An adapter that might pass. name: what it is. how: where it lies or how it was made, as plain JSON."""

    name: str
    how: Mapping[str, Any]
    adapter: Adapter


def tried(judge: Judge, name: str, how: Mapping[str, Any], now: Mapping[str, Rows], ability: Ability) -> dict[str, Any]:
    """What the gate says. A rule that the phase failed has to be measured anew: without that there is no passing.

    now: by task the scores of the gate's rows, whose means are `scores`, in points.
    """
    checks = judge.judge(now, ability, harness=False)
    phase = judge.judge(judge.evidence.now(), judge.evidence.ability(judge.evidence.phase))
    owed = {(check.rule, check.subject) for check in phase if check.verdict == "fail"}
    missing = owed - {(check.rule, check.subject) for check in checks}
    outcome = "failed" if failed(judge.rules, checks) else "not measured" if missing else "passed"
    scores = {task: _points(list(rows.values())) for task, rows in now.items()}
    return {
        "candidate": name,
        **how,
        "outcome": outcome,
        "scores": scores,
        "checks": [check.content() for check in checks],
    }


class Bench:
    """Adapters are put into one model, one after another. The model is loaded where it is first needed."""

    def __init__(self, judge: Judge, config: Config, tasks: Sequence[Task], display: Display) -> None:
        """config, tasks: of the run. Raises InputError where no rows are left to choose on, or no adapter answers."""
        evidence = judge.evidence
        self.judge, self.run, self.config, self.display = judge, evidence.run, config, display
        self.split = config.evaluation.split
        if gone := sorted(evidence.deleted.keys() & set(evidence.seen)):
            raise InputError(
                f"{self.run}: the rows of {', '.join(gone)} were deleted, so no other adapter is judged on them"
            )
        if not evidence.results.get("adapter"):
            raise InputError(
                f"{self.run}: the method {evidence.results.get('method')} leaves no single adapter that answers, so "
                "none can be put in its place"
            )
        self.now = self._adapter(evidence.number)
        self.before = self._adapter(evidence.number - 1) if evidence.number > 1 else None
        by_label = {task.label: task for task in tasks}
        self.tasks = fitting(Source(config, (), None), [by_label[label] for label in evidence.seen])
        self._chosen_on = self._rows_to_choose_on()
        self._landscape: Landscape | None = None
        self._sets: list[EvaluationSet] = []
        self._at_before: PointScores | None = None

    @property
    def landscape(self) -> Landscape:
        """The model with a slot for an adapter."""
        return self.open()

    def open(self) -> Landscape:
        """Load the model, unless it is there. Raises InputError where it cannot be used."""
        if self._landscape is None:
            self.display.say(f"gate: loading {self.config.model.name}")
            points = [self.now] if self.before is None else [self.before, self.now]
            self._landscape = open_landscape(self.config, [], points, split=self.split)
            self._sets = [self._landscape.encoded(task, split) for task, split in self._chosen_on]
        return self._landscape

    def close(self) -> None:
        """Let go of the model, so that another one may be loaded."""
        self._landscape, self._sets = None, []

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
        return tried(self.judge, candidate.name, candidate.how, now, ability), records, ability

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

    def scores(self, points: Sequence[Adapter], title: str) -> list[PointScores]:
        """Loss and score of every row to choose on, at each of these adapters."""
        landscape = self.landscape
        with self.display.bar(title, len(points) * sum(len(data.examples) for data in self._sets)) as bar:
            return landscape.evaluate(points, sets=self._sets, advance=bar.advance)

    def losses(self, now: PointScores) -> dict[str, dict[str, Any]]:
        """By earlier task, on the rows to choose on: `split`, `rows`, and in points `before`, `now` and `allowed`.

        A task may lose what its rules allow, or one row.
        """
        if not self.judge.evidence.earlier or self.before is None:
            return {}
        if self._at_before is None:
            self._at_before = self.scores([self.before], "choosing: before")[0]
        splits, found = {task.label: split for task, split in self._chosen_on}, {}
        for task in self.judge.evidence.earlier:
            limits = [self.judge.rules.limit(rule, task) for rule in ("best", "release", "hard")]
            one, other = self._at_before[task].scores, now[task].scores
            allowed = max(100 / len(one), min((limit for limit in limits if limit is not None), default=100.0))
            found[task] = {
                "split": splits[task],
                "rows": len(one),
                "before": _points(one),
                "now": _points(other),
                "allowed": allowed,
            }
        return found

    def hold(self, now: PointScores) -> bool:
        """Whether no earlier task loses more than it may, on the rows to choose on."""
        return not lost_too_much(self.losses(now))

    def _rows_to_choose_on(self) -> list[tuple[Task, str]]:
        """The tasks, each with the split that its rows are in."""
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
        label = evidence.phases[number - 1]
        folder = self.run / "adapters" / label / evidence.answering
        if not (folder / "adapter_config.json").is_file():
            raise InputError(
                f"{folder}: no adapter there to go back towards: the method ({evidence.results.get('method')}) leaves "
                "none, or keep.adapters did not keep it"
            )
        return space.read(folder, label=f"{label}/{evidence.answering}")


def lost_too_much(losses: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tasks that lost more than they may. losses: as `Bench.losses` gives them."""
    return [task for task, one in losses.items() if one["before"] - one["now"] > one["allowed"] + _SAME]


def _points(scores: Sequence[float]) -> float:
    return 100 * sum(scores) / len(scores)
