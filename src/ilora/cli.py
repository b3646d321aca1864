"""The `ilora` command. Heavy imports stand inside the commands, so that --help is instant."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ilora import cli_gate, cli_inspect, cli_releases, cli_setup, cli_use
from ilora.cli_export import export_run
from ilora.cli_inspect import ConfigFile, Overrides, config_app, data_app, list_names

if TYPE_CHECKING:
    from ilora.runner import RunResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 the work found a problem, 2 bad input, 75 too little memory, 130 interrupted.",
)


def _version(asked: bool) -> None:
    from importlib.metadata import version

    if asked:
        typer.echo(f"ilora {version('ilora')}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the lines and bars of other libraries, too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Continual fine-tuning of large language models that does not forget."""
    from ilora.progress import hide_other_lines

    del version  # its callback has printed it
    if not verbose:
        hide_other_lines()


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Places = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Where the data lies now, such as data.path=my/tasks."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no table.")]
Together = Annotated[
    int | None, typer.Option(min=1, help="Instead: so many at a time in one process, over one copy of the base model.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run as workers of a Ray cluster that shares the run folder; `local` starts one here. A worker that fails "
        "begins again from the last checkpoint.",
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="With --ray: processes (default: one for each GPU of the cluster, or one).")
]


@app.command()
def run(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The new run folder (default: runs/<name>).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the run will need, and start nothing; no weight is read.")
    ] = False,
    devices: Annotated[int, typer.Option(min=1, help="With --dry-run: devices of a machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="With --dry-run: machines.")] = 1,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="With --dry-run: memory=80 (GB), rate=400 (TFLOP/s reached), link=300 and network=40 (GB/s into a "
            "device, within a machine and between them), reserved=2 (GB). May be given several times.",
        ),
    ] = None,
    ray: Ray = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Train one model on a stream of tasks, evaluate it after each one, and write a report."""
    if dry_run:
        cli_inspect.dry_run(config, overrides or (), devices=devices, nodes=nodes, hardware=hardware or ())
        return
    _refuse(context, ("devices", "nodes", "hardware"), "is for --dry-run")
    if ray is None:
        _refuse(context, ("workers",), "is for --ray")
    from ilora.early import before_run

    before_run(config, overrides or (), out, quiet=quiet)
    from ilora import runner
    from ilora.config import load_config

    settings = load_config(config, overrides or ())
    if ray is not None:
        from ilora.commands.on_ray import run_on_ray

        _work(lambda: run_on_ray(ray, settings, out, workers=workers, quiet=quiet), quiet)
        return
    _work(lambda: runner.run(settings, out, quiet=quiet), quiet)


@app.command()
def resume(
    context: typer.Context,
    path: RunFolder,
    places: Places = None,
    ray: Ray = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Continue an interrupted run from its last checkpoint, to the same final weights."""
    from ilora.early import before_resume

    if ray is None:
        _refuse(context, ("workers",), "is for --ray")
    before_resume(path, places or (), quiet=quiet)
    if ray is not None:
        from ilora.commands.on_ray import resume_on_ray

        _work(lambda: resume_on_ray(ray, path, places or (), workers=workers, quiet=quiet), quiet)
        return
    from ilora import runner

    _work(lambda: runner.resume(path, places or (), quiet=quiet), quiet)


@app.command()
def add(
    context: typer.Context,
    path: RunFolder,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK... [KEY=VALUE]...",
            help="Files or folders of rows, or names of tasks of the run's own source; and settings that hold from the "
            "first of them on (training.learning_rate=1e-4, method.memory_size=1000), or say how the new tasks are "
            "read and scored (columns.prompt=question, metric=exact).",
        ),
    ],
    replaces: Annotated[
        str | None,
        typer.Option(
            "--replace", metavar="OLD", help="The earlier task for which TASK stands: its rows leave the memory."
        ),
    ] = None,
    ray: Ray = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Train a finished run on further tasks; its memory and its adapters are kept."""
    from ilora.adding import tasks_and_settings
    from ilora.early import before_add

    if ray is None:
        _refuse(context, ("workers",), "is for --ray")
    tasks, settings = tasks_and_settings(words)
    before_add(path, tasks, replaces, quiet=quiet)
    if ray is not None:
        from ilora.commands.on_ray import add_on_ray

        _work(lambda: add_on_ray(ray, path, tasks, settings, replaces=replaces, workers=workers, quiet=quiet), quiet)
        return
    from ilora import runner

    _work(lambda: runner.add(path, tasks, settings, replaces=replaces, quiet=quiet), quiet)


@app.command("sweep")
def sweep_command(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="Which runs; see docs/sweeps.md.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder (default: sweeps/<name>).")] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many runs at a time; they share cores and GPUs.")] = 1,
    together: Together = None,
    ray: Annotated[str | None, typer.Option(help="The address of a Ray cluster, or `local`.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Make only runs that match, such as 'er/*' or '*/1-0'. May be given several times."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs and how long they may take, and start none.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Make a run for every method, order, seed and setting of a file. Called again, finish what is left."""
    places = {"processes": processes, "together": together, "ray": ray}
    _study("sweep", file, overrides or (), quiet, out=out, only=only or (), dry_run=dry_run, **places)


@app.command("tune")
def tune_command(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="Whose methods to tune; see docs/sweeps.md.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The tuning's folder (default: sweeps/<name>-tuning).")] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many runs at a time; they share the cores.")] = 1,
    together: Together = None,
    ray: Annotated[str | None, typer.Option(help="The address of a Ray cluster, or `local`.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Tune only labels that match, such as 'er*'. May be given several times."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be tried and how long it may take, and start nothing.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Find each method's best settings, on rows, orders and seeds that are not reported. Called again, finish."""
    places = {"processes": processes, "together": together, "ray": ray}
    _study("tune", file, overrides or (), quiet, out=out, only=only or (), dry_run=dry_run, **places)


def _study(kind: str, file: Path, overrides: Sequence[str], quiet: bool, **chosen: Any) -> None:
    """`ilora.sweep` or `ilora.tune`; the file is read before what takes long to import."""
    from ilora.progress import first_line
    from ilora.sweeps.plan import read_sweep

    read_sweep(file, overrides)
    first_line(quiet=quiet)
    import ilora

    try:
        getattr(ilora, kind)(file, overrides, quiet=quiet, **chosen)
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
            help="Any of factors, delta, spherical, bezier and chain, with commas between; also bezier:delta etc. "
            "(default: factors,delta; with --select: factors)"
        ),
    ] = None,
    points: Annotated[int, typer.Option(help="Points on a path, with both ends.")] = 11,
    pairs: Annotated[str, typer.Option(help="Which pairs of a run's adapters: last or all.")] = "last",
    split: Annotated[str, typer.Option(help="The split to evaluate on: test or eval.")] = "test",
    rows: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each task.")] = None,
    plane: Annotated[bool, typer.Option("--plane", help="Also evaluate the plane through three adapters.")] = False,
    grid: Annotated[int, typer.Option(help="Points along each side of the plane.")] = 15,
    space: Annotated[str, typer.Option(help="The plane's space: factors or delta.")] = "factors",
    similarity: Annotated[bool, typer.Option("--similarity", help="Also measure CKA, angles and distances.")] = False,
    text: Annotated[
        Path | None, typer.Option(help="With --similarity: a text, one row a line, in place of the tasks.")
    ] = None,
    bend_steps: Annotated[int, typer.Option(min=1, help="Training steps of a bend (bezier, chain).")] = 60,
    select: Annotated[
        bool, typer.Option("--select", help="Choose the best point on memory and eval rows, and write that adapter.")
    ] = False,
    between: Annotated[str, typer.Option(help="With --select: adjacent or fast-slow.")] = "adjacent",
    data: Annotated[
        Path | None, typer.Option(help="For adapter folders: RUN, CONFIG.yaml or a folder of tasks.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="For adapter folders: the base model, where they do not name it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default: RUN/connectivity).")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure loss and score between adapters, along paths or over a plane (mode connectivity)."""
    from ilora.early import before_connecting

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
    before_connecting(places, quiet=quiet)
    from ilora.commands import connect as commands

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
    at: Annotated[
        float | None,
        typer.Option(help="A point between two adapters, from 0 to 1 (default: the adapter that answers)."),
    ] = None,
    between: Annotated[str, typer.Option(help="With --at: adjacent or fast-slow.")] = "adjacent",
    along: Annotated[str, typer.Option("--path", help="With --at: one of the --paths of connect.")] = "factors",
    data: Annotated[
        Path | None, typer.Option(help="RUN, CONFIG.yaml or a folder of tasks (default: the run's own).")
    ] = None,
    split: Annotated[str | None, typer.Option(help="test, eval or train (default: the run's own).")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each task.")] = None,
    out: Annotated[Path | None, typer.Option(help="The new folder (default: below RUN/evaluations).")] = None,
    quiet: Quiet = False,
) -> None:
    """Score a run's adapter, or a point between two of its adapters, on its own tasks or on others."""
    from ilora.early import before_reading

    if at is None:
        _refuse(context, ("between", "along"), "is for --at")
    before_reading(path, quiet=quiet)
    from ilora.commands import connect as commands

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


@app.command("compare")
def compare_command(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Run folders, folders of runs (a sweep), or files from --save."),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(help="The row that the others are compared with (default: sequential, or else the first)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default: PATH/comparison).")] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what was compared into one file, without prompts and predictions."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Compare only runs that match, such as 'er/*' or '*/1-*'. May be given several times."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compare many runs: means with intervals, and paired differences."""
    from rich.console import Console

    from ilora.results.reader import refuse_no_place

    for place in places:
        refuse_no_place(place)
    from ilora.commands.compare import compare
    from ilora.comparison.texts import terminal

    comparison, folder = compare(places, baseline=baseline, out=out, save=save, only=only or ())
    if not quiet:
        console = Console(highlight=False)
        console.print(terminal(comparison))
        console.print(f"page:     {folder / 'index.html'}", markup=False, soft_wrap=True)
        if save is not None:
            console.print(f"evidence: {save}", markup=False, soft_wrap=True)


@app.command("general")
def general_command(
    path: RunFolder,
    tasks: Annotated[
        str, typer.Option(help="Tasks of lm-evaluation-harness, with commas between: hellaswag,arc_easy.")
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="How many rows at a time.")] = 8,
    quiet: Quiet = False,
) -> None:
    """Measure general ability before and after the run, with lm-evaluation-harness."""
    from ilora.early import before_reading

    before_reading(path, quiet=quiet)
    from ilora.commands.general import general, lines

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    _say(lambda: lines(general(path, names, limit=limit, batch_size=batch_size)), quiet)


cli_releases.register(app)
app.command("diff")(cli_use.diff)
app.command("ask")(cli_use.ask)
app.command("predict")(cli_use.predict)
app.command("export")(export_run)
cli_gate.register(app)
app.command("list")(list_names)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
cli_setup.register(app)


def _say(action: Callable[[], list[str]], quiet: bool) -> None:
    """Do it, and print the lines that it ends with."""
    try:
        lines = action()
    except KeyboardInterrupt:  # here, because typer would end without a word
        _fail("interrupted; what is complete is kept, the same command does the rest", 130)
    from ilora.early import is_first

    for line in lines if is_first() and not quiet else []:
        typer.echo(line)


def _work(action: Callable[[], RunResult], quiet: bool) -> None:
    from ilora.training.processes import naming_a_lost_process

    try:
        with naming_a_lost_process():
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
    from ilora.errors import IloraError

    sys.path.append(
        str(Path.cwd())
    )  # where `method: my_module:MyMethod` is looked for; last, so that nothing is shadowed
    try:
        app(prog_name="ilora")
    except KeyboardInterrupt:  # while a command was still being imported
        _fail("interrupted", 130)
    except IloraError as error:
        _fail(_with_notes(str(error), error), error.code)
    except OSError as error:
        _fail(_with_notes(f"{error.filename or 'file system'}: {error.strerror or error}", error), 1)


def _with_notes(message: str, error: BaseException) -> str:
    return "\n".join([message, *getattr(error, "__notes__", [])])


PATIENCE = 5.0  # seconds in which a launcher ends the other processes


def _fail(message: str, code: int) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # Of several processes that met the same problem the first one says so, and the launcher then ends the others.
        # One that is still there met it alone.
        time.sleep(PATIENCE)
    print(f"ilora: {message}", file=sys.stderr)
    sys.exit(code)
