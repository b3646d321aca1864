"""The commands that only look, and train nothing: list, config, data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

config_app = typer.Typer(no_args_is_help=True, help="Show configurations.")
data_app = typer.Typer(no_args_is_help=True, help="Check data before training on it.")

ConfigFile = Annotated[
    Path,
    typer.Argument(metavar="CONFIG.yaml|DATA", help="A configuration (see configs/), or a file or folder of rows."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings that replace those of the file, such as training.epochs=2."
    ),
]


def list_names(kind: Annotated[str, typer.Argument(metavar="methods|benchmarks|metrics|models")]) -> None:
    """List the names that a configuration may use."""
    from rich.console import Console

    from ilora.commands.listing import listing

    Console().print(listing(kind))


@config_app.command()
def show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the configuration with every default written out."""
    import yaml

    from ilora.config import load_config, refuse_early
    from ilora.stream import placed

    refuse_early(config, overrides or ())
    found = placed(load_config(config, overrides or ()))
    typer.echo(yaml.safe_dump(found.dump(), sort_keys=False, allow_unicode=True), nl=False)


@config_app.command()
def schema() -> None:
    """Print the JSON schema of the configuration (for editors that complete YAML)."""
    import json

    from ilora.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


@data_app.command()
def check(
    source: Annotated[
        Path,
        typer.Argument(metavar="CONFIG.yaml|DATA", help="A configuration, or a file or folder of rows."),
    ],
    overrides: Overrides = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the result to this file; - is the terminal.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Skip near duplicates and token counts.")] = False,
    timed: Annotated[bool, typer.Option("--time", help="Also measure how long training would take.")] = False,
) -> None:
    """Find repeated rows, test rows in train, over-long rows and unreadable answers. Exit code 1 for an error."""
    from ilora.early import before_check

    before_check(source, overrides or (), quiet=json_file == Path("-"))
    from ilora.check import audit

    config = audit.config_of(source, overrides or ())
    reports = list(audit.check_config(config, tokens=not quick, near=not quick))
    summary = audit.summarised(reports, config, timed=timed)
    _show_check(summary, json_file)
    if audit.failed(reports):
        raise typer.Exit(1)


def _show_check(summary: dict[str, Any], json_file: Path | None) -> None:
    import json

    from rich.console import Console

    from ilora.check.table import check_table
    from ilora.files import write_atomic

    text = json.dumps(summary, ensure_ascii=False, indent=1) + "\n"
    if json_file == Path("-"):
        typer.echo(text, nl=False)
        return
    console = Console(highlight=False)
    console.print(check_table(summary))
    if json_file is not None:
        write_atomic(json_file, text)


def dry_run(config: Path, overrides: Sequence[str], *, devices: int, nodes: int, hardware: Sequence[str]) -> None:
    """`run --dry-run`: print what a run will need."""
    from rich.console import Console

    from ilora.early import before_check

    before_check(config, overrides, quiet=True)
    from ilora.commands.dry_run import dry_run_command

    lines, table = dry_run_command(config, overrides, devices=devices, nodes=nodes, hardware=hardware)
    console = Console(highlight=False)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    console.print(table)
