"""The `ilora` command. Heavy imports stand inside the commands, so that --help is instant."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from ilora.runner import RunResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Continual fine-tuning of large language models that does not forget.",
    epilog="Exit codes: 0 done, 1 the work found a problem, 2 bad input, 130 interrupted (resume goes on).",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at configurations.")
app.add_typer(config_app, name="config")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before anything is trained on it.")
app.add_typer(data_app, name="data")

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to run; see configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's: training.epochs=2"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The new run folder (default runs/<name>).")] = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune one model over a stream of tasks, evaluate after each, write a report."""
    from ilora.config import load_config

    settings = load_config(config, overrides or ())
    from ilora import runner

    _work(lambda: runner.run(settings, out, quiet=quiet), quiet)


@app.command()
def resume(path: RunFolder, quiet: Quiet = False) -> None:
    """Go on with an interrupted run from its last checkpoint, to the same final weights."""
    from ilora import runner

    _work(lambda: runner.resume(path, quiet=quiet), quiet)


@app.command()
def add(
    path: RunFolder,
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK...", help="Task folders, or names in the run's own source.")
    ],
    quiet: Quiet = False,
) -> None:
    """Go on with new tasks from a finished run: memory and adapters are kept."""
    from ilora import runner

    _work(lambda: runner.add(path, tasks, quiet=quiet), quiet)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="Which runs; see docs/sweeps.md.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder (default sweeps/<name>).")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time; the cores are divided among them.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster, or local.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Now only runs like this, such as 'er/*' or '*/1-0'; again for more.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and how long they may take.")] = False,
    quiet: Quiet = False,
) -> None:
    """Methods x orders x seeds x settings, each a run of its own. Called again, it does what is left."""
    from ilora.commands import sweep as command

    chosen: dict[str, Any] = {
        "out": out,
        "processes": processes,
        "ray": ray,
        "only": only or (),
        "dry_run": dry_run,
        "quiet": quiet,
    }
    try:
        command.sweep(file, overrides or (), **chosen)
    except KeyboardInterrupt:  # here, because typer would end without a word
        _fail("interrupted; the same command goes on", 130)


@app.command()
def connect(
    context: typer.Context,
    places: Annotated[
        list[Path], typer.Argument(metavar="RUN | ADAPTER ADAPTER [ADAPTER]", help="A run, or PEFT LoRA folders.")
    ],
    paths: Annotated[
        str | None,
        typer.Option(
            help="Of factors, delta, spherical, bezier, chain, with commas; bezier:delta etc. (default factors,delta; "
            "of --select factors)"
        ),
    ] = None,
    points: Annotated[int, typer.Option(help="Points on a path, its ends included.")] = 11,
    pairs: Annotated[str, typer.Option(help="Pairs of a run's adapters: last or all.")] = "last",
    split: Annotated[str, typer.Option(help="Split to judge on: test or eval.")] = "test",
    rows: Annotated[int | None, typer.Option(min=1, help="Rows a task, at most.")] = None,
    plane: Annotated[bool, typer.Option("--plane", help="Also the plane through three adapters.")] = False,
    grid: Annotated[int, typer.Option(help="Points a side of the plane.")] = 15,
    space: Annotated[str, typer.Option(help="Of the plane: factors or delta.")] = "factors",
    similarity: Annotated[bool, typer.Option("--similarity", help="Also CKA, angles, distances.")] = False,
    text: Annotated[Path | None, typer.Option(help="For --similarity: a text, a row a line (not the tasks).")] = None,
    bend_steps: Annotated[int, typer.Option(min=1, help="Training steps of a bend.")] = 60,
    select: Annotated[bool, typer.Option("--select", help="Choose t on memory and eval, write that adapter.")] = False,
    between: Annotated[str, typer.Option(help="For --select: adjacent or fast-slow.")] = "adjacent",
    data: Annotated[Path | None, typer.Option(help="For adapters: RUN, CONFIG.yaml or task folder(s).")] = None,
    model: Annotated[str | None, typer.Option(help="For adapters: the base model, if they do not tell.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default RUN/connectivity).")] = None,
    quiet: Quiet = False,
) -> None:
    """Mode connectivity: what lies between adapters. Loss and score along paths, planes, similarity; JSON, pictures."""
    from ilora.commands import connect as commands

    if select:
        other = ("pairs", "split", "plane", "grid", "space", "similarity", "text", "bend_steps", "data", "model")
        _refuse(context, other, "has no part in --select")
    else:
        _refuse(context, ("between",), "is for --select")
    if not plane:
        _refuse(context, ("grid", "space"), "is for --plane")
    if not any(kind in (paths or "") for kind in ("bezier", "chain")):
        _refuse(context, ("bend_steps",), "is for the paths bezier and chain")
    if not similarity:
        _refuse(context, ("text",), "is for --similarity")
    wanted = None if paths is None else tuple(filter(None, paths.split(",")))
    settings = commands.Settings(
        paths=wanted, points=points, split=split, rows=rows, plane=plane, grid=grid, space=space,
        similarity=similarity, text=text, bend_steps=bend_steps,
    )  # fmt: skip
    if select:
        _say(lambda: commands.select_command(places, settings, between=between, out=out, quiet=quiet), quiet)
        return
    chosen: dict[str, Any] = {"pairs": pairs, "data": data, "model": model, "out": out, "quiet": quiet}
    _say(lambda: commands.connect_command(places, settings, **chosen), quiet)


def _refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Raise InputError for an option that was given and would be passed over in silence."""
    from ilora.errors import InputError

    for option in context.command.params:
        given = context.get_parameter_source(option.name or "")
        if option.name in names and given is not None and given.name == "COMMANDLINE":
            raise InputError(f"{option.opts[0]}: it {why}")


@app.command()
def evaluate(
    context: typer.Context,
    path: RunFolder,
    at: Annotated[float | None, typer.Option(help="t between two adapters (default: the one that answers).")] = None,
    between: Annotated[str, typer.Option(help="For --at: adjacent or fast-slow.")] = "adjacent",
    along: Annotated[str, typer.Option("--path", help="For --at: as --paths of connect, one of them.")] = "factors",
    data: Annotated[Path | None, typer.Option(help="RUN, CONFIG.yaml or task folder(s) (default: the run's).")] = None,
    split: Annotated[str | None, typer.Option(help="test, eval or train (default: the run's).")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows a task, at most.")] = None,
    out: Annotated[Path | None, typer.Option(help="The new folder (default RUN/evaluations/...).")] = None,
    quiet: Quiet = False,
) -> None:
    """Score the adapter of a run, or any point between two of its adapters, on its tasks or others."""
    from ilora.commands import connect as commands

    if at is None:
        _refuse(context, ("between", "along"), "is for --at")
    chosen: dict[str, Any] = {
        "at": at,
        "between": between,
        "data": data,
        "split": split,
        "rows": rows,
        "out": out,
        "quiet": quiet,
    }
    _say(lambda: commands.evaluate_command(path, path=along, **chosen), quiet)


@app.command()
def compare(
    places: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Run folders, folders of them (a sweep), files of --save.")
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The row to set the others beside (default sequential, else the first).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default comparison, in PATH).")] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what was compared in one file without the data.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only runs like this, such as 'er/*' or '*/1-*'; again for more.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Many runs side by side: means with intervals, and paired differences. Nothing is ranked within its error."""
    from rich.console import Console

    from ilora.commands.compare import compare as compare_them
    from ilora.compare.texts import terminal

    comparison, folder = compare_them(places, baseline=baseline, out=out, save=save, only=only or ())
    if not quiet:
        console = Console(highlight=False)
        console.print(terminal(comparison))
        console.print(f"page:     {folder / 'index.html'}", markup=False, soft_wrap=True)
        if save is not None:
            console.print(f"evidence: {save}", markup=False, soft_wrap=True)


@app.command()
def general(
    path: RunFolder,
    tasks: Annotated[str, typer.Option(help="Of lm-evaluation-harness, with commas: hellaswag,arc_easy.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Rows a task, at most.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 8,
    quiet: Quiet = False,
) -> None:
    """General ability before and after: lm-evaluation-harness on the base model and on the run's final adapter."""
    from ilora.commands import general as harness

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    _say(lambda: harness.lines(harness.general(path, names, limit=limit, batch_size=batch_size)), quiet)


def _say(action: Callable[[], list[str]], quiet: bool) -> None:
    """Do it, and print the lines that it ends with."""
    try:
        lines = action()
    except KeyboardInterrupt:  # here, because typer would end without a word
        _fail("interrupted; what is complete is kept, the same command does the rest", 130)
    for line in [] if quiet else lines:
        typer.echo(line)


@app.command("list")
def list_names(kind: Annotated[str, typer.Argument(metavar="methods|benchmarks|metrics|models")]) -> None:
    """The names that a configuration may use."""
    from rich.console import Console

    from ilora.commands.listing import listing

    Console().print(listing(kind))


@config_app.command()
def show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the configuration with every default written out."""
    import yaml

    from ilora.config import load_config

    typer.echo(
        yaml.safe_dump(load_config(config, overrides or ()).dump(), sort_keys=False, allow_unicode=True),
        nl=False,
    )


@config_app.command()
def schema() -> None:
    """Print the JSON schema of the configuration (for editors that complete YAML)."""
    import json

    from ilora.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


@data_app.command()
def check(
    source: Annotated[
        Path, typer.Argument(metavar="PATH|CONFIG.yaml", help="A folder of task folders, one of them, or what to run.")
    ],
    overrides: Overrides = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it here; - is the output.")] = None,
    quick: Annotated[bool, typer.Option(help="No near duplicates and no token counts.")] = False,
    timed: Annotated[bool, typer.Option("--time", help="Also measure how long training would take.")] = False,
) -> None:
    """Repeated rows, test rows in train, lengths, label balance, unreadable answers. Exit code 1 for a failed check."""
    from ilora.check import audit as checks

    config = checks.config_of(source, overrides or ())
    reports = list(checks.check_config(config, tokens=not quick, near=not quick))
    summary = checks.summarised(reports, config, timed=timed)
    _show_check(summary, json_file)
    if checks.failed(reports):
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


def _work(action: Callable[[], RunResult], quiet: bool) -> None:
    try:
        result = action()
    except KeyboardInterrupt as error:  # here, because typer would end without a word
        _fail(_with_notes("interrupted", error), 130)
    else:
        _show(result, quiet)


def _show(result: RunResult, quiet: bool) -> None:
    if quiet or not result.main_process:
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(result.table(width=console.width))
    base = result.results["base_model"]
    console.print(f"report:   {result.report}", markup=False, soft_wrap=True)
    if result.adapter is not None:
        console.print(
            f'adapter:  PeftModel.from_pretrained(base, "{result.adapter}")   # base: {base}',
            markup=False,
            soft_wrap=True,
        )


def main() -> None:
    """The entry point: every expected error is one message on standard error and an exit code."""
    from ilora.errors import IloraError, InputError

    sys.path.append(
        str(Path.cwd())
    )  # where `method: my_module:MyMethod` is looked for; last, so that nothing is shadowed
    try:
        app(prog_name="ilora")
    except InputError as error:
        _fail(str(error), 2)
    except IloraError as error:
        _fail(_with_notes(str(error), error), 1)
    except OSError as error:
        _fail(_with_notes(f"{error.filename or 'file system'}: {error.strerror or error}", error), 1)


def _with_notes(message: str, error: BaseException) -> str:
    return "\n".join([message, *getattr(error, "__notes__", [])])


def _fail(message: str, code: int) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # Of several processes that met the same problem the first one says so, and the launcher then ends the others.
        # One that is still there met it alone.
        time.sleep(5)
    print(f"ilora: {message}", file=sys.stderr)
    sys.exit(code)
