"""Agreement between the processes of one run. With a single process these functions do nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch.distributed import DistError

from ilora.errors import IloraError, InputError

T = TypeVar("T")


def agreed(accelerator: Accelerator, value: T) -> T:
    """The value of the first process, returned in every process."""
    if accelerator.num_processes == 1:
        return value
    holder = [value]
    broadcast_object_list(holder)
    return holder[0]


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


@contextmanager
def naming_a_lost_process(accelerator: Accelerator) -> Iterator[None]:
    """Where another process has ended, raise IloraError instead of the error of the communication library."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises a plain RuntimeError that names its source file
        if accelerator.num_processes > 1 and (isinstance(error, DistError) or "gloo" in str(error)):
            raise IloraError("another process of this run has ended or is out of reach; it said why") from error
        raise


def leave_group(accelerator: Accelerator) -> None:
    """The run is over: close its trackers and its group of processes, so that another run can form a new one."""
    several = accelerator.num_processes > 1
    accelerator.end_training()
    if several:  # accelerate would go on with the group that it has just closed
        AcceleratorState._reset_state(reset_partial_state=True)
