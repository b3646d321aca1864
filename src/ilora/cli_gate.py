"""The command `ilora gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the `ilora` command."""
    app.command()(gate)


def gate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder.")] = None,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The rules (default: RUN/gate.yaml, else sensible ones).")
    ] = None,
    phase: Annotated[int | None, typer.Option(help="The phase's number (default: the last one).")] = None,
    probes: Annotated[
        bool, typer.Option("--probes", help="Measure arithmetic, facts, grammar, instructions and the loss on a text.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Where it fails, look for an adapter that passes: first without training, then by training the phase "
            "again in other ways (it says what that costs).",
        ),
    ] = False,
    train_hours: Annotated[
        float | None,
        typer.Option(min=0, metavar="H", help="With --repair: hours of training at most; 0: none (default: no limit)."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the decision as JSON.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as JUnit XML, for CI.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it for a merge request.")] = None,
    show_rules: Annotated[bool, typer.Option("--show-rules", help="Print the rules as YAML, and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no table.")] = False,
) -> None:
    """Decide by rules whether a finished phase may be released. Exit code 1 when it fails."""
    from ilora.errors import InputError
    from ilora.gates.rules import as_yaml, read_rules

    if show_rules:
        typer.echo(as_yaml(read_rules(run or Path(), rules)[0]), nl=False)
        return
    if run is None:
        raise InputError("RUN: name a run folder (or --show-rules, which prints the rules)")
    from ilora.files import refuse_own

    for option, file in {"--json": json_file, "--junit": junit, "--markdown": markdown}.items():
        refuse_own(file, option)
    from ilora.commands import gate as commands

    try:
        decision = commands.gate(
            run, rules=rules, phase=phase, probes=probes, repair=repair, train_hours=train_hours, quiet=quiet
        )
    except KeyboardInterrupt:  # here, because typer would end without a word
        typer.echo("ilora: interrupted; the same command goes on", err=True)
        raise typer.Exit(130) from None
    commands.write_outputs(decision, json_file=json_file, junit=junit, markdown=markdown)
    if not quiet:
        _show(decision)
    if decision["outcome"] == "failed":
        raise typer.Exit(1)


def _show(decision: dict[str, object]) -> None:
    from rich.console import Console

    from ilora.gates.outputs import sentences, table

    console = Console(highlight=False)
    console.print(table(decision))
    for sentence in sentences(decision):
        console.print(sentence, markup=False, soft_wrap=True)
