"""Replay memory: examples kept by reservoir sampling over the whole stream.

It stores examples (lists of token ids), never padded tensors, and every draw is keyed, so that all processes and a
resumed run hold and draw the same rows.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import torch

from ilora.data.examples import Example


class ReplayMemory:
    """At most `capacity` examples; after n offers each is in with probability capacity / n (Vitter 1985, R)."""

    def __init__(self, capacity: int, *, seed: int) -> None:
        self.capacity = capacity
        self.seed = seed
        self.offered = 0
        self.examples: list[Example] = []

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def tasks(self) -> list[str]:
        """The tasks that have examples in it, by name."""
        return sorted({example.task for example in self.examples})

    def offer(self, examples: Iterable[Example]) -> None:
        """Show the reservoir rows once; replayed rows are passed over."""
        for example in examples:
            if example.replayed:
                continue
            self.offered += 1
            if len(self.examples) < self.capacity:
                self.examples.append(example)
                continue
            slot = random.Random(f"{self.seed}/reservoir/{self.offered}").randrange(self.offered)
            if slot < self.capacity:
                self.examples[slot] = example

    def draw(self, count: int, *, key: str, without: Collection[str] = ()) -> list[Example]:
        """`count` distinct examples (fewer if fewer are there), marked as replayed, none of the tasks in `without`."""
        pool = [example for example in self.examples if example.task not in without]
        chosen = random.Random(f"{self.seed}/replay/{key}").sample(pool, min(count, len(pool)))
        return [replace(example, replayed=True) for example in chosen]

    def stored_bytes(self) -> int:
        """As int32 token ids."""
        return sum(4 * (len(example.prompt) + len(example.answer)) for example in self.examples)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values, and the token ids as int32 tensors."""
        pairs = [(example.prompt, example.answer) for example in self.examples]
        return {
            "offered": self.offered,
            "rows": [[example.task, example.id] for example in self.examples],
            "tokens": torch.tensor([token for pair in pairs for ids in pair for token in ids], dtype=torch.int32),
            "lengths": torch.tensor([[len(prompt), len(answer)] for prompt, answer in pairs], dtype=torch.int32),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.offered = state["offered"]
        tokens, self.examples, start = state["tokens"].tolist(), [], 0
        for (task, key), (prompt, answer) in zip(state["rows"], state["lengths"].tolist(), strict=True):
            middle, end = start + prompt, start + prompt + answer
            self.examples.append(Example(task, key, tokens[start:middle], tokens[middle:end]))
            start = end
