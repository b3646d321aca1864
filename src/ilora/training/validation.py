"""The validation loss, by which a task may end early (`training.stop_when`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ilora.data.encoding import Encoder
from ilora.data.examples import Example
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.kernels.losses import token_losses
from ilora.methods.base import Method
from ilora.model.engine import Engine
from ilora.model.fitting import fitted
from ilora.stopping import StopWhen
from ilora.training.processes import agreed


def validation_rows(tasks: Sequence[Task], encoder: Encoder) -> dict[str, list[Example]]:
    """Every task's eval rows in token ids, by name. Raises InputError naming the tasks that have none."""
    refuse_no_eval(tasks)
    return {task.name: encoder.encode(task, "eval") for task in tasks}


def refuse_no_eval(tasks: Sequence[Task]) -> None:
    """Raises InputError naming the tasks that have no eval rows."""
    without = [task.name for task in tasks if not task.rows.get("eval")]
    if without:
        raise InputError(
            f"training.stop_when: no eval rows to measure the validation loss on: {', '.join(without)}. Give the file "
            "`eval` beside `train`, let data.split.eval take rows from train, or leave training.stop_when out"
        )


@torch.no_grad()
def validation_loss(method: Method[Any], rows: Sequence[Example]) -> float:
    """The rows' mean cross-entropy over answer tokens, with the weights in training, without dropout.

    The same in every process; no random state is read or changed.
    """
    engine = method.engine
    with method.in_training():
        total = fitted(engine, engine.mine(rows), lambda: _losses(engine, rows))
    engine.all_reduce([total])
    loss_sum, tokens = total.tolist()
    return agreed(engine.accelerator, float(loss_sum / tokens))


def _losses(engine: Engine, rows: Sequence[Example]) -> Tensor:
    """(2,): the sum of the losses over answer tokens of this process's rows, and their number."""
    total = torch.zeros(2, device=engine.device)
    for batch in engine.micro_batches(rows):
        logits = engine.forward(batch, dropout=False).answer_logits
        loss = token_losses(logits, batch.targets, count=batch.label_count).sum()
        total += torch.stack([loss, loss.new_tensor(float(batch.label_count))])
    return total


def steps_taken(rule: StopWhen | None, losses: Sequence[float], *, taken: int, planned: int) -> dict[str, Any]:
    """What results.json says of a phase's steps. losses: those that were measured in it, one every `rule.every` steps.

    `best_step` is the step of the phase at which the validation loss was lowest, as `rule` counts.
    """
    found: dict[str, Any] = {"taken": taken, "planned": planned}
    if rule is not None and (place := rule.best(losses)) is not None:
        found |= {"best_step": (place + 1) * rule.every, "validation_loss": losses[place]}
    return found
