"""The rules of the gate: a section in YAML, from RUN/gate.yaml or another file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ilora.config import problems, read_yaml
from ilora.data.task import task_label
from ilora.errors import InputError
from ilora.section import Section

FILE = "gate.yaml"

Points = Annotated[float, Field(ge=0, le=100)]


class EarlierRules(Section):
    """Limits for tasks that were learnt before, in points (0 to 100)."""

    best: Points | None = Field(3.0, description="the most points a task may lose against its best so far")
    release: Points | None = Field(3.0, description="the same against the current release")


class NewRules(Section):
    """Limits for the tasks of the phase itself, in points."""

    least: Points | None = Field(None, description="the least score of the new task")
    gain: Points | None = Field(0.0, description="the least gain over its score before any training")


class GeneralRules(Section):
    """How much of the base model's general ability may go; a limit applies where the measurement is there."""

    perplexity: float | None = Field(
        10.0, ge=0, description="per cent by which the perplexity of evaluation.perplexity_file may rise"
    )
    harness: Points | None = Field(3.0, description="points that a score of `ilora general` may lose")
    probes: Points | None = Field(10.0, description="points that the probes (arithmetic, facts, ...) may lose")
    text: float | None = Field(0.1, ge=0, description="nats per token by which the loss on a general text may rise")


class TaskRules(Section):
    """Limits of one task, in place of those for all."""

    best: Points | None = None
    release: Points | None = None
    least: Points | None = None
    gain: Points | None = None
    hard: Points | None = None


class Rules(Section):
    """gate.yaml. `null` turns a limit off; of a task it leaves the common one."""

    confidence: float = Field(
        0.95, gt=0.5, le=0.9999, description="of all intervals together: the share of gates that fail nothing by chance"
    )
    few_rows: Literal["pass", "fail"] = Field(
        "pass", description="what it means where a task has too few rows to decide a rule; it is said in any case"
    )
    hard: Points | None = Field(15.0, description="a loss above so many points fails whatever the noise")
    earlier_tasks: EarlierRules = EarlierRules()
    new_task: NewRules = NewRules()
    general: GeneralRules = GeneralRules()
    limits: dict[str, TaskRules] = Field({}, description="by task, limits of its own: {fomc: {best: 5, least: 60}}")

    def limit(self, name: str, task: str) -> float | None:
        """The limit `best`, `release`, `least`, `gain` or `hard` for a task; None: there is none."""
        own = self._own().get(task)
        found = getattr(own, name) if own else None
        if found is not None:
            return float(found)
        section = self if name == "hard" else self.earlier_tasks if name in ("best", "release") else self.new_task
        common = getattr(section, name)
        return None if common is None else float(common)

    def refuse_unknown(self, labels: list[str], place: str) -> None:
        """Raises InputError for limits of a task that the run does not have. labels: of its tasks."""
        for task in self._own().keys() - set(labels):
            raise InputError(f"{place}: limits.{task}: the run has no such task; there are {', '.join(labels)}")

    def _own(self) -> dict[str, TaskRules]:
        found = {task_label(name): own for name, own in self.limits.items()}
        if len(found) < len(self.limits):
            raise InputError(f"two of {', '.join(self.limits)} are one task; names count in lower case")
        return found


def read_rules(run: Path, file: Path | None = None) -> tuple[Rules, str]:
    """The rules and where they come from: `file`, else RUN/gate.yaml, else the defaults.

    Raises InputError naming the file and each key that is wrong.
    """
    if file is None and not (run / FILE).exists():
        return Rules(), "the defaults"
    place = file or run / FILE
    if place.is_file() and not place.read_bytes().strip():  # so that `--show-rules > RUN/gate.yaml` may be asked of RUN
        return Rules(), "the defaults"
    values = read_yaml(place)
    try:
        rules = Rules.model_validate(values)
        rules.limit("hard", "")  # names of tasks are looked at here
    except ValidationError as error:
        lines = [f"  {line}" for line in problems(error, values, Rules)]
        raise InputError(f"{place}: {len(lines)} problem(s)\n" + "\n".join(lines)) from None
    except InputError as error:
        raise InputError(f"{place}: limits: {error}") from None
    return rules, str(place)


def are_of_run(run: Path, source: str) -> bool:
    """Whether rules that come from `source` are the run's own: its file, or the defaults while it has none."""
    return source == "the defaults" or Path(source).absolute() == (run / FILE).absolute()


def as_yaml(rules: Rules) -> str:
    """The rules as a file of their own, each with what it means."""
    return "\n".join(_lines(rules, "")) + "\n"


def _lines(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value: Any = getattr(section, name)
        if isinstance(value, Section):
            yield f"{indent}# {(type(value).__doc__ or '').splitlines()[0]}"
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_written(value)}" + (f"  # {field.description}" if field.description else "")


def _written(value: Any) -> str:
    """A value as YAML on one line; JSON is YAML."""
    if isinstance(value, dict):
        value = {name: own.model_dump(exclude_none=True) for name, own in value.items()}
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
