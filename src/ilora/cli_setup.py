"""The commands before and after a run: `init` writes its configuration, `prune` makes its folder small."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to the `ilora` command."""
    for command in (prune,):
        app.command()(command)


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]


def prune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Keep more or less than the run's own rule: checkpoints=1|2, moments=true|false, "
            "trajectory=none|last|all, adapters=last|answering|all, predictions=plain|compressed. "
            "May be given several times.",
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Show what a run folder need not keep, how much that frees and what it costs; then delete it."""
    from ilora.early import rule_of

    rule_of(run, keep or ())  # before torch is imported
    from rich.console import Console

    from ilora.commands import prune as commands
    from ilora.comparison.budget import size

    parts = commands.plan(run, keep or ())
    if not any(list(part.kinds) for part in parts):
        for line in commands.summary(run, parts)[:-1]:
            typer.echo(line)
        typer.echo(f"{run}: nothing to delete; the rule asks for all that is there (`keep` in config.yaml, --keep)")
        return
    Console(highlight=False).print(commands.prune_table(run, parts))
    for line in commands.summary(run, parts):
        typer.echo(line)
    if not yes and not sys.stdin.isatty():
        typer.echo("nothing was deleted; --yes deletes it")
    elif yes or typer.confirm("Delete it?", default=False):
        typer.echo(f"freed {size(commands.prune(run, keep or ()))}")
