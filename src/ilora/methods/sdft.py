"""SDFT, self-distillation fine-tuning: Shenfeld et al. 2026, "Self-distillation enables continual learning"
(arXiv 2601.19897).

The model answers a training question itself, and learns from itself as it is when it has been shown the demonstration
c, the row's own answer. What it is trained on are texts of its own, from which it need not move far:

    y ~ p(· | x),    L = mean_t KL(p(· | x, y_<t) ‖ p_teacher(· | x, c, y_<t)),    teacher <- (1 - α) teacher + α fast
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessor

from ilora.data.examples import IGNORED, Batch, Example, Totals, collate
from ilora.methods.base import METHODS, Method
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.model.writing import write_answers
from ilora.settings import Fraction, Log, MethodConfig, PositiveInt

TEACHER = "teacher"


class SDFTConfig(MethodConfig):
    """The teacher, and the student's answers."""

    search = MethodConfig.search | {"teacher_rate": Log(0.005, 0.1)}

    teacher_rate: Fraction = Field(0.02, description="α: how far the teacher follows the student in a step")
    max_new_tokens: PositiveInt | None = Field(
        None, description="tokens of an answer of its own, at most; None: those of the step's longest demonstration"
    )


@METHODS("sdft")
class SDFT(Method[SDFTConfig]):
    """On-policy distillation from the model that has seen the answer; no row of earlier tasks.

    The divergence is over the whole vocabulary at every token of y, and the gradient does not pass through the sampling
    of y. y is drawn with random numbers keyed by row and step, so that neither the micro-batch size nor the number of
    processes changes it (but where rounding decides between two tokens).
    Cost: each row is answered token by token, and passes the teacher with twice the prompt. Kept states below the
    adapter (`keep_below`) do not serve these passes. Stored: one more adapter.
    Differs: the teacher reads x, c, x, as if the question had been answered and asked again (the paper has a sentence
    around c, which asks a tuned model for an answer of its own; a method sees tokens, not texts). It begins each task
    as the student. The paper's text could not be read. Read were its abstract, the documentation of TRL's trainer, a
    copy of a released script and descriptions of the algorithm; their α is 0 (a teacher that stays) to 0.05. A model
    that does not use what stands in its context learns nothing.
    """

    title = "SDFT"
    family = "regularisation"
    paper = "arXiv 2601.19897"
    stores = "one more adapter"

    def __init__(self, run: RunView, config: SDFTConfig) -> None:
        super().__init__(run, config)
        self.taught: dict[str, list[int]] = {}  # by the id of a row of this step: the prompt that the teacher reads

    def begin_task(self) -> None:
        """The teacher starts as the student."""
        adapters.keep_copy(self.engine.model, "fast", TEACHER)

    def after_step(self) -> None:
        """teacher <- (1 - α) teacher + α fast."""
        adapters.interpolate(self.engine.model, TEACHER, "fast", by=self.config.teacher_rate)

    # -- the student's answers ------------------------------------------------------------------------------------

    def extend_batch(self, examples: list[Example]) -> list[Example]:
        """The same questions with the student's own answers."""
        longest = self.config.max_new_tokens or max(len(row.answer) for row in examples)
        ends = {row.answer[-1] for row in examples}
        answers = write_answers(self.engine, examples, longest=longest, ends=ends, choosing=self._drawn)
        self.taught = {row.id: self._demonstrated(row, longest) for row in examples}
        return [replace(row, answer=answers[row.id]) for row in examples]

    def _drawn(self, batch: Batch) -> Drawn:
        """Random numbers of this step's rows."""
        return Drawn([self.position.key("answer", self.position.step, row.id) for row in batch.examples])

    def _demonstrated(self, row: Example, longest: int) -> list[int]:
        """x, c, x. What the model's positions do not leave room for is cut at the beginning."""
        config = self.engine.core.config.get_text_config()  # type: ignore[union-attr, operator]
        again = row.prompt[1:] if row.prompt[:1] == [config.bos_token_id] else row.prompt
        whole, positions = [*row.prompt, *row.answer, *again], getattr(config, "max_position_embeddings", None)
        return whole if positions is None else whole[-max(positions - longest, len(row.prompt)) :]

    # -- the loss -------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """The divergence from the teacher at every token of the student's answers, a mean over the step's tokens."""
        asked = [replace(row, prompt=self.taught[row.id]) for row in batch.examples]
        shown, answers = collate(asked, pad=self.engine.pad, device=self.engine.device), batch.targets != IGNORED
        with torch.no_grad(), adapters.active(self.engine.model, TEACHER):
            theirs = self.engine.forward(shown, dropout=False).answer_logits[answers]
        ours = self.engine.forward(batch).answer_logits[answers]
        gap = reverse_divergence(ours, theirs) / totals.current.labels
        self.run.log("self_distillation", gap)
        return gap


class Drawn(LogitsProcessor):  # type: ignore[misc]  # transformers gives it no type
    """Makes the likeliest token a drawn one: Gumbel noise on each row's logits, from a generator of the row's own."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.sources = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """log p + noise, (rows, vocabulary): its maximum is at token v with probability p_v."""
        del input_ids
        even = torch.stack([torch.rand(scores.shape[1], generator=source) for source in self.sources])
        return scores.float() - (-even.log()).log().to(scores.device)


def reverse_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student ‖ teacher), summed over tokens; both (tokens, vocabulary) logits."""
    ours, theirs = functional.log_softmax(student.float(), dim=-1), functional.log_softmax(teacher.float(), dim=-1)
    return functional.kl_div(theirs, ours, reduction="sum", log_target=True)
