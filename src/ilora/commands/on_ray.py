"""`ilora run --ray` (and `resume`, `add`): a run's processes as workers of Ray Train (`pip install 'ilora[ray]'`)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ilora import runner
from ilora.config import Config, load_config
from ilora.early import config_of
from ilora.errors import IloraError, InputError
from ilora.files import write_atomic
from ilora.releases.opening import open_run
from ilora.report.html import write_report
from ilora.runner import RunResult
from ilora.sweeps.cluster import connected

RESTARTS = 3  # after so many failures of workers the run ends; it can be resumed then, too
MARK = "of-the-command"


def run_on_ray(
    address: str, config: Config, out: Path | None, *, workers: int | None = None, quiet: bool = False
) -> RunResult:
    """As `runner.run`, with its processes on a Ray cluster, which must share the run folder.

    address: of a running cluster; `local` starts one on this machine for as long as the run lasts.
    workers: how many processes (default: one for each GPU; without GPUs, one). A worker has a GPU, or else a core.
    A worker that fails takes the others with it; they begin again from the last checkpoint, `RESTARTS` times.
    Raises InputError with nothing written, and IloraError where workers failed too often.
    """
    path = (out if out is not None else Path("runs") / config.name).absolute()
    return _launch(address, path, {"config": config.dump()}, workers=workers, quiet=quiet)


def resume_on_ray(
    address: str, path: Path, places: Sequence[str], *, workers: int | None = None, quiet: bool = False
) -> RunResult:
    """As `runner.resume`, in the same way."""
    return _launch(address, path.absolute(), {"places": list(places)}, workers=workers, quiet=quiet)


def add_on_ray(
    address: str,
    path: Path,
    tasks: Sequence[str],
    settings: Sequence[str],
    *,
    replaces: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> RunResult:
    """As `runner.add`, in the same way."""
    path = open_run(path, write_report).absolute()
    new = {"tasks": list(tasks), "overrides": list(settings), "replaces": replaces}
    given = {"new": new, "before": config_of(path).read_text(encoding="utf-8")}
    return _launch(address, path, given, workers=workers, quiet=quiet)


def _launch(address: str, path: Path, given: dict[str, Any], *, workers: int | None, quiet: bool) -> RunResult:
    """given: `config` of a new run; what is `new` in a run and its configuration `before`; or `places` of its data."""
    ray = connected(address, log_to_driver=not quiet)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = _fitting(ray, workers, gpus)
        with _scratch(path) as scratch:
            places = {"path": str(path), "scratch": str(scratch), "folder": str(Path.cwd())}
            order = {**given, **places, "quiet": quiet}
            _fit(order, count, gpu=gpus > 0)
    finally:
        ray.shutdown()
    done = runner.finished(path, load_config(config_of(path)))
    if done is None:
        raise IloraError(f"{path}: the workers have ended before the run; `ilora resume {path}` goes on with it")
    return done


def _fitting(ray: Any, workers: int | None, gpus: int) -> int:
    """How many workers to start. Raises InputError for more than the cluster has places for."""
    what, there = ("GPUs", gpus) if gpus else ("cores", int(ray.cluster_resources().get("CPU", 0)))
    count = workers if workers is not None else max(1, gpus)
    if count > there:
        raise InputError(f"--workers {count}: the cluster has {there} {what}, and each worker takes one")
    return count


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder beside the run's, for what Ray Train keeps and what workers refuse: of this command alone."""
    new = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-ray-") as made:
            write_atomic(Path(made) / MARK, "")
            yield Path(made)
    finally:
        for folder in new:
            if not any(folder.iterdir()):  # the run was refused
                folder.rmdir()


def _fit(order: dict[str, Any], count: int, *, gpu: bool) -> None:
    """Have Ray Train do it. Raises what the workers raised."""
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        work,
        train_loop_config=order,
        scaling_config=ScalingConfig(num_workers=count, use_gpu=gpu),
        run_config=RunConfig(
            name="train",
            storage_path=order["scratch"],
            failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=RESTARTS),
        ),
    )
    failure = None
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failure = error
    except (SystemExit, RayActorError):  # so ends Ray's own way with Ctrl-C, when the workers are gone
        interrupted = KeyboardInterrupt()
        interrupted.add_note(f"`ilora resume {order['path']} --ray ...` goes on from the last checkpoint")
        raise interrupted from None
    if (refusal := _refusal(Path(order["scratch"]))) is not None:
        raise InputError(refusal) from None
    if failure is not None:
        raise IloraError(f"the workers failed {RESTARTS + 1} times, the last time: {failure}") from failure


def work(order: dict[str, Any]) -> None:
    """In each worker: the run, or what is left of it.

    Bad input is no failure that a restart could mend: it is noted for the command, and the worker ends in peace.
    """
    os.chdir(order["folder"])
    if order["folder"] not in sys.path:
        sys.path.append(order["folder"])  # where `method: my_module:MyMethod` is looked for
    path, scratch, rank = Path(order["path"]), Path(order["scratch"]), os.environ.get("RANK", "0")
    shared = (scratch / MARK).is_file()  # Ray makes the folder itself everywhere
    if rank == "0" and not shared:  # whether the others see what it writes is looked at by the run
        raise InputError(f"{path}: a run folder must be on storage that the command and all workers share")
    if _refusal(scratch) is not None:
        return
    try:
        if _untouched(order, path / "config.yaml"):
            if "new" in order:
                runner.add(path, **order["new"], quiet=order["quiet"])
            else:
                runner.run(order["config"], path, quiet=order["quiet"])
        else:
            runner.resume(path, order.get("places", ()), quiet=order["quiet"])
    except InputError as error:
        if not shared:
            raise
        write_atomic(scratch / f"refused-{rank}.json", json.dumps(str(error)))


def _untouched(order: dict[str, Any], config: Path) -> bool:
    """Whether a new run, or what is to be added to one, has not begun: its configuration is written when it begins."""
    if "new" in order:
        before: str = order["before"]
        return config.read_text(encoding="utf-8") == before
    return "config" in order and not config.is_file()


def _refusal(scratch: Path) -> str | None:
    """What the workers refused, of the first one that did."""
    notes = sorted(scratch.glob("refused-*.json"))
    return json.loads(notes[0].read_text(encoding="utf-8")) if notes else None
