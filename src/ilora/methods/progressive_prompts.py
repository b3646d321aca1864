"""Progressive Prompts: Razdaibiedina et al. 2023 (arXiv 2301.12314).

Every task learns one soft prompt P_k, through a residual MLP that is dropped afterwards; earlier prompts stay frozen
and stand behind the new one:

    input of task k: [P_k, P_{k-1}, …, P_1, x],      P_k = p_k + MLP(p_k)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ilora.data.examples import Batch, Totals
from ilora.methods.base import METHODS
from ilora.methods.prompts import PromptConfig, PromptMethod, fill
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.settings import PositiveInt


class ProgressivePromptsConfig(PromptConfig):
    """Sizes as in the released settings."""

    learning_rate: float | None = Field(0.003, gt=0, lt=1e30, description="instead of training.learning_rate")
    prompt_length: PositiveInt = Field(20, description="vectors for each task")
    bottleneck: PositiveInt = Field(128, description="width of the residual MLP")

    def prompt_tokens(self, tasks: int) -> int:
        """The last task has the prompts of all."""
        return tasks * self.prompt_length


@METHODS("progressive_prompts")
class ProgressivePrompts(PromptMethod[ProgressivePromptsConfig]):
    """One prompt a task. A task is answered with its own and the earlier prompts, exactly as it was trained.

    What is saved after task k is an ordinary PEFT prompt-tuning folder with the prompts of all k tasks.
    Differs: no layer norm in the MLP, whose second layer begins at zero, so that a prompt begins as word embeddings
    (normalised ones would be far longer).
    """

    title = "Prog. Prompts"
    paper = "arXiv 2301.12314"
    stores = "one soft prompt a task"
    needs_task_id = True
    one_adapter_answers = False
    fixed_answers = True
    fresh_start = True

    def __init__(self, run: RunView, config: ProgressivePromptsConfig) -> None:
        super().__init__(run, config)
        self.finished: list[Tensor] = []
        self.number_of: dict[str, int] = {}  # by task: how many prompts it uses
        start = self._start()
        self.prompt, *self.mlp = (self.parameter(value) for value in start)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The new prompt, and the MLP's two layers."""
        return [self.prompt, *self.mlp]

    def _start(self) -> list[Tensor]:
        """Where a task begins: word embeddings, the MLP's first layer random, its second zero."""
        words = self.word_vectors(self.config.prompt_length, self.position.task_index)
        width, features = self.config.bottleneck, words.shape[1]
        source = torch.Generator().manual_seed(self.position.key("mlp", self.position.task_index))
        first = (torch.rand(width, features, generator=source) * 2 - 1) * features**-0.5
        return [words, first, torch.zeros(width), torch.zeros(features, width), torch.zeros(features)]

    def begin_task(self) -> None:
        """A new prompt."""
        fill(self.trainable, self._start())

    def new_prompt(self) -> Tensor:
        """p + MLP(p): (length, features)."""
        first, bias, second, shift = self.mlp
        return self.prompt + (self.prompt @ first.T + bias).relu() @ second.T + shift

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """Cross-entropy behind the new and all earlier prompts."""
        with self.in_training():
            return super().loss(batch, totals)

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """The new prompt and all earlier ones."""
        with self._before(torch.cat([self.new_prompt(), *reversed(self.finished)])):
            yield

    def end_task(self) -> None:
        """Freeze the prompt, as the MLP makes it."""
        self.finished.append(self.new_prompt().detach().clone())
        self.number_of |= dict.fromkeys(sorted(self.position.current_tasks), len(self.finished))

    @contextmanager
    def inference(self, task: str, variant: str) -> Iterator[None]:
        """The prompts that the task was trained with; all of them for a task that was not."""
        del variant
        count = self.number_of.get(task, len(self.finished))
        with self._before(torch.cat(self.finished[:count][::-1])):
            yield

    @contextmanager
    def _before(self, prompt: Tensor) -> Iterator[None]:
        with self.engine.prefixed(lambda batch: prompt.expand(len(batch.input_ids), -1, -1)):
            yield

    def save(self, folder: Path) -> None:
        """The prompts of all tasks so far."""
        whole = torch.cat(self.finished[::-1])
        adapters.save_soft_prompt(self.engine.model, folder / "fast", whole, like="fast")

    def state_dict(self) -> dict[str, Any]:
        """prompts.<n> of the finished tasks, training.<n> of the one in training."""
        return (
            {"number_of": dict(self.number_of)}
            | {f"prompts.{n:04d}": value for n, value in enumerate(self.finished)}
            | {f"training.{n}": value.detach() for n, value in enumerate(self.trainable)}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.number_of = dict(state["number_of"])
        names = sorted(key for key in state if key.startswith("prompts."))
        self.finished = [state[name] for name in names]
        fill(self.trainable, [state[f"training.{n}"] for n in range(len(self.trainable))])
