"""Agreement between the processes of one run. With a single process these functions do nothing more."""

from __future__ import annotations

import atexit
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch.distributed import DistError

from ilora.config import Config
from ilora.data.task import Task
from ilora.errors import IloraError, InputError
from ilora.methods import method_class
from ilora.model.dtype import with_dtype
from ilora.settings import ModelConfig

T = TypeVar("T")
# How long a process waits for another, which may be writing the tokens of millions of rows. NCCL's own 10 minutes would
# end it; a process that is lost is seen by the watch (watch.py) long before.
LONGEST_WAIT = timedelta(days=1)
MEMORY_SHARE = "ILORA_GPU_SHARE"  # environment: of a GPU's memory, where several runs share it


def joined(**options: Any) -> Accelerator:
    """The processes that a launcher has started, as one group; a single process without a launcher."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # Unless told, accelerate starts no group without a GPU: each process would run alone, on one folder.
    patient = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    made = Accelerator(cpu=several and not torch.accelerator.is_available(), kwargs_handlers=[patient], **options)
    if made.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(memory_share(made.device), made.device)
    return made


def memory_share(device: torch.device) -> float:
    """How much of the device's memory this process may use. Raises InputError where that is no share."""
    text = os.environ.get(MEMORY_SHARE, "1") if device.type == "cuda" else "1"
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InputError(f"{MEMORY_SHARE}: a share of a GPU's memory, above 0 and up to 1 (got {text!r})")
    return share


def agreed(accelerator: Accelerator, value: T) -> T:
    """The value of the first process, returned in every process."""
    if accelerator.num_processes == 1:
        return value
    holder = [value]
    broadcast_object_list(holder)
    return holder[0]


def agreed_dtype(config: ModelConfig) -> ModelConfig:
    """`with_dtype`, as the first process decides it: machines may differ."""
    return config.model_copy(update={"dtype": agreed(joined(), with_dtype(config).dtype)})


def on_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Do something in the first process alone. If it fails, every process raises the error; none is left waiting."""
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            action()
        except Exception as error:  # whatever it is, the others must hear of it
            failure = error
    message = agreed(accelerator, None if failure is None else (isinstance(failure, InputError), str(failure)))
    if failure is not None:
        raise failure
    if message is not None:
        bad_input, text = message
        raise (InputError if bad_input else IloraError)(text)


def by_first(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What the first process makes, returned in every process. If it fails, every process raises the error."""
    made: list[T] = []
    on_main(accelerator, lambda: made.append(make()))
    return agreed(accelerator, made[0] if made else cast(T, None))


def refuse_unshared(accelerator: Accelerator, path: Path) -> None:
    """Raises InputError, in every process, where one does not see what the first one writes at `path`.

    path: a folder that is there, or will be.
    """
    if accelerator.num_processes == 1:
        return
    places, shown = [path.absolute(), *path.absolute().parents], []
    with ExitStack() as held:

        def show() -> None:
            above = next(number for number, folder in enumerate(places) if folder.is_dir())
            file = held.enter_context(NamedTemporaryFile(dir=places[above], prefix=".ilora-"))
            shown.append((above, Path(file.name).name))

        on_main(accelerator, show)
        above, name = agreed(accelerator, shown[0] if shown else (0, ""))
        here = f"process {accelerator.process_index} on {platform.node()}"
        blind = gather_object([None if (places[above] / name).is_file() else here])
    missing = [one for one in blind if one is not None]
    if missing:
        raise InputError(
            f"{path}: the folder must be on storage that all processes share, under the same path; not seen by "
            f"{', '.join(missing)}"
        )


def refuse_idle(count: int, config: Config, tasks: Sequence[Task]) -> None:
    """Raises InputError where one of so many processes would never have a row to train on."""
    rows = config.training.global_batch_size
    if count == 1 or not method_class(config.method.name).trains:
        return
    if count > rows:
        raise InputError(
            f"training.global_batch_size: {rows} rows in a step, for {count} processes; start fewer of them"
        )
    for task in tasks:
        if not task.forgotten and (rows := len(task.rows["train"])) < count:
            raise InputError(f"task '{task.name}': {rows} training rows, for {count} processes; start fewer of them")


@contextmanager
def naming_a_lost_process() -> Iterator[None]:
    """Where another process has ended, raise IloraError instead of the error of the communication library."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises a plain RuntimeError that names its source file
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (isinstance(error, DistError) or "gloo" in str(error)):
            raise IloraError("another process of this run has ended or is out of reach; it said why") from error
        raise


def leave_group(accelerator: Accelerator) -> None:
    """The run is over: the processes stay together, for another run, until they end.

    To form a group anew would be a race: one that is quick meets the old group's meeting place.
    """
    if accelerator.num_processes > 1:
        atexit.unregister(accelerator.state.destroy_process_group)
        atexit.register(accelerator.state.destroy_process_group)
