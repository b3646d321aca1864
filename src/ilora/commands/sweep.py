"""What `ilora sweep` does: plan, estimate or execute, and say how it ended."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.table import Table

from ilora.errors import IloraError, InputError
from ilora.progress import Display
from ilora.sweeps.book import Book, Entry
from ilora.sweeps.estimate import estimates
from ilora.sweeps.local import Executor, Processes
from ilora.sweeps.plan import Job, expand, read_sweep
from ilora.sweeps.sweep import execute


class RunsFailed(IloraError):
    """Some runs of a sweep did not end well; the others did."""


def sweep(
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
) -> Book:
    """Make every run of a sweep file that is not made yet.

    overrides: settings in place of the file's, as `key=value`.
    out: the sweep's folder; default `sweeps/<name>`.
    processes: how many runs at a time; they share the cores, and each sees one GPU. With `ray`: how many share a GPU.
    ray: the address of a Ray cluster to use instead; `local` starts one on this machine.
    together: how many runs at a time in this process, their passes computed together over one copy of the base model.
    only: shell patterns of the runs to make now.
    dry_run: print the runs and how long they may take, and start none.
    Returns the book of all runs and their states. Raises InputError with nothing started, and RunsFailed when all is
    done and some runs failed. After a KeyboardInterrupt the same call goes on.
    """
    refuse_places(processes, ray, together)
    asked = read_sweep(Path(file), overrides)
    jobs = expand(asked, Path(file))
    book = Book(Path(out) if out is not None else Path("sweeps") / str(asked.name), jobs)
    book.refuse_changes()
    chosen = book.matching(only)
    if together is not None:
        refuse_trackers(entry.job for entry in chosen)
    with Display(quiet=quiet) as display:
        if dry_run:
            seconds = estimates(chosen, say=display.say)
            display.console.print(_plan_table(chosen, seconds))
            display.say(_summary(chosen, seconds, processes))
            return book
        with book.alone():
            book.begin(asked.model_dump(mode="json"))
            execute(book, chosen, executor(processes, ray, together), display=display)
        refuse_failures(chosen)
        done = f"{book.count('done')} of {len(book.entries)} runs done"
        display.say(f"{done}: {book.path}; `ilora compare {book.path}` shows them side by side")
    return book


def refuse_places(processes: int, ray: str | None, together: int | None) -> None:
    """Raises InputError where runs cannot be made so."""
    if not 1 <= processes <= (os.cpu_count() or 1):
        raise InputError(f"--processes {processes}: allowed are 1 to {os.cpu_count()}, the cores of this machine")
    if together is not None and (processes > 1 or ray is not None):
        raise InputError(f"--together {together}: it makes all runs in one process; leave out --processes and --ray")
    if together is not None and together < 1:
        raise InputError(f"--together {together}: how many runs at a time, 1 or more")


def refuse_trackers(jobs: Iterable[Job]) -> None:
    """Raises InputError for a run that is followed by what follows one run in a process."""
    for job in jobs:
        if others := set(job.config.trackers) - {"tensorboard"}:
            raise InputError(
                f"{job.title}: trackers: {', '.join(sorted(others))} follows one run in a process; with --together "
                "only tensorboard can be used"
            )


def refuse_failures(entries: Sequence[Entry]) -> None:
    """Raises RunsFailed, which names the runs that failed."""
    failed = [entry for entry in entries if entry.state == "failed"]
    if failed:
        lines = [f"  {entry.job.title}: {entry.error} ({entry.log})" for entry in failed]
        again = "the same command tries them again"
        raise RunsFailed(f"{len(failed)} of {len(entries)} runs failed; {again}\n" + "\n".join(lines))


def executor(processes: int, ray: str | None, together: int | None = None) -> Executor:
    """What starts the runs: processes of this machine, or a Ray cluster; or threads of this process."""
    if together is not None:
        from ilora.runner import resume, run
        from ilora.sweeps.together import Together

        return Together(together, run=run, resume=resume)
    if ray is None:
        return Processes(processes, gpus=torch.cuda.device_count())
    from ilora.sweeps.cluster import Cluster

    return Cluster(ray, on_a_gpu=processes)


def _plan_table(entries: Sequence[Entry], seconds: Sequence[float]) -> Table:
    table = Table(title="runs", box=None)
    for head in ("label", "order", "seed", "settings", "state", "minutes"):
        table.add_column(head, justify="right" if head in ("order", "seed", "minutes") else "left")
    for entry, expected in zip(entries, seconds, strict=True):
        settings = ", ".join(f"{key}={value}" for key, value in entry.job.settings.items())
        cells = [entry.job.label, str(entry.job.order), str(entry.job.seed), settings, entry.state]
        table.add_row(*cells, f"{expected / 60:.1f}")
    return table


def _summary(entries: Sequence[Entry], seconds: Sequence[float], processes: int) -> str:
    left = sum(expected for entry, expected in zip(entries, seconds, strict=True) if entry.state != "done")
    todo = sum(entry.state != "done" for entry in entries)
    hours = left / 3600 / processes
    return (
        f"{len(entries)} runs, {todo} to do: about {hours:.1f} h with {processes} at a time, an estimate from a few "
        "steps of plain training and from finished runs, without start-up; several at a time share the same cores"
    )
