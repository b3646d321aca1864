"""The commands that use a finished run: diff, ask, predict."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--with",
        metavar="NAME",
        help="base, a variant such as fast, phase:2, phase:2/fast, release:1 or t:0.4 (default: the adapter that "
        "answers).",
    ),
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Of an answer (default: as in the run's evaluation).")]


def diff(
    path: RunFolder,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[A [B]]",
            help="Phases, by number, label, `base` or release:1, or one other run folder (default: the last phase and "
            "the current release or the phase before; one phase: it and the last).",
        ),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task. May be given several times.")] = None,
    threshold: Annotated[float, typer.Option(help="A graded score counts when it changed by at least this.")] = 0.5,
    jsonl: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the changed rows, whole.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Show which rows were right before and are wrong now, and the other way."""
    from rich.console import Console

    from ilora.commands.diff import diff, show
    from ilora.errors import InputError

    if len(names or ()) > 2:
        raise InputError(f"{len(names or ())} names; at most two phases can be compared")
    found, page = diff(path, names or (), threshold=threshold, only=task or (), jsonl=jsonl)
    if not quiet:
        console = Console(highlight=False)
        show(found, console)
        console.print(f"\npage:     {page}", markup=False, soft_wrap=True)


def ask(
    path: RunFolder,
    question: Annotated[
        str | None, typer.Argument(metavar='["QUESTION"]', help="Without one: those that you type, until Ctrl-D.")
    ] = None,
    weights: Weights = None,
    max_tokens: MaxTokens = None,
) -> None:
    """Ask a run's adapter, and compare its answers with those of the base model or of an earlier phase."""
    from ilora.results.reader import refuse_no_results

    refuse_no_results(path)  # before torch is imported
    from ilora.commands.ask import ask

    _interruptible(lambda: ask(path, question, weights=weights, max_tokens=max_tokens), "interrupted")


def predict(
    path: RunFolder,
    rows: Annotated[
        Path, typer.Argument(metavar="ROWS", help="Prompts or messages: .jsonl, .json, .csv, .tsv, .xlsx or .parquet.")
    ],
    out: Annotated[Path, typer.Option(help="The new .jsonl file; where it was cut off, it is gone on with.")],
    task: Annotated[
        str | None, typer.Option(help="A task of the run: its limit and choices hold, rows with an answer get a score.")
    ] = None,
    weights: Weights = None,
    max_tokens: MaxTokens = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows at a time (default: the run's).")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no lines at the end.")] = False,
) -> None:
    """Answer every row of a file with a run's adapter."""
    from ilora.early import before_reading, is_first

    before_reading(path, quiet=quiet)
    from ilora.commands.predict import predict_command

    def work() -> None:
        lines = predict_command(
            path, rows, out, name=weights, task=task, max_tokens=max_tokens, batch_size=batch_size, quiet=quiet
        )
        for line in lines if is_first() and not quiet else []:
            typer.echo(line)

    _interruptible(work, "interrupted; the same command goes on")


def _interruptible(action: Callable[[], None], told: str) -> None:
    """Do it; Ctrl-C ends it with one line and exit code 130 (typer would end without a word)."""
    try:
        action()
    except KeyboardInterrupt:
        print(f"ilora: {told}", file=sys.stderr)
        raise typer.Exit(130) from None
