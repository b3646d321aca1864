"""Runs: a folder each. Start one, resume it, add tasks to it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from rich.table import Table

from ilora.adding import with_new_tasks
from ilora.config import Config, load_config, read_yaml
from ilora.data.duplicates import warnings
from ilora.data.encoding import with_template
from ilora.data.task import Task
from ilora.early import config_of, refuse_existing, refuse_unfinished
from ilora.environment import note_environment, use_threads
from ilora.errors import IloraError, InputError
from ilora.files import locked, write_atomic
from ilora.in_memory import as_tasks, given_tasks, write_files
from ilora.keeping import EVERYTHING
from ilora.model.fitting import memory_suffices
from ilora.model.load import GivenModel, load_tokenizer
from ilora.model.sharded import in_all
from ilora.model.start import with_form
from ilora.places import anchored
from ilora.progress import Display
from ilora.releases.opening import open_run
from ilora.report.html import write_report
from ilora.report.tables import run_table
from ilora.results.reader import read_results
from ilora.results.scores import BASE, contrast_folder, prediction_folder
from ilora.stream import load_tasks, reading_lines, resolve
from ilora.training.checkpoint import newest
from ilora.training.interrupt import StopRequest
from ilora.training.processes import (
    agreed_dtype,
    joined,
    leave_group,
    naming_a_lost_process,
    on_main,
    refuse_idle,
    refuse_unshared,
)
from ilora.training.session import Session
from ilora.training.watch import meeting, watched


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the content of its results.json, and that of its contrast runs."""

    path: Path
    results: dict[str, Any]
    contrast: list[dict[str, Any]]
    main_process: bool = True

    @property
    def report(self) -> Path:
        """The page to read."""
        return self.path / "report.html"

    @property
    def adapter(self) -> Path | None:
        """The PEFT folder of the answering adapter after the last task; None for a method that has no such thing."""
        return self.path / self.results["adapter"] if self.results["adapter"] else None

    def table(self, *, width: int = 100) -> Table:
        """Learnt, kept, forgotten, per task; `width` in characters."""
        return run_table(self.results, contrast=self.contrast, width=width)


def run(
    config: Config | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    tasks: Sequence[Task | Mapping[str, Any]] | None = None,
    model: Any = None,
    tokenizer: Any = None,
    quiet: bool = False,
) -> RunResult:
    """Fine-tune over the stream, evaluate after each task, write the report.

    config: a `Config`, a mapping with its keys, or a YAML file.
    out: the new run folder (default `runs/<name>`).
    tasks: the stream, in place of what `config.data` names: `Task`s, or mappings with their fields. A task's rows are
        `Row`s, mappings with `prompt` and `answer` (or `messages`), or a `datasets.Dataset` of such; they are kept in
        the run folder.
    model: a transformers model, in place of what `config.model` names. It is frozen; the run's adapters are taken out
        of it at the end.
    tokenizer: the model object's; needed where its name does not lead to one.
    quiet: no progress on the screen.
    Raises InputError, with nothing written, where the folder exists or the data or the model cannot be used.
    """
    own = None if tasks is None else as_tasks(tasks, names=False)
    config, given = _with_model(_config_of(config, own), model, tokenizer)
    path = Path(out) if out is not None else Path("runs") / config.name
    with _processes(path), ExitStack() as held:
        accelerator = _accelerator(config, path)
        on_main(accelerator, lambda: refuse_existing(path))
        given_rows = () if own is None else given_tasks(own, config, path / "data")
        config, loaded, files = given_rows or (config, in_all(partial(load_tasks, config.data)), {})
        config = _settled(config, loaded, given)

        def begin() -> None:
            refuse_existing(path)
            path.mkdir(parents=True)
            held.enter_context(locked(path, what="run"))
            write_files(files)
            _write_config(path, config)

        return _execute(path, config, loaded, accelerator=accelerator, quiet=quiet, begin=begin, given=given)


def _settled(config: Config, tasks: list[Task], given: GivenModel | None) -> Config:
    """The configuration of a new run, in which what is `auto` or left to this version is written out."""
    config = config.model_copy(update={"adapter": with_form(config.adapter), "model": agreed_dtype(config.model)})
    new = {"method": config.method.for_a_new_run(), "contrast": [one.for_a_new_run() for one in config.contrast]}
    config = resolve(config.model_copy(update=new), tasks)
    if config.data.template != "auto":
        return config
    tokenizer = given.tokenizer if given is not None else in_all(lambda: load_tokenizer(config.model))
    return config.model_copy(update={"data": with_template(config.data, tokenizer)})


def _with_model(config: Config, model: Any, tokenizer: Any) -> tuple[Config, GivenModel | None]:
    """The configuration with the section that describes a model object."""
    if model is None:
        if tokenizer is not None:
            raise InputError("tokenizer: it belongs to a model object; a model that is named brings its own")
        return config, None
    if isinstance(model, GivenModel):  # what the configuration names, loaded already
        return config, model
    given = GivenModel.of(model, tokenizer)
    return config.model_copy(update={"model": given.settings(config.model)}), given


def _config_of(source: Config | Mapping[str, Any] | str | Path, tasks: Sequence[Task] | None) -> Config:
    """A configuration, which needs no data of its own where tasks are given."""
    if isinstance(source, Config):
        return source
    if tasks is None:
        return load_config(source)
    values = dict(source) if isinstance(source, Mapping) else anchored(read_yaml(Path(source)), Path(source), ["data"])
    given = {"tasks": [task.name for task in tasks], "path": None, "benchmark": None}
    values["data"] = {**(values.get("data") or {}), **given}
    return load_config(values)


def resume(
    path: str | Path,
    overrides: Iterable[str] = (),
    *,
    model: Any = None,
    tokenizer: Any = None,
    quiet: bool = False,
) -> RunResult:
    """Go on from the last checkpoint, to the same final bits as if the run had never stopped.

    overrides: where the data lies now, as `data.path=...` or `data.tasks.0.path=...`; its content must be the same.
    model, tokenizer: as for `run`, where the run's model was given as an object.
    A finished run whose data or checkpoints are gone is shown as it is.
    """
    path, overrides = Path(path), list(overrides)
    with _processes(path):
        open_run(path, write_report)
        config, given = _with_model(_read_config(path, overrides), model, tokenizer)
        if newest(path / "checkpoints") is None and not overrides and (done := finished(path, config)):
            return done
        try:
            tasks = in_all(lambda: load_tasks(config.data))
        except InputError as error:
            done = finished(path, config)
            if done is None:
                hint = f"(if the data lies elsewhere now: ilora resume {path} data.path=...)"
                raise InputError(f"{error}\n{hint}") from None
            return done
        accelerator = _accelerator(config, path)
        config = resolve(config, tasks)
        begin = partial(_write_config, path, config) if overrides else None
        with _locked(path, accelerator):
            return _execute(path, config, tasks, accelerator=accelerator, quiet=quiet, begin=begin, given=given)


def finished(path: Path, config: Config) -> RunResult | None:
    """The results of a run that has nothing left to do; None for any other."""
    folders = [path, *(contrast_folder(path, method.name) for method in config.contrast)]
    if not all((folder / "results.json").is_file() for folder in folders):
        return None
    first, *others = (dict(read_results(folder)) for folder in folders)
    return RunResult(path, first, others) if all(found.get("complete") for found in (first, *others)) else None


def add(
    path: str | Path,
    tasks: Sequence[str | Path | Task | Mapping[str, Any]],
    overrides: Iterable[str] = (),
    *,
    replaces: str | None = None,
    model: Any = None,
    tokenizer: Any = None,
    quiet: bool = False,
) -> RunResult:
    """Go on with new tasks from a finished run: its memory and its adapters are kept.

    tasks: folders with {train,eval,test}.json or .jsonl, names of further tasks of the run's own source, or `Task`s
        with their rows, as for `run`.
    overrides: settings that hold from the first of these tasks on, such as `training.epochs=1`, `method.strength=2` or
        `method.memory_size=200`; and how the new tasks are read and scored: `columns.prompt=question`, `metric=exact`.
    replaces: an earlier task for which the one new task stands: its rows leave the memory, and it is scored no longer.
    model, tokenizer: as for `run`, where the run's model was given as an object.
    """
    new, path = as_tasks(tasks, names=True), Path(path)
    with _processes(path):
        open_run(path, write_report)
        config, given = _with_model(_read_config(path), model, tokenizer)
        if config.stream != "sequential":
            raise InputError(f"{path}: a joint run has no next task; start a sequential one")
        refuse_unfinished(path)
        accelerator = _accelerator(config, path)
        config, loaded, files = in_all(lambda: with_new_tasks(config, new, overrides, path, replaces=replaces))
        config = resolve(config, loaded)

        def begin() -> None:
            write_files(files)
            _write_config(path, config)

        with _locked(path, accelerator):
            return _execute(path, config, loaded, accelerator=accelerator, quiet=quiet, begin=begin, given=given)


def _execute(
    path: Path,
    config: Config,
    tasks: list[Task],
    *,
    accelerator: Accelerator,
    quiet: bool,
    begin: Callable[[], None] | None = None,
    given: GivenModel | None = None,
) -> RunResult:
    """begin: writes what the run starts from, called once the data and the model have proved usable."""
    main = accelerator.is_main_process
    with (
        Display(quiet=quiet or not main) as display,
        StopRequest(enabled=accelerator.num_processes == 1, notify=display.say) as stop,
        memory_suffices(),
    ):
        shared: dict[str, Any] = {"accelerator": accelerator, "display": display, "stop": stop, "given": given}
        use_threads(path)
        refuse_idle(accelerator.num_processes, config, tasks)
        session = Session(config.model_copy(update={"contrast": []}), path, tasks, **shared)
        session.refuse_changes()
        if begin is not None:
            on_main(accelerator, begin)
            for line in [*reading_lines(tasks), *warnings(tasks)]:
                display.say(line)
        on_main(accelerator, lambda: note_environment(path, accelerator, display))
        outcomes = [_perform(session, path)]
        for method in config.contrast:
            del session  # one model in memory at a time
            folder = contrast_folder(path, method.name)
            settings = config.beside(method)
            session = Session(settings, folder, tasks, answers_of_base=prediction_folder(path, BASE), **shared)
            session.refuse_changes()
            on_main(accelerator, partial(_write_config, folder, settings))
            outcomes.append(_perform(session, path))
        on_main(accelerator, lambda: write_report(path))
    leave_group(accelerator)
    return RunResult(path, outcomes[0], outcomes[1:], main_process=main)


def _perform(session: Session, run: Path) -> dict[str, Any]:
    """Execute it; an error on the way gets a note of where the last good state is."""
    with _tracked(session.accelerator, session.config):
        try:
            with naming_a_lost_process():
                return session.execute()
        except InputError:
            raise
        except (IloraError, OSError, KeyboardInterrupt) as error:
            saved = newest(session.path / "checkpoints")
            state = f"the last good state is {saved}" if saved else "no checkpoint was written yet"
            error.add_note(f"{state}; `ilora resume {run}` goes on from there")
            raise
        finally:
            session.release()


@contextmanager
def _processes(path: Path) -> Iterator[None]:
    """Within the block the processes of a run are together and see its folder; none waits for one that is lost."""
    with meeting():
        accelerator = joined()
        refuse_unshared(accelerator, path)
    with watched(accelerator, f"`ilora resume {path}` goes on from the last checkpoint"):
        yield


def _accelerator(config: Config, path: Path) -> Accelerator:
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise InputError(f"trackers: {tracker} is not installed; pip install 'ilora[{tracker}]'")
    return joined(
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(path), logging_dir=str(path / "trackers")),
    )


@contextmanager
def _tracked(accelerator: Accelerator, config: Config) -> Iterator[None]:
    """Open the configured trackers for one method, and close them after it."""
    if config.trackers:
        accelerator.init_trackers(
            "ilora", config={"name": config.name, "method": config.method.name, "seed": config.seed}
        )
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []


@contextmanager
def _locked(path: Path, accelerator: Accelerator) -> Iterator[None]:
    """`files.locked`, held by the first process for all of them."""
    with ExitStack() as held:
        on_main(accelerator, lambda: held.enter_context(locked(path, what="run")))
        yield


def _write_config(path: Path, config: Config) -> None:
    text = yaml.safe_dump(config.dump(), sort_keys=False, allow_unicode=True)
    write_atomic(path / "config.yaml", text)


def _read_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    file = config_of(path)
    before_keep = "keep" not in read_yaml(file)  # such a run keeps everything, as it always did
    everything = EVERYTHING.model_dump().items() if before_keep else ()
    return load_config(file, [*(f"keep.{key}={value}" for key, value in everything), *overrides])
