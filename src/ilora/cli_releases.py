"""The commands that change a run and its releases as a whole, or show them: promote, rollback, history, forget."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="A running vLLM or SGLang server: it loads this release, then drops the one before."
    ),
]
Note = Annotated[str, typer.Option(help="Why, in a few words, for the history.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the `ilora` command."""
    for command in (promote, rollback, history, forget):
        app.command()(command)


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Print warnings as lines of the command."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", category=UserWarning)
        yield
    for one in told:
        typer.echo(f"warning: {one.message}", err=True)


def promote(
    run: RunFolder,
    note: Note = "",
    server: Server = None,
    force: Annotated[bool, typer.Option("--force", help="Also where the gate failed.")] = False,
    repaired: Annotated[
        bool,
        typer.Option("--repaired", help="Take the adapter that `gate --repair` found: the next task begins with it."),
    ] = False,
) -> None:
    """Make the last finished phase the current release: RUN/releases/N, with RUN/current pointing at it."""
    from ilora.commands import releases

    with _warnings_told():
        release = releases.promote(run, note=note, server=server, force=force, repaired=repaired)
    typer.echo(f"release {release.number} ({release.manifest.phase}) is the current one: {release.folder}")


def rollback(
    run: RunFolder,
    to: Annotated[
        int | None, typer.Option(min=1, help="The release to go back to (default: the one before the current one).")
    ] = None,
    note: Note = "",
    server: Server = None,
) -> None:
    """Go back to an earlier release, memory and method state included; the next `add` starts from there."""
    from ilora.commands import releases

    with _warnings_told():
        release = releases.rollback(run, to=to, note=note, server=server)
    typer.echo(
        f"release {release.number} ({release.manifest.phase}) is the current one, and the run is what it was then; "
        f"what came later is in {run / 'releases' / 'withdrawn'}"
    )


def history(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all that is known.")] = False,
) -> None:
    """Show the months of a run: every phase, its scores, its release, the gate, and when the run went back."""
    import json

    from rich.console import Console

    from ilora.commands import releases
    from ilora.releases.history import history_table

    found = releases.history(run)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        Console(highlight=False).print(history_table(found))


def forget(
    run: RunFolder,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task whose rows may no longer be kept.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a task's rows, remembered rows and predictions from a run. The adapters stay: this is not unlearning."""
    from ilora.early import config_of, own_run

    config_of(own_run(run))
    if not yes:
        typer.confirm(
            f"Delete the rows of task '{task}' from {run}, its releases and what was set aside, for good?", abort=True
        )
    from ilora.commands import releases

    left = releases.forget(run, task)
    typer.echo(
        f"The rows of task '{left.task}' are deleted from {run}: remembered rows, pseudo frames, stored answers and "
        "predictions. Its scores stay.\n"
        "This is deletion of data, not unlearning: the adapters were trained on these rows and stay as they are."
    )
    if left.lines:
        typer.echo("Not touched, and for you to delete:")
    for line in left.lines:
        typer.echo(f"  {line}")
