"""What is handed over: an adapter's folder, and the results that say what it can do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ilora.config import Config, load_config
from ilora.errors import InputError
from ilora.model.identity import BaseModel
from ilora.model.load import resolve
from ilora.model.names import ALIASES
from ilora.present.numbers import number
from ilora.results.reader import Results, read_results
from ilora.settings import ModelConfig

_IN_CACHE = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")  # a folder of the hub's cache


@dataclass(frozen=True)
class TaskScores:
    """One trained task's scores in [0, 1], each None where it was not evaluated.

    before: of the base model. learnt: just after the task's training. best: since then, before this adapter.
    score: of this adapter, with its standard error `error` over `rows` rows.
    """

    task: dict[str, Any]
    before: float | None
    learnt: float | None
    best: float | None
    score: float | None
    error: float | None
    rows: int | None

    @property
    def forgotten(self) -> float | None:
        """The best score since the task's training, less this one; below 0 where the task got better."""
        return None if self.best is None or self.score is None else self.best - self.score


@dataclass(frozen=True)
class Source:
    """An adapter with its settings and scores, wherever they lie.

    adapter: its PEFT folder. stage: how many phases were trained by then. hub_id: the base model's, where that is not
    what the run loaded it by.
    """

    adapter: Path
    config: Config
    results: Results
    stage: int
    variant: str
    hub_id: str | None = None

    @cached_property
    def base(self) -> BaseModel:
        """The base model: its name is a hub id where one is known, else a folder's last part."""
        found = BaseModel.read(self.adapter)
        if self.hub_id is not None:
            name, _, revision = self.hub_id.partition("@")
            return replace(found, name=name, revision=revision or None)
        cached = _in_cache(Path(found.name))
        if cached is not None:
            return replace(found, name=cached[0], revision=cached[1])
        return found if is_hub_id(found.name) else replace(found, name=Path(found.name).name)

    @property
    def model(self) -> ModelConfig:
        """How the run loads the base model: by the very commit that it noted."""
        model = self.config.model
        return model.model_copy(update={"revision": model.revision or BaseModel.read(self.adapter).revision})

    @cached_property
    def base_on_hub(self) -> bool:
        """Whether the base's name is a hub id, by which others find it."""
        noted = BaseModel.read(self.adapter).name
        return self.hub_id is not None or _in_cache(Path(noted)) is not None or is_hub_id(noted)

    @property
    def copy_of_base(self) -> str | None:
        """Where the weights come from, if they are a copy of the hub's that is not the same bit for bit."""
        alias = ALIASES.get(self.base.alias or "")
        if alias is None or resolve(self.base.alias or "") == alias.hub_id:
            return None
        return f"{alias.gguf} in the Python package {alias.package.replace('_', '-')}, de-quantized"

    @cached_property
    def tasks(self) -> list[TaskScores]:
        """The tasks trained so far, in the results' order."""
        entry, row = self.results["variants"][self.variant], self.stage - 1
        names = [str(task["name"]) for task in self.results["tasks"]]
        joint = self.results.get("stream") == "joint"
        trained = [str(name) for name in (self.results.get("phases") or names)[: self.stage]]

        def at(table: str, stage: int, task: int) -> float | None:
            rows = entry.get(table) or []
            return number(rows[stage][task]) if stage < len(rows) and task < len(rows[stage]) else None

        found = []
        for index, name in enumerate(names):
            if not joint and name not in trained:
                continue
            first = 0 if joint else trained.index(name)
            since = [score for k in range(first, row) if (score := at("R", k, index)) is not None]
            before, rows = entry.get("zero_shot") or [], at("n", row, index)
            found.append(
                TaskScores(
                    task=dict(self.results["tasks"][index]),
                    before=number(before[index]) if before else None,
                    learnt=at("R", first, index),
                    best=max(since, default=None),
                    score=at("R", row, index),
                    error=at("se", row, index),
                    rows=None if rows is None else int(rows),
                )
            )
        return found


def from_run(run: Path, *, phase: str | None = None, variant: str | None = None, base: str | None = None) -> Source:
    """A run's adapter after a phase (default: the last finished one), of a variant (default: the one that answers).

    phase: its label (`03-fomc`), number or name. base: the base model's hub id, OWNER/NAME or OWNER/NAME@REVISION,
    of a run that loaded it from a folder.
    Raises InputError where the folder is no run, or has no such adapter.
    """
    for name in ("config.yaml", "results.json"):
        if not (run / name).is_file():
            raise InputError(f"{run}: not a run folder with results (no {name} in it)")
    results = read_results(run)
    if not results.get("adapter"):
        raise InputError(
            f"{run}: the method {results.get('method')} leaves no single adapter that answers; there is none to export"
        )
    labels = sorted(path.name for path in (run / "adapters").glob("[0-9]*") if path.is_dir())
    label = _chosen("--phase", phase, labels) if phase else Path(str(results["adapter"])).parent.name
    variants = [name for name in results["variants"] if (run / "adapters" / label / name).is_dir()]
    chosen = _chosen("--variant", variant, variants) if variant else str(results["answers_with"])
    folder = run / "adapters" / label / chosen
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: no adapter there; there are {', '.join(labels) or 'none'}")
    source = Source(folder, load_config(run / "config.yaml"), results, int(label.partition("-")[0]), chosen)
    return with_base(source, base)


def with_base(source: Source, base: str | None) -> Source:
    """The same with the base model's hub id, where one is given. Raises InputError for what cannot be it."""
    return source if base is None else replace(source, hub_id=_checked(base, source))


def _chosen(option: str, wanted: str, known: Sequence[str]) -> str:
    """The one of `known` that is meant: by its whole name, its number, or its name without the number."""
    found = [name for name in known if wanted in (name, name.partition("-")[2])]
    if wanted.isdecimal():
        found += [
            name for name in known if name.partition("-")[0].isdecimal() and int(name.partition("-")[0]) == int(wanted)
        ]
    if not found:
        raise InputError(f"{option} {wanted}: there are {', '.join(known) or 'none'}")
    return found[0]


def _checked(base: str, source: Source) -> str:
    """The hub id that the user gives. Raises InputError where it is none, or the run knows its own."""
    name, _, revision = base.partition("@")
    if "/" not in name or not is_hub_id(name) or (base.endswith("@") and not revision):
        raise InputError(f"--base {base}: give the base model's hub id, OWNER/NAME or OWNER/NAME@REVISION")
    if source.base_on_hub and source.base.name != name:
        raise InputError(f"--base {base}: the run's base model is {source.base.name}")
    return base


def is_hub_id(name: str) -> bool:
    """Whether it has the form of a hub id; whether the hub has it is not asked."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _in_cache(folder: Path) -> tuple[str, str] | None:
    """Hub id and commit of a folder in the hub's cache, models--OWNER--NAME/snapshots/COMMIT."""
    parts = folder.parts
    found = _IN_CACHE.fullmatch(parts[-3]) if len(parts) > 3 and parts[-2] == "snapshots" else None
    return (f"{found['owner']}/{found['name']}", parts[-1]) if found else None
