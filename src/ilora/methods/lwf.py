"""LwF, learning without forgetting: Li and Hoiem 2017 (arXiv 1606.09282).

The model as it was before the task is the teacher; on the current rows the student is held near what it says:

    L = CE(x) + strength · τ² · KL(softmax(z_teacher / τ) ‖ softmax(z / τ)),      mean over answer tokens
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ilora.data.examples import IGNORED, Batch, Totals
from ilora.methods.base import METHODS, Method
from ilora.model import adapters
from ilora.settings import Log, MethodConfig


class LwFConfig(MethodConfig):
    """The distillation term."""

    search = MethodConfig.search | {"strength": Log(0.1, 10)}

    strength: float = Field(1.0, ge=0, description="weight of the distillation term")
    temperature: float = Field(2.0, gt=0, description="τ, as in the paper")


@METHODS("lwf")
class LwF(Method[LwFConfig]):
    """Distillation from the adapter as it was when the task began; nothing in the first task.

    Differs: the paper's old tasks have output heads of their own; a language model has one head for all, so the
    teacher's next-token distributions on the current answers are what is kept. KL instead of cross-entropy: the same
    gradient, 0 where nothing moved.
    """

    title = "LwF"
    family = "regularisation"
    paper = "arXiv 1606.09282"
    stores = "one more adapter"

    def begin_task(self) -> None:
        """The teacher: the model before the task."""
        if self.has_past:
            adapters.keep_copy(self.engine.model, "fast", "teacher")

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """Cross-entropy + strength · distillation."""
        output = self.engine.forward(batch)
        loss = self.cross_entropy(output, batch, totals)
        if not self.has_past or not self.config.strength:
            return loss
        with torch.no_grad(), adapters.active(self.engine.model, "teacher"):
            target = self.engine.forward(batch, dropout=False).answer_logits
        answers = batch.targets != IGNORED
        kept = distillation(output.answer_logits[answers], target[answers], temperature=self.config.temperature)
        kept = kept / totals.current.labels
        self.run.log("distillation", kept)
        return loss + self.config.strength * kept


def distillation(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """τ² · KL(teacher ‖ student), summed over tokens; both (tokens, vocabulary) logits."""
    ours = functional.log_softmax(student.float() / temperature, dim=-1)
    theirs = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * functional.kl_div(ours, theirs, reduction="sum", log_target=True)
