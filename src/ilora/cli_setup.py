"""The commands before and after a run: `init` writes its configuration, `prune` makes its folder small."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ilora.cli_inspect import Overrides


def register(app: typer.Typer) -> None:
    """Add the commands to the `ilora` command."""
    for command in (init, prune):
        app.command()(command)


def init(
    source: Annotated[Path, typer.Argument(metavar="DATA", help="A file or folder of rows, as `ilora run` takes it.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write (default: the data's name, .yaml, in this folder).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take every default.")] = False,
    timed: Annotated[bool, typer.Option("--time/--no-time", help="Measure how fast this machine trains.")] = True,
) -> None:
    """Look at the data, ask a few questions, and write a configuration with the reason for every value."""
    from ilora.early import before_init

    target = before_init(source, overrides or (), out, asks=not yes)
    from ilora.commands import init as commands

    commands.init(source, target, overrides or (), ask=_default if yes else _ask, say=_say, timed=timed)
    _say(f"written: {target}")
    _say(f"next:    ilora run {target}")


def _say(line: str) -> None:
    typer.echo(line)


def _default(_question: str, default: Any, _read: Callable[[str], Any]) -> Any:
    return default


def _ask(question: str, default: Any, read: Callable[[str], Any]) -> Any:
    """Ask until the answer can be read; an empty one is the default."""
    from ilora.errors import InputError

    shown = {True: "yes", False: "no"}.get(default, default) if isinstance(default, bool) else default
    while True:
        try:
            return read(str(typer.prompt(question, default=str(shown))))
        except InputError as error:
            typer.echo(f"  {error}", err=True)


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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
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
