"""The options of `ilora export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ilora.errors import InputError


def export_run(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The new folder.")],
    kind: Annotated[
        str, typer.Option("--as", help="peft, merged (a whole model) or gguf (an adapter for llama.cpp).")
    ] = "peft",
    release: Annotated[
        int | None, typer.Option(min=1, help="Which release (default: the current one, where there is one).")
    ] = None,
    phase: Annotated[
        str | None, typer.Option(help="After which task: 03-fomc, 3 or fomc (default: the release, or the last task).")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Which adapter, such as slow (default: the one that answers).")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME[@REVISION]", help="The base model's hub id, where the run has a folder."),
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", help="The adapter's, such as apache-2.0.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Such as en. May be given several times.")] = None,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Also upload it to the hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make a private repository.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Write a run's adapter with a model card, for PEFT and vLLM, as a merged model, or for llama.cpp and Ollama."""
    from ilora.commands.export import export, lines

    if private and push is None:
        raise InputError("--private: it is for --push")
    chosen: dict[str, Any] = {
        "kind": kind,
        "phase": phase,
        "variant": variant,
        "base": base,
        "licence": license_,
        "release": release,
    }
    try:
        made = export(path, to, languages=language or (), push_to=push, private=private, **chosen)
    except KeyboardInterrupt:  # here, because typer would end without a word
        typer.echo("ilora: interrupted; the same command begins again", err=True)
        raise typer.Exit(130) from None
    for line in [] if quiet else lines(made):
        typer.echo(line)
