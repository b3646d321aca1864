"""What the processes of one run agree on. With a single process, each of these is as good as nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ilora.errors import IloraError, InputError

T = TypeVar("T")


def agreed(accelerator: Accelerator, value: T) -> T:
    """The first process's value, in every process."""
    if accelerator.num_processes == 1:
        return value
    holder = [value]
    broadcast_object_list(holder)
    return holder[0]


def on_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Do something in the first process alone. Where it fails, every process fails, and none is left waiting."""
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
