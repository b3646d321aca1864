"""Repair: other adapters in the place of a phase's own, in the order of what they cost; the first that passes is kept.

What needs no training comes first: the method's other adapters; the best point on the path between the adapter before
the phase and the one after it; and the last update shrunk, before + c · (now − before), as little as it takes (STABLE,
arXiv 2510.16089), and cut to the run's rank, so that it can be trained on. Then the phase is trained again, in folders
of its own, with settings that may do better (`trials`).
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ilora.connectivity import paths, space
from ilora.connectivity.landscape import average
from ilora.connectivity.sources import read_run
from ilora.connectivity.space import Adapter
from ilora.errors import InputError
from ilora.gates.bench import Bench, Candidate, lost_too_much, tried
from ilora.gates.evidence import Ability
from ilora.gates.judge import Judge
from ilora.gates.repaired import Records, drop_repaired, place_of, write_repaired
from ilora.gates.retraining import folder_of, is_trained, retrain
from ilora.gates.trials import Trial, affordable, trials
from ilora.progress import Display
from ilora.releases.journal import line
from ilora.releases.manifest import read_manifest
from ilora.releases.store import release_folder
from ilora.results.scores import prediction_folder, read_records
from ilora.training.divergence import DivergenceError
from ilora.training.interrupt import StopRequest

POINTS = 11  # of a path
_STEP = 1 / 16  # of c

Try = tuple[dict[str, Any], Callable[[], Path | None]]
"""What became of a candidate, as `tried` gives it, and what writes it to the place of the repaired adapter."""


def repair_phase(judge: Judge, *, source: str, hours: float | None = None, quiet: bool = False) -> dict[str, Any]:
    """Try the candidates; the first one that passes is written to RUN/gate/<phase>/repaired, and no other stays there.

    source: where the rules come from. hours: as `affordable` takes them; None: no limit.
    Returns `tries`, each with `candidate`, its `scores` and `checks` on the gate's rows and `outcome` (`not measured`:
    nothing of it fails, but the phase failed a rule that was not measured of it); `passed`: the name of the one that
    passes, or None; `adapter`: its PEFT folder, as a path in the run; `command`: what promotes it; and `notes`: why a
    candidate could not be made. A candidate that was trained has `chosen_on`, too, as `Bench.losses` gives it; one that
    loses too much there has no scores and no checks.
    """
    evidence, tries, notes = judge.evidence, list[dict[str, Any]](), list[str]()
    found: dict[str, Any] = {"passed": None, "adapter": None, "command": None, "tries": tries, "notes": notes}
    with Display(quiet=quiet) as display:
        for made, write in _candidates(judge, source, hours, display, notes):
            tries.append(made)
            if made["outcome"] == "passed":
                folder = write()
                last = folder is not None and evidence.number == len(evidence.phases) and _released_as(judge) is None
                found["passed"] = made["candidate"]
                found["adapter"] = None if folder is None else folder.relative_to(evidence.run).as_posix()
                found["command"] = shlex.join(["ilora", "promote", str(evidence.run), "--repaired"]) if last else None
                break
    if found["adapter"] is None:
        drop_repaired(evidence.run, evidence.phase)
    return found


def _released_as(judge: Judge) -> int | None:
    """The number of the release that was made of the phase; None where there is none."""
    run, number = judge.evidence.run, judge.evidence.number
    made = [one for one in line(run) if len(read_manifest(release_folder(run, one)).phases) == number]
    return made[-1] if made else None


def _candidates(judge: Judge, source: str, hours: float | None, display: Display, notes: list[str]) -> Iterator[Try]:
    """All of them, the cheapest first. notes: gets a sentence where one cannot be made."""
    yield from _variants(judge, source)
    try:
        config, tasks, _ = read_run(judge.evidence.run)
        bench = Bench(judge, config, tasks, display)
        bench.open()
    except InputError as error:
        notes.append(str(error))
        return
    yield from _without_training(bench, source, notes)
    if (made := _released_as(judge)) is not None:
        notes.append(
            f"training: phase {judge.evidence.phase} is release {made} already, and no adapter takes its place"
        )
        return
    bench.close()  # one model in memory at a time
    for trial in _to_train(bench, trials(judge, config, tasks, notes), hours, notes):
        try:
            yield _trained(bench, trial, source)
        except (InputError, DivergenceError) as error:
            notes.append(f"{trial.name}: {error}")
        finally:
            bench.close()


def _to_train(bench: Bench, found: list[Trial], hours: float | None, notes: list[str]) -> list[Trial]:
    """The trials that are allowed, what is trained already for nothing; says what they cost."""
    phase = bench.judge.evidence.phase
    known = [
        replace(trial, seconds=0.0) if is_trained(trial, folder_of(bench.run, phase, trial)) else trial
        for trial in found
    ]
    allowed = affordable(known, hours, notes)
    if allowed:
        costs = ", ".join(f"{trial.name} ({trial.cost})" for trial in allowed)
        bench.display.say(f"gate: nothing passes without training. Next, until one passes: {costs}")
        bench.display.say("gate: Ctrl-C stops after a step; the same command goes on from there")
    return allowed


def _variants(judge: Judge, source: str) -> Iterator[Try]:
    """The method's other adapters, whose answers are in the run already."""
    evidence = judge.evidence
    for variant in evidence.results["variants"]:
        if variant != evidence.answering:
            ability = evidence.ability(evidence.phase, variant)
            made = tried(judge, variant, {}, evidence.now(variant), ability)
            yield made, partial(_write_variant, judge, variant, source)


def _without_training(bench: Bench, source: str, notes: list[str]) -> Iterator[Try]:
    """The point on the path, then the shrunk update."""
    for make in (_on_path, _shrunk):
        try:
            candidate = make(bench)
        except InputError as error:
            notes.append(str(error))
        else:
            made, records, ability = bench.judged(candidate)
            yield made, partial(_write, bench.judge, candidate, records, ability, source)


def _on_path(bench: Bench) -> Candidate:
    """Of the points that hold, the one of the highest mean score, then of the lowest loss; no end."""
    curve = paths.make_path("linear", _ends(bench), space="factors")
    ts = paths.grid(POINTS)[1:-1]
    found = dict(zip(ts, bench.scores([curve.at(t) for t in ts], "choosing on the path"), strict=True))
    means = {t: average(scores, list(scores)) for t, scores in found.items() if bench.hold(scores)}
    if not means:
        raise InputError("path: no point between the two keeps the rules on the rows to choose on")
    best = max(means, key=lambda t: (means[t]["score"], -means[t]["loss"]))
    return Candidate("path", {"space": "factors", "t": best}, curve.at(best))


def _shrunk(bench: Bench) -> Candidate:
    """The largest c, in steps of 1/16, that holds; half of the update where the whole of it does.

    Then the loss is elsewhere, as in general ability, and these rows cannot say how far to shrink.
    """
    curve, low, high = paths.make_path("linear", _ends(bench), space="delta"), 0.0, 1.0

    def part(c: float) -> Adapter:
        """before + c · (now − before), in the rank of the run."""
        return space.reduced(curve.at(c), bench.now)

    if bench.hold(bench.scores([bench.now], "choosing: c = 1")[0]):
        low, high = 0.5, 0.5
    while high - low > _STEP:
        middle = (low + high) / 2
        holds = bench.hold(bench.scores([part(middle)], f"choosing: c = {middle:g}")[0])
        low, high = (middle, high) if holds else (low, middle)
    if not low:
        raise InputError("shrunk: even a sixteenth of the last update loses too much on the rows to choose on")
    return Candidate("shrunk", {"space": "delta", "c": low}, part(low))


def _ends(bench: Bench) -> tuple[Adapter, Adapter]:
    if bench.before is None:
        raise InputError(f"{bench.run}: before the first phase there is no adapter to go back towards")
    return bench.before, bench.now


def _trained(bench: Bench, trial: Trial, source: str) -> Try:
    """The adapter of a trial. It is judged on the gate's rows only if it holds on the rows to choose on."""
    place = folder_of(bench.run, bench.judge.evidence.phase, trial)
    with StopRequest(notify=bench.display.say) as stop:
        seconds = retrain(trial, place, display=bench.display, stop=stop)
    adapter = space.read(place / "adapter", label=trial.name)
    losses = bench.losses(bench.scores([adapter], f"choosing: {trial.name}")[0])
    how = {"settings": dict(trial.settings)}
    told = {"seconds": seconds, "trained": place.relative_to(bench.run).as_posix(), "chosen_on": losses}
    if lost_too_much(losses):
        made = {"candidate": trial.name, **how, "outcome": "failed", "scores": {}, "checks": []}
        return made | told, lambda: None
    candidate = Candidate(trial.name, how, adapter)
    made, records, ability = bench.judged(candidate)
    return made | told, partial(_write, bench.judge, candidate, records, ability, source)


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
