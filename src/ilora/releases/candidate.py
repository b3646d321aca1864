"""The candidate: the last finished phase of a run, whose results are complete and whose state is sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilora.config import read_yaml
from ilora.errors import InputError
from ilora.results.reader import Results, phase_labels, phase_names, read_results
from ilora.results.scores import contrast_folder
from ilora.training.checkpoint import load_latest


@dataclass(frozen=True)
class Part:
    """The run itself (`place` is empty), or one of its contrast runs (`place` is `contrast/<method>`).

    state: the folder of the checkpoint at the end of the last phase. values: that checkpoint's.
    """

    place: str
    folder: Path
    results: Results
    state: Path
    values: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A finished phase. phase: its label. parts: the run itself, then its contrast runs."""

    run: Path
    phase: str
    parts: tuple[Part, ...]

    @property
    def results(self) -> Results:
        """The run's results.json."""
        return self.parts[0].results

    @property
    def adapter(self) -> Path | None:
        """The PEFT folder of the adapter that answers; None for a method that has no such thing."""
        return self.run / self.results["adapter"] if self.results["adapter"] else None


def places(folder: Path) -> list[str]:
    """The run itself, as an empty text, and `contrast/<method>` for each contrast run that its configuration names.

    folder: of a run or of a release.
    """
    methods = read_yaml(folder / "config.yaml").get("contrast") or []
    return ["", *(contrast_folder(Path(), _name(method)).as_posix() for method in methods)]


def _name(entry: Any) -> str:
    """Of a method or a task, which a configuration may also give by its name alone."""
    return str(entry["name"] if isinstance(entry, dict) else entry)


def candidate(run: Path) -> Candidate:
    """The last finished phase of a run. Raises InputError where the run is not finished, or its state is damaged."""
    parts = tuple(_part(run, place) for place in places(run))
    results = parts[0].results
    if len({tuple(phase_names(part.results)) for part in parts}) > 1:
        raise InputError(f"{run}: its contrast runs have other phases; `ilora resume {run}` first")
    return Candidate(run, phase_labels(results)[-1], parts)


def _part(run: Path, place: str) -> Part:
    folder, unfinished = run / place, f"{run / place}: not finished; `ilora resume {run}` first"
    if not (folder / "results.json").is_file():
        raise InputError(unfinished)
    results = read_results(folder)
    wanted = [_name(task) for task in read_yaml(folder / "config.yaml")["data"]["tasks"]]
    if not results.get("complete") or wanted != [task["name"] for task in results["tasks"]]:
        raise InputError(unfinished)
    found, damaged = load_latest(folder / "checkpoints")
    if found is None or found.place is None:
        why = "; ".join(damaged.values()) or "there is none"
        raise InputError(f"{folder}: a release needs the checkpoint at the end of the last phase: {why}")
    position = found.values["position"]
    if not position["ended"] or position["phase"] != len(phase_names(results)):
        raise InputError(unfinished)
    return Part(place, folder, results, found.place, found.values)
