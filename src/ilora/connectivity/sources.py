"""What is to be compared: a run's minima, or any PEFT folders, with the tasks to evaluate them on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ilora.config import Config, is_data, load_config
from ilora.connectivity import space
from ilora.connectivity.space import Adapter
from ilora.data.digests import fingerprint
from ilora.data.task import Phase, Task, phases
from ilora.early import refuse_no_adapters
from ilora.errors import InputError
from ilora.model.dtype import with_dtype
from ilora.results.reader import refuse_no_results
from ilora.stream import load_tasks
from ilora.training.trajectory import Snapshot, snapshots

PAIRS = ("last", "all")
ADJACENT, TWINS = BETWEEN = ("adjacent", "fast-slow")


@dataclass(frozen=True)
class Pair:
    """Two adapters, and the tasks for the points between them; `new` is empty where the tasks have no order."""

    ends: tuple[Adapter, Adapter]
    old: tuple[Task, ...]
    new: tuple[Task, ...] = ()
    between: str = ""  # `adjacent` minima or `fast-slow`, for a run
    when: float = 0.0  # of a run: the phase after which the later end was saved

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Old tasks, then new ones."""
        return (*self.old, *self.new)

    @property
    def name(self) -> str:
        """As it stands in file names."""
        return "--".join(file_name(end.label) for end in self.ends)


@dataclass(frozen=True, eq=False)
class Stage:
    """An adapter of a run on its way, read when it is asked for: a run of many tasks has more than fit into memory.

    variant: `fast`, `slow`, ...; when: tasks trained by then, with parts of one.
    """

    label: str
    variant: str
    when: float
    read: Callable[[], Adapter]


@dataclass(frozen=True)
class Source:
    """pairs: for paths. corners: for a plane, if there are three. trail: a run's adapters in the order of training."""

    config: Config
    pairs: tuple[Pair, ...]
    corners: tuple[Adapter, Adapter, Adapter] | None
    trail: tuple[Stage, ...] = ()
    run: Path | None = None
    gone: str = ""  # of a run: which adapters were not kept, for messages

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """All that models may be made of."""
        return (*(end for pair in self.pairs for end in pair.ends), *(self.corners or ()))

    def until(self, pair: Pair) -> tuple[Stage, ...]:
        """The trail up to the pair's later end, so that tasks that a run adds later change nothing of it."""
        return tuple(stage for stage in self.trail if stage.when <= pair.when)


def pair_of(source: Source, between: str) -> Pair:
    """The last such pair of a run; of adjacent minima, that of the answering adapter."""
    if between not in BETWEEN:
        raise InputError(f"--between {between}: allowed are {', '.join(BETWEEN)}")
    found = [pair for pair in source.pairs if pair.between == between]
    if not found:
        need = "two tasks" if between == ADJACENT else "a fast and a slow adapter (method ilora)"
        raise InputError(f"{source.run}: no {between} pair of adapters; that takes a run with {need}{source.gone}")
    return found[0]


def file_name(label: str) -> str:
    """A label as it may stand in a file name: nothing of it can leave the folder.

    Only `/` is replaced without a trace; of a label that is squashed or cut more than that, a digest stands behind it.
    """
    safe = re.sub(r"[^\w.+-]+", "-", label).strip("-.")[:60] or "adapter"
    changed = safe != label.replace("/", "-")
    return f"{safe}-{hashlib.sha256(label.encode()).hexdigest()[:6]}" if changed else safe


def read_run(run: Path) -> tuple[Config, list[Task], dict[str, Any]]:
    """Configuration, tasks and results of a run folder. Raises InputError where it is none, or has none yet."""
    config, results = read_outcome(run)
    return config, load_tasks(config.data), results


def read_outcome(run: Path) -> tuple[Config, dict[str, Any]]:
    """Configuration and results of a run folder, whose data need not be there. Raises InputError as `read_run`."""
    refuse_no_results(run)
    config = load_config(run / "config.yaml")
    try:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{run / 'results.json'}: not valid JSON: {error}") from None
    missing = [
        key for key in ("answers_with", "method", "adapter") if not isinstance(results, dict) or key not in results
    ]
    if missing:
        raise InputError(f"{run / 'results.json'}: not the results of a run (no {', '.join(missing)} in it)")
    return config, results


def from_run(run: Path, *, pairs: str) -> Source:
    """A run's adapters: the minima of tasks that follow each other, and each task's fast and slow adapter.

    pairs: the `last` of each kind, or `all`.
    """
    if pairs not in PAIRS:
        raise InputError(f"--pairs {pairs}: allowed are {', '.join(PAIRS)}")
    config, tasks, results = read_run(run)
    answering, stream = str(results["answers_with"]), phases(tasks, config.stream)
    done = [phase for phase in stream if (run / "adapters" / phase.label / answering).is_dir()]
    if not done:
        raise InputError(f"{run}: no adapter in adapters/ (method {config.method.name}); paths join LoRA adapters")
    found = {phase.label: _variants(run, phase, answering) for phase in done}
    adjacent, twins = _adjacent(stream, found), _twins(stream, found)
    gone = _gone(stream, found)
    if pairs == "last":
        last = found[done[-1].label].values()
        adjacent = [pair for pair in adjacent if pair.ends[1] in last]
        twins = twins[-1:]
    if not any(pair.tasks for pair in (*adjacent, *twins)) and any(task.forgotten for task in tasks):
        raise InputError(f"{run}: the rows of all its tasks were deleted; nothing is left to evaluate its adapters on")
    if not adjacent and not twins:
        raise InputError(f"{run}: one task and one adapter; a path needs two: add a task, or name two adapters{gone}")
    return Source(config, (*adjacent, *twins), _corners(found, done), tuple(_trail(run, stream, found)), run, gone)


Found = Mapping[str, Mapping[str, Adapter]]
"""The saved adapters of a run, by phase and variant."""


def _gone(stream: Sequence[Phase], found: Found) -> str:
    """For a message: the phases before one with adapters of which some or all were not kept; empty if there is none."""
    last = max(number for number, phase in enumerate(stream) if phase.label in found)
    whole = found[stream[last].label].keys()
    names = [phase.label for phase in stream[:last] if found.get(phase.label, {}).keys() != whole]
    return f" (the run has not kept all adapters of {', '.join(names)}: `keep`, `ilora prune`)" if names else ""


def _adjacent(stream: Sequence[Phase], found: Found) -> list[Pair]:
    """The same variant after a task and after the next one."""
    made = []
    for number, (before, after) in enumerate(pairwise(stream), 1):
        for variant, adapter in found.get(after.label, {}).items():
            if variant in found.get(before.label, {}):
                ends = (found[before.label][variant], adapter)
                made.append(Pair(ends, _tasks(stream[:number], after), _tasks([after]), ADJACENT, when=number + 1))
    return made


def _twins(stream: Sequence[Phase], found: Found) -> list[Pair]:
    """The fast and the slow adapter after the same task."""
    made = []
    for number, phase in enumerate(stream, 1):
        adapters = found.get(phase.label, {})
        if {"fast", "slow"} <= adapters.keys():
            ends = (adapters["fast"], adapters["slow"])
            made.append(Pair(ends, _tasks(stream[: number - 1], phase), _tasks([phase]), TWINS, when=number))
    return made


def _tasks(done: Sequence[Phase], after: Phase | None = None) -> tuple[Task, ...]:
    """The tasks of these phases that there are rows of, and that none of them, nor the one after, replaces."""
    whole = [task for phase in (*done, *([after] if after else [])) for task in phase.tasks]
    replaced = {task.replaces for task in whole}
    return tuple(task for phase in done for task in phase.tasks if not task.forgotten and task.name not in replaced)


def _variants(run: Path, phase: Phase, answering: str) -> dict[str, Adapter]:
    """The saved adapters of a phase, by variant, the answering one first."""
    folders = [path for path in (run / "adapters" / phase.label).iterdir() if path.is_dir()]
    folders.sort(key=lambda path: (path.name != answering, path.name))
    return {path.name: space.read(path, label=f"{phase.label}/{path.name}") for path in folders}


def _corners(found: dict[str, dict[str, Adapter]], done: Sequence[Phase]) -> tuple[Adapter, Adapter, Adapter] | None:
    """Before and after the last task, and the slow one after it; without a slow one the last three minima."""
    last = found[done[-1].label]
    if len(done) > 1 and {"fast", "slow"} <= last.keys() and "fast" in found[done[-2].label]:
        return found[done[-2].label]["fast"], last["fast"], last["slow"]
    if len(done) > 2:
        variant = next(iter(last))
        one, two, three = (found[phase.label][variant] for phase in done[-3:])
        return one, two, three
    return None


def _trail(run: Path, stream: Sequence[Phase], found: Found) -> Iterator[Stage]:
    """The snapshots within each task, and the adapters at its end, as they came."""
    kept = list(snapshots(run / "trajectory"))
    for number, phase in enumerate(stream, 1):
        ends = found.get(phase.label, {})
        for snapshot in sorted((one for one in kept if one.phase == phase.label), key=lambda one: one.step):
            for variant in (name for name in ends if name in snapshot.adapters):
                label, when = f"{phase.label}/{variant}, step {snapshot.step}", number - 1 + snapshot.share
                yield Stage(label, variant, when, partial(_at, snapshot, variant, ends[variant], label))
        for variant, adapter in ends.items():
            yield Stage(adapter.label, variant, number, lambda adapter=adapter: adapter)  # type: ignore[misc]


def _at(snapshot: Snapshot, variant: str, like: Adapter, label: str) -> Adapter:
    """An adapter of a snapshot, of the form of its task's end. Raises InputError where it has other tensors."""
    tensors = snapshot.tensors(variant)
    keys = {layer: f"base_model.model.{layer}.lora_" for layer in like.updates}
    try:
        updates = {
            layer: replace(like.updates[layer], down=tensors[f"{key}A.weight"], up=tensors[f"{key}B.weight"])
            for layer, key in keys.items()
        }
    except KeyError as error:
        raise InputError(f"{snapshot.file}: not of this run: no {error} in it; move it away") from None
    return Adapter(label, updates, like.base)


def from_adapters(folders: Sequence[Path], *, data: Path | None, model: str | None) -> Source:
    """Any two or three PEFT LoRA folders of one base model, evaluated on `data` (see `data_of`)."""
    refuse_no_adapters(folders)
    labels = labels_of(folders)
    found = [space.read(folder, label=label) for folder, label in zip(folders, labels, strict=True)]
    bases = list(dict.fromkeys(adapter.base for adapter in found if adapter.base))
    if model is None and len(bases) > 1:
        raise InputError(f"the adapters name different base models ({', '.join(bases)}); --model says which to use")
    space.check_space(found, "delta")
    aliases = {space.base_alias(folder) for folder in folders}
    base = model or (aliases.pop() if len(aliases) == 1 else None) or next(iter(bases), None)
    if base is None:
        raise InputError(f"{folders[0]}: adapter_config.json names no base model; --model says which to use")
    config = data_of(data, base)
    config = config.model_copy(update={"model": with_dtype(config.model)})
    tasks = tuple(load_tasks(config.data))
    joined = [(0, 1), (0, 2), (1, 2)] if len(found) == 3 else [(0, 1)]
    pairs = tuple(Pair((found[i], found[k]), tasks) for i, k in joined)
    corners = (found[0], found[1], found[2]) if len(found) == 3 else None
    return Source(config, pairs, corners)


def labels_of(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with their parents' or numbers where names alone would share a file."""
    labels = [folder.resolve().name for folder in folders]
    if _alike(labels):
        labels = [f"{folder.resolve().parent.name}/{folder.resolve().name}" for folder in folders]
    if _alike(labels):
        labels = [f"{number} {label}" for number, label in enumerate(labels, 1)]
    return labels


def _alike(labels: Sequence[str]) -> bool:
    """Whether two of them would share a file (names differ in case only on some file systems)."""
    return len({file_name(label).lower() for label in labels}) < len(labels)


def data_of(data: Path | None, base: str) -> Config:
    """The configuration for rows of `data`: a run folder, a CONFIG.yaml, or rows as `ilora run` takes them."""
    if data is None:
        raise InputError(
            "no data to evaluate the adapters on: give --data RUN, CONFIG.yaml, or a file or folder of rows"
        )
    if not data.exists():
        raise InputError(f"{data}: no such file or folder")
    if (data / "config.yaml").is_file() or (data.is_file() and not is_data(data)):
        config = load_config(data / "config.yaml" if data.is_dir() else data)
        return config.model_copy(update={"model": config.model.model_copy(update={"name": base})})
    return load_config({"model": {"name": base}, "data": {"path": str(data)}})


def digest(adapter: Adapter) -> str:
    """SHA-256 of what an adapter computes."""
    found = hashlib.sha256()
    for layer, update in adapter.updates.items():
        found.update(f"{layer} {update.scale!r}".encode())
        for side in (update.down, update.up):
            found.update(side.contiguous().numpy().tobytes())
    return found.hexdigest()


class Origins:
    """What results are made from: a file of another origin is another result. Digests are computed once."""

    def __init__(self, config: Config) -> None:
        self._digests: dict[
            int, tuple[Adapter | Stage | Task, str]
        ] = {}  # with the object, so that its id stays its own
        data, model, evaluation = config.data, config.model, config.evaluation
        self._common = {
            "model": {key: getattr(model, key) for key in ("name", "revision", "dtype", "attention")},
            "data": {key: getattr(data, key) for key in ("template", "separator", "max_length", "cut")},
            "evaluation": {key: getattr(evaluation, key) for key in ("batch_size", "max_new_tokens")},
        }

    def of(
        self, made_from: Sequence[Adapter | Stage], tasks: Sequence[Task], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The origin of one result: its own adapters, tasks (with the rows it is limited to) and settings."""
        return {
            "adapters": {adapter.label: self._digest(adapter) for adapter in made_from},
            "tasks": {task.label: self._digest(task) for task in tasks},
            "settings": dict(settings),
            **self._common,
        }

    def _digest(self, thing: Adapter | Stage | Task) -> str:
        if id(thing) not in self._digests:
            adapter = thing.read() if isinstance(thing, Stage) else thing
            value = fingerprint(adapter) if isinstance(adapter, Task) else digest(adapter)
            self._digests[id(thing)] = thing, value
        return self._digests[id(thing)][1]
