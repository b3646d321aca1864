"""What `ilora tune` does: try settings of every method by successive halving, and keep the best as presets."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ilora.commands.sweep import executor, refuse_failures, refuse_places, refuse_trackers
from ilora.errors import IloraError, InputError
from ilora.files import write_atomic
from ilora.present.numbers import markdown, plain, points
from ilora.progress import Display
from ilora.results.matrix import LEAST_LEARNT
from ilora.sweeps.estimate import estimates
from ilora.sweeps.halving import most_runs
from ilora.sweeps.local import Executor
from ilora.sweeps.plan import read_sweep
from ilora.sweeps.presets import NAME as PRESETS
from ilora.sweeps.sweep import execute
from ilora.sweeps.trials import Settings, TunePlan, plan_tuning
from ilora.sweeps.tried import NAME, Found, Tuning

HEAD = ("method", "settings", "OP", "learnt", "of individual", "runs")
NOT_TRAINED = "not trained"


def tune(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    processes: int = 1,
    ray: str | None = None,
    together: int | None = None,
    only: Sequence[str] = (),
    dry_run: bool = False,
    quiet: bool = False,
) -> Tuning:
    """Find the best settings of every method of a sweep file, on eval rows, orders and seeds that it does not report.

    overrides: settings in place of the file's, as `key=value`. out: default `sweeps/<name>-tuning`. processes, ray,
    together: as in `sweep`. only: shell patterns of the labels to tune now. dry_run: print what would be tried and how
    long it may take, and start nothing.
    Returns what was found; it is in tried.json, tried.md and presets.yaml of the folder, too. Raises InputError with
    nothing started, RunsFailed where runs failed in another way than by diverging, and NothingFound, with all else
    done, where all trials of a label diverged. After a KeyboardInterrupt or a kill the same call goes on, and ends
    with the same result.
    """
    refuse_places(processes, ray, together)
    asked = read_sweep(Path(file), overrides)
    plan = plan_tuning(asked, Path(file))
    tuning = Tuning(plan, Path(out) if out is not None else Path("sweeps") / f"{asked.name}-tuning")
    tuning.refuse_changes()
    tuning.book.refuse_changes()
    labels = matching(plan, only)
    if together is not None:
        refuse_trackers(plan.job(candidate, 0, 0) for candidate in plan.candidates if candidate.label in labels)
    with Display(quiet=quiet) as display:
        if dry_run:
            display.console.print(_plan_table(plan, labels))
            display.say(_estimated(tuning, labels, processes, display))
            return tuning
        with tuning.book.alone():
            _climb(tuning, labels, asked.model_dump(mode="json"), partial(executor, processes, ray, together), display)
        display.console.print(_found_table(tuning.found()))
        for line in _notes(tuning):
            display.say(line)
    refuse_dead(tuning, labels)
    return tuning


class NothingFound(IloraError):
    """Every trial of a method has diverged."""


def refuse_dead(tuning: Tuning, labels: Sequence[str]) -> None:
    """Raises NothingFound, which names the labels that have no settings with which they train."""
    dead = [label for label in labels if tuning.standings[label].complete and tuning.standings[label].best is None]
    if dead:
        raise NothingFound(
            f"every trial diverged: {_listed(dead)}; lower training.learning_rate, around which it is searched, and "
            "give another --out"
        )


def matching(plan: TunePlan, patterns: Sequence[str]) -> list[str]:
    """The labels that fit one of these shell patterns; all where there is none. InputError for one that fits none."""
    labels = [candidate.label for candidate in plan.candidates]
    for pattern in patterns:
        if not fnmatch.filter(labels, pattern):
            raise InputError(f"--only {pattern}: fits none of the labels {', '.join(labels)}")
    return [label for label in labels if not patterns or any(fnmatch.fnmatchcase(label, one) for one in patterns)]


def _climb(
    tuning: Tuning, labels: Sequence[str], sweep: dict[str, object], make: Callable[[], Executor], display: Display
) -> None:
    """Make the runs that the rungs ask for, until they ask for no more. What is known is written each time.

    make: what starts the runs; one for all rungs.
    """
    place = None
    while True:
        entries = tuning.open(labels)
        tuning.book.begin(sweep)
        _write(tuning)
        if not entries:
            return
        place = place or make()
        execute(tuning.book, entries, place, display=display)
        tuning.look()
        still_open = tuning.open(labels)
        _write(tuning)
        refuse_failures([entry for entry in entries if entry in still_open])


def _write(tuning: Tuning) -> None:
    tuning.write()
    write_atomic(tuning.path / "tried.md", as_markdown(tuning))


# -- what is shown -------------------------------------------------------------------------------------------------


def _plan_table(plan: TunePlan, labels: Sequence[str]) -> Table:
    table = Table(title="to be tried, beside each method's own settings", box=None)
    for head in ("label", "trials", "settings"):
        table.add_column(head, justify="right" if head == "trials" else "left", overflow="fold")
    for candidate in (one for one in plan.candidates if one.label in labels):
        tried = {
            key.removeprefix("method."): sorted({str(trial[key]) for trial in candidate.trials}, key=_as_number)
            for key in candidate.trials[0]
        }
        text = "; ".join(f"{key} {', '.join(values)}" for key, values in tried.items()) or "nothing to tune"
        table.add_row(*map(Text, (plain(candidate.label, 40), str(len(candidate.trials)), text)))
    return table


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return 0.0, text


def _estimated(tuning: Tuning, labels: Sequence[str], processes: int, display: Display) -> str:
    """How many runs there are, at most, and how long they may take: as long as each label's first ones."""
    plan = tuning.plan
    chosen = [candidate for candidate in plan.candidates if candidate.label in labels]
    runs = [most_runs(len(candidate.trials), plan.tune) for candidate in chosen]
    each = estimates([tuning.entry(candidate, 0, 0) for candidate in chosen], say=display.say)
    seconds, total = sum(count * time for count, time in zip(runs, each, strict=True)), sum(runs)
    done = tuning.book.count("done")
    return (
        f"{total} runs at most ({done} done), each rung {plan.tune.runs} runs of a trial, the best 1 of "
        f"{plan.tune.reduction} goes on: about {seconds / 3600 / processes:.1f} h with {processes} at a time, an "
        "estimate from a few steps of plain training and from finished runs"
    )


def words(settings: Settings) -> str:
    """Settings for people."""
    return ", ".join(f"{key.removeprefix('method.')}={value}" for key, value in settings.items()) or "–"


def _cells(one: Found) -> list[str]:
    share = "–" if one.share is None else f"{one.share:.0%}" + (f", {NOT_TRAINED}" if one.not_trained else "")
    name = plain(one.candidate.label, 40)
    return [name, words(one.settings), points(one.op), points(one.learnt), share, str(len(one.scores))]


def _found_table(found: Sequence[Found]) -> Table:
    table = Table(title="the best settings by mean OP on eval", box=None)
    for head in HEAD:
        table.add_column(head, justify="left" if head in ("method", "settings") else "right", overflow="fold")
    for one in found:
        table.add_row(*map(Text, _cells(one)), style="dim" if one.not_trained else "")
    return table


def _notes(tuning: Tuning) -> list[str]:
    """What a reader must know beside the table, and what comes next."""
    found, lines = tuning.found(), []
    if untrained := [one.candidate.label for one in found if one.not_trained]:
        lines.append(
            f"{NOT_TRAINED}, so not ranked: {_listed(untrained)}: learnt (the mean of R[i, i]) is below "
            f"{LEAST_LEARNT:.0%} of that of `individual`"
        )
    if not any(one.candidate.method == "individual" for one in found):
        lines.append("no tuned `individual` in the file: which methods were trained is not known")
    standings = tuning.standings.items()
    if dead := [label for label, one in standings if one.complete and one.best is None]:
        lines.append(f"every trial diverged: {_listed(dead)}")
    if left := [label for label, one in standings if not one.complete]:
        lines.append(f"not tuned to the end yet: {_listed(left)}")
    lines.append("these scores chose the settings, so they are too high: report other seeds and orders, on test rows")
    lines.append(f"every tried value: {tuning.path / NAME}; for a sweep file:  presets: {tuning.path / PRESETS}")
    return lines


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(plain(label, 40) for label in labels)


def as_markdown(tuning: Tuning) -> str:
    """The best settings, and every tried value with its mean scores."""
    head = ["method", "trial", "settings", "rung", "runs", "OP", "learnt", ""]
    lines = [head]
    for method in tuning.tried():
        for trial in method["trials"]:
            state = "best" if trial["number"] == method["best"] else "diverged" if trial["diverged"] else ""
            runs = [run for run in trial["runs"] if run["state"] == "done"]
            cells = [str(trial["number"]), words(trial["settings"]), str(trial["rung"]), str(len(runs))]
            lines.append([plain(method["label"], 40), *cells, points(trial["OP"]), points(trial["learnt"]), state])
    best = [list(HEAD), *(_cells(one) for one in tuning.found())]
    notes = "\n".join(f"* {plain(line)}" for line in _notes(tuning)[:-1])
    rungs = ", ".join(map(str, tuning.plan.tune.runs))
    return (
        f"# Tuning\n\nThe best settings by mean OP on eval.\n\n{markdown(best)}\n{notes}\n\n## Every tried value\n\n"
        f"Runs of a trial after each rung: {rungs}. Only the best trials of a rung go on.\n\n"
        f"{markdown(lines)}"
    )
