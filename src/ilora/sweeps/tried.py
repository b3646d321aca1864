"""A tuning's folder: where its trials stand, read from their runs, and tried.json with every value that was tried.

tried.json stands for runs whose folders are gone: it alone is what a tuning needs to go on, also on another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.places import without_places
from ilora.results.matrix import ALL, LEAST_LEARNT, learnt_share, mean_of_all, summarise
from ilora.results.reader import matrix, read_results
from ilora.sweeps.book import Book, Entry, last_message, last_words
from ilora.sweeps.halving import Outcome, Score, Standing, mean_op, scores, standing
from ilora.sweeps.plan import Job
from ilora.sweeps.presets import Presets
from ilora.sweeps.trials import Candidate, Settings, TunePlan
from ilora.sweeps.tuning import TuneConfig
from ilora.training.divergence import SAID

SCHEMA = 1
NAME = "tried.json"


@dataclass(frozen=True)
class Found:
    """The best trial of a label. share: what it learnt, of what `individual` learns; None where that is not known."""

    candidate: Candidate
    trial: int
    scores: Sequence[Score]
    share: float | None

    @property
    def settings(self) -> Settings:
        """The best ones."""
        return self.candidate.trials[self.trial]

    @property
    def op(self) -> float:
        """The mean over its runs."""
        return mean_op(list(self.scores))

    @property
    def learnt(self) -> float | None:
        """The mean over its runs."""
        return mean_of_all([score.learnt for score in self.scores])

    @property
    def not_trained(self) -> bool:
        """Whether it learnt too little to be ranked."""
        return self.share is not None and self.share < LEAST_LEARNT


class Tuning:
    """What is known of a tuning: its plan, its runs' folders and tried.json, so that a kill loses nothing."""

    def __init__(self, plan: TunePlan, path: Path) -> None:
        self.plan, self.path = plan, path
        self.book = Book(path, [])
        self._entries: dict[tuple[str, int, int], Entry] = {}  # by label, trial and run
        self._outcomes: dict[tuple[str, int, int], Outcome] = {}
        self.standings: dict[str, Standing] = {}
        self._before = _read(path / NAME)
        self._kept = {} if self._before is None else dict(_outcomes(self._before))
        self.look()

    def look(self) -> None:
        """Go up each label's rungs as far as its runs reach. A run joins the book when a rung asks for it."""
        for candidate in self.plan.candidates:
            found = standing(len(candidate.trials), self.plan.tune, partial(self.outcome, candidate))
            self.standings[candidate.label] = found
        places = {candidate.label: place for place, candidate in enumerate(self.plan.candidates)}
        in_order = sorted(self._entries, key=lambda key: (key[2], places[key[0]], key[1]))
        self.book.entries = [self._entries[key] for key in in_order]  # the same wherever it was stopped

    def entry(self, candidate: Candidate, trial: int, run: int) -> Entry:
        """A run of a trial."""
        key = (candidate.label, trial, run)
        if key not in self._entries:
            entry = self.book.add(self.plan.job(candidate, trial, run))
            if entry.state != "done" and _diverged(entry):
                entry.fail(f"exit code 1: {last_words(entry.log)}")
            self._entries[key] = entry
        return self._entries[key]

    def outcome(self, candidate: Candidate, trial: int, run: int) -> Outcome:
        """Of a run: its scores, "diverged" by its log, or None where it is to be made or to be finished."""
        key = (candidate.label, trial, run)
        if self._outcomes.get(key) is None:
            entry = self.entry(candidate, trial, run)
            self._outcomes[key] = _outcome(entry)
            if self._outcomes[key] is None and (kept := self._kept.get(self._key(candidate, trial, run))):
                entry.state = "failed" if kept == "diverged" else "done"
                self._outcomes[key] = kept
        return self._outcomes[key]

    def _key(self, candidate: Candidate, trial: int, run: int) -> Key:
        return _key(candidate.label, candidate.trials[trial], *self.plan.runs[run])

    def open(self, labels: Sequence[str]) -> list[Entry]:
        """The runs of these labels to make now."""
        return [
            self.entry(candidate, trial, run)
            for candidate in self.plan.candidates
            if candidate.label in labels
            for trial, run in self.standings[candidate.label].open
        ]

    def found(self) -> list[Found]:
        """The best trial of each label that is tuned to its end, the best label first, those not trained last."""
        runs, best = self.plan.tune.runs[-1], {}
        for candidate in self.plan.candidates:
            trial = self.standings[candidate.label].best
            if trial is not None:
                best[candidate.label] = (candidate, trial, scores(partial(self.outcome, candidate), trial, runs))
        alone = next((made for candidate, _, made in best.values() if candidate.method == "individual"), [])
        learnt = [score.learnt for score in alone]
        made = [
            Found(candidate, trial, own, learnt_share([score.learnt for score in own], learnt))
            for candidate, trial, own in best.values()
        ]
        return sorted(made, key=lambda one: (one.not_trained, -one.op))

    def presets(self) -> Presets:
        """The best settings of the labels that are tuned to their end."""
        best = {one.candidate.label: one for one in self.found()}
        methods = {
            candidate.label: {
                "name": candidate.method,
                **{key.removeprefix("method."): value for key, value in best[candidate.label].settings.items()},
            }
            for candidate in self.plan.candidates
            if candidate.label in best
        }
        return Presets(tuned_on=self.plan.tuned_on, methods=methods)

    # -- tried.json ----------------------------------------------------------------------------------------------------

    def refuse_changes(self) -> None:
        """Raises InputError where what was tried before is not part of the plan: no tried value gets lost."""
        if self._before is None:
            return
        now, changed = {candidate.label: candidate for candidate in self.plan.candidates}, list[str]()
        for one in self._before["methods"]:
            label, trials = one["label"], [trial["settings"] for trial in one["trials"]]
            if label not in now or now[label].trials[: len(trials)] != trials:
                changed.append(label)
            elif one["settings"] != _digest(now[label], self.plan.tune):
                changed.append(f"settings of {label}")
        changed += ["runs"] if self._before["runs"] != self.plan.tune.runs else []
        changed += (
            ["orders and seeds"] if self._before["tuned_on"] != self.plan.tuned_on.model_dump(mode="json") else []
        )
        if changed:
            raise InputError(
                f"{self.path / NAME}: was begun with other {', '.join(changed)}; a changed tuning needs another --out "
                "(methods and trials may be added)"
            )

    def write(self) -> None:
        """tried.json, and presets.yaml with what is found by now."""
        content = {
            "schema": SCHEMA,
            "tuned_on": self.plan.tuned_on.model_dump(mode="json"),
            "runs": self.plan.tune.runs,
            "methods": self.tried(),
        }
        write_atomic(self.path / NAME, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        self.presets().write(self.path)

    def tried(self) -> list[dict[str, Any]]:
        """Every trial of every label with the runs that it had; scores 0..1."""
        found = {one.candidate.label: one for one in self.found()}
        return [
            {
                "label": candidate.label,
                "method": candidate.method,
                "settings": _digest(candidate, self.plan.tune),
                "complete": self.standings[candidate.label].complete,
                "best": found[candidate.label].trial if candidate.label in found else None,
                "learnt_share": found[candidate.label].share if candidate.label in found else None,
                "not_trained": candidate.label in found and found[candidate.label].not_trained,
                "trials": [self._trial(candidate, number) for number in range(len(candidate.trials))],
            }
            for candidate in self.plan.candidates
        ]

    def _trial(self, candidate: Candidate, number: int) -> dict[str, Any]:
        """Its settings, the last rung that it reached, its runs so far and their means."""
        rungs = self.standings[candidate.label].rungs
        asked = {run for label, trial, run in self._entries if (label, trial) == (candidate.label, number)}
        # What ended once is kept, also where a rung does not ask for it yet, as trials were added to the one below.
        kept = {run for run in range(len(self.plan.runs)) if self._key(candidate, number, run) in self._kept}
        outcomes = {
            run: self.outcome(candidate, number, run) if run in asked else self._kept[self._key(candidate, number, run)]
            for run in sorted(asked | kept)
        }
        known = [outcome for outcome in outcomes.values() if isinstance(outcome, Score)]
        return {
            "number": number,
            "settings": candidate.trials[number],
            "rung": sum(number in rung for rung in rungs),
            "diverged": "diverged" in outcomes.values(),
            "OP": mean_op(known) if known else None,
            "learnt": mean_of_all([score.learnt for score in known]),
            "runs": [_run(self.plan.job(candidate, number, run), outcome) for run, outcome in outcomes.items()],
        }


Key = tuple[str, str, int, int]
"""A run of a trial in tried.json: label, the trial's settings, order, seed."""


def _key(label: str, settings: Settings, order: int, seed: int) -> Key:
    return label, json.dumps(settings, sort_keys=True), order, seed


def _outcomes(content: Mapping[str, Any]) -> Iterator[tuple[Key, Outcome]]:
    """What tried.json knows of the runs that ended."""
    for label, trial in [(method["label"], trial) for method in content["methods"] for trial in method["trials"]]:
        for run in trial["runs"]:
            key = _key(label, trial["settings"], run["order"], run["seed"])
            if run["state"] == "done":
                yield key, Score(_share(run["OP"]), None if run["learnt"] is None else _share(run["learnt"]))
            elif run["state"] == "diverged":
                yield key, "diverged"


def _share(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"a score is a number from 0 to 1, and not {value!r}")
    return float(value)


def _read(file: Path) -> dict[str, Any] | None:
    """tried.json, whose form is checked; None where there is none."""
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = list(_outcomes(content)), [(one["label"], one["settings"]) for one in content["methods"]]
        _ = [trial["settings"] for one in content["methods"] for trial in one["trials"]]
        _ = content["tuned_on"], content["runs"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read ({error!r}); the runs beside it are kept, remove it") from None
    return content


def _digest(candidate: Candidate, tune: TuneConfig) -> str:
    """Of the settings that all runs of a label have, but for places and for the type that suits the machine.

    Defaults are left out, so that it holds in a later version, which has further settings.
    """
    values = without_places(candidate.config.model_dump(mode="json", exclude_defaults=True))
    values["model"] = {key: value for key, value in values.get("model", {}).items() if key != "dtype"}
    values["reduction"] = tune.reduction
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def _run(job: Job, outcome: Outcome) -> Mapping[str, Any]:
    made = {"order": job.order, "seed": job.seed, "folder": job.folder.as_posix()}
    if isinstance(outcome, Score):
        return {**made, "state": "done", "OP": outcome.op, "learnt": outcome.learnt}
    return {**made, "state": outcome or "waiting"}


def _diverged(entry: Entry) -> bool:
    return SAID in last_message(entry.log)


def _outcome(entry: Entry) -> Outcome:
    """Of a run, from its folder and its log: only a divergence is an answer, every other failure is tried again."""
    if entry.state != "done":
        return "diverged" if entry.state == "failed" and _diverged(entry) else None
    results = read_results(entry.path)
    rows = matrix(results, results["answers_with"])
    found = summarise(rows, trained=[ALL] * len(rows) if results.get("stream") == "joint" else None)
    if found["OP"] is None:
        raise InputError(f"{entry.path / 'results.json'}: a task has no score after the last one")
    return Score(found["OP"], found["plasticity"])
