"""Taking a repaired adapter for the last phase's own: `ilora promote --repaired`.

The run becomes what it would be if the phase had ended there. Every variant of the method is that adapter, in
adapters/<phase> and in the checkpoint, so that the next task begins with it, whichever variant the method begins with.
Memory, frames, importances and anchors stay as training left them. The phase's predictions are the repaired adapter's,
and results.json is made from them. What was there before lies in releases/withdrawn/<k>/. Every step may be repeated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ilora.data.task import Task, phases
from ilora.errors import InputError
from ilora.files import flush_folder, flush_tree, link_or_copy, write_flushed
from ilora.methods import method_class
from ilora.methods.summed import SummedAdapters
from ilora.releases import journal
from ilora.releases.candidate import Candidate
from ilora.releases.journal import Adoption
from ilora.releases.promotion import REPAIR, refuse_twice, repair_told
from ilora.releases.store import current
from ilora.releases.withdrawal import MEASURED, next_place
from ilora.results.reader import Results, read_text
from ilora.results.scores import compressed, prediction_folder, read_perplexity, score_matrix
from ilora.training import checkpoint as checkpoints
from ilora.training.checkpoint import Checkpoint

REPAIRED = "repaired"  # the folder, in RUN/gate/<phase>
FILE = REPAIR  # in it, and in the adapters' folders that were filled from it
NAME = "repaired"  # in its perplexity.json and probes.json, in place of a variant
_MEASURED = ("perplexity.json", "probes.json")  # of a phase, by variant
_COPIED = ("adapter_model.safetensors", "adapter_config.json", "base_model.json", FILE)
_TRAINED = "fast"  # the adapter that every method trains


def prepare(candidate: Candidate, repaired: Path, *, note: str) -> Adoption:
    """Write what the run will have under a scratch name. repaired: the folder that `ilora gate --repair` wrote.

    Raises InputError where the phase is a release already, the method saves a sum of adapters, or the adapter is not of
    the form of the phase's own.
    """
    run, results, label = candidate.run, candidate.results, candidate.phase
    refuse_twice(candidate)
    _refuse_a_sum(candidate)
    variants = sorted(results["variants"], key=lambda name: name != results["answers_with"])
    scratch = _scratch(run)
    shutil.rmtree(scratch, ignore_errors=True)
    for variant in variants:
        folder = scratch / "adapters" / label / variant
        folder.mkdir(parents=True)
        for name in _COPIED:
            if (repaired / name).is_file():
                shutil.copyfile(repaired / name, folder / name)
    shutil.copytree(run / "predictions", scratch / "predictions", copy_function=_link)
    for variant in variants:
        folder = prediction_folder(scratch, label)
        _replace(folder if variant == variants[0] else folder / variant, repaired / "predictions")
    _remeasured(prediction_folder(scratch, label), repaired / "predictions", variants)
    checkpoints.save(scratch / "checkpoints", _with_adapter(candidate, repaired, {*variants, _TRAINED}))
    made = _rescored(scratch, results, label, variants)
    write_flushed(scratch / "results.json", (json.dumps(made, ensure_ascii=False, indent=1) + "\n").encode())
    flush_tree(scratch)
    variant = made["variants"][variants[0]]
    event = journal.Event(
        id=journal.next_id(run),
        time=journal.now(),
        event="repair",
        release=current(run),
        phase=label,
        tasks=[task["name"] for task in results["tasks"]],
        scores={"summary": variant.get("summary"), "tasks": {}},
        note=note,
        ilora=journal.version(),
        repaired=repair_told(repaired),
    )
    return Adoption(phase=label, withdrawn=next_place(run), event=event)


def _refuse_a_sum(candidate: Candidate) -> None:
    """Raises InputError for a method that saves a sum of adapters: what it trains is a part of that."""
    name = str(candidate.results["method"])
    if issubclass(method_class(name), SummedAdapters):
        raise InputError(
            f"{candidate.run}: the method {name} saves the sum of an adapter for each task, and a repaired adapter "
            "cannot be taken apart into these, so no next task could begin with it"
        )


def finish(run: Path, adoption: Adoption, report: Callable[[Path], object]) -> None:
    """Do all that is left of it. report: writes report.html from a run folder."""
    scratch, aside = _scratch(run), run / "releases" / "withdrawn" / str(adoption.withdrawn)
    aside.mkdir(parents=True, exist_ok=True)
    if not (aside / "config.yaml").exists():
        link_or_copy(run / "config.yaml", aside / "config.yaml")
    for entry in (f"adapters/{adoption.phase}", "predictions", "checkpoints", "results.json"):
        if (scratch / entry).exists():
            _move(run / entry, aside / entry)
            (scratch / entry).rename(run / entry)
            flush_folder((run / entry).parent)
    for entry in (*MEASURED, "report.html"):
        _move(run / entry, aside / entry)
    report(run)
    journal.finish(run, adoption)
    shutil.rmtree(scratch, ignore_errors=True)


def _scratch(run: Path) -> Path:
    return run / "releases" / ".repair-writing"


def _move(path: Path, target: Path) -> None:
    """Set something aside, unless that was done."""
    if path.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def _replace(folder: Path, repaired: Path) -> None:
    """Put the predictions of the repaired adapter in the place of a variant's."""
    for file in sorted(repaired.glob("*.jsonl")):
        for old in (folder / file.name, compressed(folder / file.name)):
            old.unlink(missing_ok=True)
        link_or_copy(file, folder / file.name)


def _remeasured(folder: Path, repaired: Path, variants: list[str]) -> None:
    """What was measured of a phase's variants is the repaired adapter's, as far as it was measured of that."""
    for name in _MEASURED:
        (folder / name).unlink(missing_ok=True)
        if (repaired / name).is_file():
            found = json.loads(read_text(repaired / name))[NAME]
            write_flushed(folder / name, (json.dumps(dict.fromkeys(variants, found), indent=1) + "\n").encode())


def _with_adapter(candidate: Candidate, repaired: Path, names: set[str]) -> Checkpoint:
    """The checkpoint at the phase's end with the repaired adapter in the place of these. Raises InputError."""
    part = candidate.parts[0]
    found = checkpoints.load(part.state)
    file = repaired / "adapter_model.safetensors"
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    tensors = {group: dict(content) for group, content in found.tensors.items()}
    for group in [name for name in tensors if name.startswith("adapters")]:
        for key, old in tensors[group].items():
            name, _, parameter = key.partition(":")
            if name in names:
                tensors[group][key] = _fitting(weights.get(parameter), old, f"{file}: {parameter}")
    return Checkpoint(found.values, tensors)


def _fitting(new: Tensor | None, old: Tensor, place: str) -> Tensor:
    if new is None or new.shape != old.shape:
        raise InputError(f"{place}: not of the form of the adapter in training, so the next task cannot begin with it")
    return new.to(old.dtype)


def _rescored(scratch: Path, results: Results, label: str, variants: list[str]) -> dict[str, Any]:
    """results.json from the predictions in the scratch folder."""
    tasks = [
        Task(task["name"], {}, replaces=task.get("replaces") or "", forgotten=task.get("forgotten") or "")
        for task in results["tasks"]
    ]
    stream = "joint" if results.get("stream") == "joint" else "sequential"
    scores = score_matrix(scratch, phases(tasks, stream), tasks, variants=variants)
    return dict(results) | {"variants": scores, "perplexity": read_perplexity(scratch, label)}


def _link(source: str, target: str) -> None:
    link_or_copy(Path(source), Path(target))
