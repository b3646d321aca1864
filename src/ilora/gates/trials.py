"""Trials: a phase that failed is trained again from where it began, with settings that may do better.

    replay of the task that lost the most   with more rows of it in the memory
    more memory                             twice as large, filled anew from the earlier tasks' rows
    ilora+                                  from the adapter before the phase, with a memory of the same size
    longer training                         where the phase's own task was learnt too little: twice the epochs

The first three are tried where something was lost. The phase begins with the state of the newest release before it;
without one, the run is trained again from its first task on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ilora.changes import standing
from ilora.config import Config, load_config
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.gates.advice import LEARNT, LONGER, MORE_MEMORY, PLUS, worst
from ilora.gates.judge import Check, Judge
from ilora.methods import method_class
from ilora.methods.summed import SummedAdapters
from ilora.present.numbers import duration, number
from ilora.releases.promotion import REPAIR
from ilora.releases.store import release_folder
from ilora.results.reader import read_text
from ilora.stream import rows_before

# Forward passes that ilora+ takes for a new row, a backward pass counting as two: three each for it, a replayed row and
# a pseudo row, and one of the teacher.
_STEP_OF_PLUS = 10


@dataclass(frozen=True)
class Fill:
    """What the memory gets before the phase. anew: it is emptied and shown all rows; else it takes some as well."""

    tasks: tuple[Task, ...]
    anew: bool


@dataclass(frozen=True)
class Trial:
    """A phase that is trained again.

    key: the name of its folder. settings: what is other than in the run, for people. config, tasks: what is trained.
    phase: the number in that stream of the phase to train again. start: the checkpoint that it begins with; None: the
    beginning. seconds: what training will take, by the times of the run; None: not known.
    """

    name: str
    key: str
    settings: Mapping[str, Any]
    config: Config
    tasks: tuple[Task, ...]
    phase: int
    start: Path | None
    fill: Fill | None
    seconds: float | None

    @property
    def cost(self) -> str:
        """How long training will take, in words."""
        if self.seconds is None:
            return "its time is not known"
        return f"about {duration(self.seconds)} of training" if self.seconds else "trained already"


def trials(judge: Judge, config: Config, tasks: Sequence[Task], notes: list[str]) -> list[Trial]:
    """What may be tried for a phase that failed, the cheapest first.

    config, tasks: of the run. notes: gets a sentence for each that cannot be made.
    """
    kind, name = method_class(config.method.name), config.method.name
    if config.stream != "sequential" or not kind.trains:
        notes.append("training: a joint run, or one that trains nothing, has no phase that could be trained again")
        return []
    if issubclass(kind, SummedAdapters):
        notes.append(f"training: the method {name} saves a sum of adapters, in whose place no other one can be put")
        return []
    maker = _Maker(judge, config, tasks)
    checks = judge.judge(judge.evidence.now(), judge.evidence.ability(judge.evidence.phase))
    failed = [check for check in checks if check.verdict == "fail"]
    lost = [check for check in failed if check.rule not in LEARNT]
    makers = []
    if lost and maker.earlier:
        makers += [lambda: maker.replay(worst(lost)), maker.more_memory, maker.plus]
    if len(lost) < len(failed):
        makers.append(maker.longer)
    found = []
    for make in makers:
        try:
            found += make()
        except InputError as error:
            notes.append(str(error))
    return sorted(found, key=lambda trial: float("inf") if trial.seconds is None else trial.seconds)


def affordable(found: Sequence[Trial], hours: float | None, notes: list[str]) -> list[Trial]:
    """Those that together take at most so many hours. notes: gets a sentence for each other one."""
    kept, used = [], 0.0
    for trial in found:
        if hours is not None and (trial.seconds is None or used + trial.seconds > 3600 * hours):
            notes.append(f"{trial.name}: not tried, since {trial.cost}, and --train-hours allows {hours:g} h in all")
        else:
            used += trial.seconds or 0.0
            kept.append(trial)
    return kept


class _Maker:
    """Makes the trials of one phase. `earlier`: the tasks before it whose rows may be trained on."""

    def __init__(self, judge: Judge, config: Config, tasks: Sequence[Task]) -> None:
        self.judge, self.config, self.number = judge, config, judge.evidence.number
        self.tasks = tuple(tasks[: self.number])
        self.run, self.then = judge.evidence.run, config.at(self.number)
        valid = standing((config.data.tasks or [])[: self.number - 1])
        self.earlier = tuple(task for task in self.tasks[:-1] if task.name in valid and not task.forgotten)
        self.memory = int(getattr(self.then.method, "memory_size", 0))
        self.times = phase_seconds(self.run)

    def replay(self, check: Check | None) -> list[Trial]:
        """More rows of the task that lost the most: as many places again as the tasks have on average."""
        found = [task for task in self.earlier if check is not None and task.label == check.subject]
        if not found or not self.memory:
            return []
        task, settings = found[0], {"method.memory_size": self.memory + max(1, self.memory // len(self.earlier))}
        told = settings | {"more_rows_of": task.name}
        return [self._again(f"more replay of {task.label}", "replay", settings, told, Fill((task,), anew=False))]

    def more_memory(self) -> list[Trial]:
        """Twice as much, filled as if it had been so large from the beginning."""
        if not self.memory:
            return []
        settings = {"method.memory_size": 2 * self.memory}
        return [self._again(MORE_MEMORY, "memory", settings, settings, Fill(self._remembered(), anew=True))]

    def longer(self) -> list[Trial]:
        """Twice the epochs."""
        training = self.then.training
        settings = {"training.epochs": 2 * training.epochs}
        if training.max_steps is not None:
            settings["training.max_steps"] = 2 * training.max_steps
        return [self._again(LONGER, "longer", settings, settings, None, times=2)]

    def plus(self) -> list[Trial]:
        """The method ilora+ from the adapter before the phase, with what it would remember of the earlier tasks."""
        config, evidence = self.config, self.judge.evidence
        if config.method.name == PLUS:
            return []
        if config.adapter.keep_below:
            raise InputError(f"{PLUS}: adapter.keep_below has no states of the earlier tasks' rows for it")
        before = self.run / "adapters" / evidence.phases[self.number - 2] / evidence.answering
        method = {"name": PLUS} | ({"memory_size": self.memory} if hasattr(self.then.method, "memory_size") else {})
        dump, own = self.then.dump(), self.then.method.learning_rate
        section = dump["data"]["tasks"][self.number - 1] | {"settings": {}, "replaces": None}
        made = dump | {
            "method": method,
            "contrast": [],
            "adapter": dump["adapter"] | {"start_from": str(before.absolute())},
            "data": dump["data"] | {"tasks": [section], "start_rows": None},
            "training": dump["training"] | ({} if own is None else {"learning_rate": own}),
            "keep": dump["keep"] | {"trajectory": "none"},
        }
        found = load_config(made)
        told = {"method": method | {"memory_size": found.method.memory_capacity}}
        alone = replace(self.tasks[-1], replaces="")  # the task that it replaces is not in this stream
        rows = tuple(task for task in self._remembered() if task.name != self.tasks[-1].replaces)
        cost, each = self.times.get(self.number), self._passes()
        return [
            Trial(
                PLUS,
                "ilora-plus",
                told,
                found,
                (alone,),
                phase=1,
                start=None,
                fill=Fill(rows, anew=True),
                seconds=None if cost is None or each is None else cost * _STEP_OF_PLUS / each,
            )
        ]

    def _again(
        self,
        name: str,
        key: str,
        settings: Mapping[str, Any],
        told: Mapping[str, Any],
        fill: Fill | None,
        times: int = 1,
    ) -> Trial:
        """The phase with other settings. times: as long as it took."""
        sections = list((self.config.data.tasks or [])[: self.number])
        sections[-1] = sections[-1].model_copy(update={"settings": {**sections[-1].settings, **settings}})
        changes = {
            "contrast": [],
            "data": self.config.data.model_copy(update={"tasks": sections}),
            "keep": self.config.keep.model_copy(update={"trajectory": "none"}),
        }
        start, first = None, 1
        if self.judge.release is not None:
            start = release_folder(self.run, self.judge.release[0]) / "state"
            first = self.judge.evidence.phases.index(self.judge.release[1]) + 2
        self._refuse_repaired(first)
        costs = [self.times.get(phase) for phase in range(first, self.number + 1)]
        known = [cost for cost in [*costs, *costs[-1:] * (times - 1)] if cost is not None]
        seconds = sum(known) if len(known) == len(costs) + times - 1 else None
        return Trial(
            name, key, told, self.config.model_copy(update=changes), self.tasks, self.number, start, fill, seconds
        )

    def _remembered(self) -> tuple[Task, ...]:
        """All that a memory filled anew is shown: what the run began with, then the earlier tasks."""
        before = rows_before(self.config.data)
        return self.earlier if before is None else (before, *self.earlier)

    def _refuse_repaired(self, first: int) -> None:
        """Raises InputError where a phase from `first` on was repaired: training it again would not give that."""
        evidence = self.judge.evidence
        for label in evidence.phases[first - 1 : self.number - 1]:
            if (self.run / "adapters" / label / evidence.answering / REPAIR).is_file():
                raise InputError(
                    f"training: phase {label} was repaired and not released, so its state cannot be trained again; "
                    "`ilora promote` right after a repair keeps it"
                )

    def _passes(self) -> float | None:
        """Forward passes that the run's method took for a new row, a backward pass counting as two; None: not known."""
        cost = self.judge.evidence.results.get("cost") or {}
        counts = [number(cost.get(key)) for key in ("forward_rows", "backward_rows", "steps")]
        forward, backward, steps = counts
        if not forward or not backward or not steps:
            return None
        return (forward + 2 * backward) / (steps * self.config.training.global_batch_size)


def phase_seconds(run: Path) -> dict[int, float]:
    """The training time of each phase, by its number from 1, as far as metrics.jsonl tells it."""
    file, ends = run / "metrics.jsonl", dict[int, float]()
    lines = read_text(file).splitlines() if file.is_file() else []
    for place, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            ends[int(line["task_index"])] = float(line["time"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}:{place}: not a step's line: {error!r}") from None
    return {phase: end - ends.get(phase - 1, 0.0) for phase, end in ends.items()}
