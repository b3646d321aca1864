"""A base model, loaded once, that answers with one adapter after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TextStreamer

from ilora.config import Config
from ilora.connectivity.landscape import open_landscape
from ilora.connectivity.space import Adapter
from ilora.data.examples import Example, collate
from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.evaluation.scoring import answer, answer_text, greedy, prepare
from ilora.model.gpu import suit_answers


class Answerer:
    """Answers as the run's own evaluation does: the same template, cuts, ends and greedy choice of tokens."""

    def __init__(self, config: Config, adapter: Adapter, like: Adapter) -> None:
        """adapter: with which to begin. like: an adapter that changes the layers that may be changed.

        Raises InputError where the model cannot be loaded or an adapter does not fit it.
        """
        landscape = open_landscape(config, [], [like], split="test")
        self.engine, self.encoder, self._place = landscape.engine, landscape.encoder, landscape.use
        self._layers = like.updates.keys()
        suit_answers(self.engine, config.model)
        self.use(adapter)

    def use(self, adapter: Adapter) -> None:
        """Answer with this adapter from now on; the base stays loaded."""
        if strange := sorted(adapter.updates.keys() - self._layers):
            raise InputError(f"{adapter.label} changes {strange[0]}, which the run's other adapters do not change")
        self._place(adapter)

    def answers(
        self, task: Task, *, batch_size: int, advance: Callable[[int], None] = lambda _: None
    ) -> tuple[list[str], int]:
        """The answers to the task's test rows, and how many of their prompts were cut.

        The task has its `max_new_tokens`. Answers of its rows play no part.
        """
        assert task.max_new_tokens is not None
        data = prepare(task, self.encoder, [], split="test", max_new_tokens=task.max_new_tokens)
        made = answer(data, self.engine, self.encoder, batch_size=batch_size, advance=advance)
        return [text for text, _ in made], data.cut

    @torch.inference_mode()
    def reply(
        self, prompt: str, *, tokens: int, limit: int, template: str | None, tell: Callable[[str], object]
    ) -> tuple[str, bool]:
        """The answer to one prompt, and whether the prompt was cut.

        tokens: of the answer, at most. limit: the longest answer in the run's evaluation, for which a prompt leaves
        room. template: around the prompt; None: the run's. tell: is given the pieces of the answer as they come.
        """
        task = Task("question", {"test": [Row(prompt, "")]}, max_new_tokens=tokens, template=template)
        self.encoder.answer_limit(task, tokens, 0)  # refuses what the model cannot read
        (whole,) = self.encoder.encode(task, "test")
        room = self.encoder.room(limit)
        if self.encoder.positions is not None:
            room = min(room, self.encoder.positions - tokens)
        asked = Example(whole.task, whole.id, self.encoder.cut(whole.prompt, room, whole.body), [])
        batch = collate([asked], pad=self.encoder.pad, device=self.engine.device)
        streamer = _Streamer(self.encoder.tokenizer, tell)
        encoder = self.encoder.of(task)
        made = self.engine.generate(batch, greedy(encoder, tokens), streamer=streamer)
        return answer_text(made[0].tolist(), encoder), whole.cut or len(asked) < len(whole.prompt)


class _Streamer(TextStreamer):  # type: ignore[misc]
    """Hands the answer on in whole words, without what stands before its first letter."""

    def __init__(self, tokenizer: Any, tell: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._tell, self._begun = tell, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers for each finished piece."""
        text = text if self._begun else text.lstrip()
        text = text.rstrip() if stream_end else text
        if text:
            self._begun = True
            self._tell(text)
