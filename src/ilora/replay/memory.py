"""Replay memory: examples kept by reservoir sampling over the whole stream, or balanced over tasks and answers.

It stores examples (lists of token ids), never padded tensors, and every draw is keyed, so that all processes and a
resumed run hold and draw the same rows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ilora.data.examples import Example, by_task

MOST = 100_000  # rows of a task that a method holds at once; of more it takes a random part of that size


class ReplayMemory:
    """At most `capacity` examples, chosen by whoever fills it: `offer`, `balance` or `keep_first`."""

    def __init__(self, capacity: int, *, seed: int) -> None:
        self.capacity = capacity
        self.seed = seed
        self.offered = 0
        self.examples: list[Example] = []
        # When it last grew, full: how many rows it held (they stand first) of how many that it had been shown.
        self.held = self.before = 0

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def tasks(self) -> list[str]:
        """The tasks that have examples in it, by name."""
        return sorted({example.task for example in self.examples})

    def offer(self, examples: Iterable[Example]) -> None:
        """Show the reservoir rows once: after n of them each is in with probability capacity / n (Vitter 1985, R).

        A full reservoir that has grown since cannot be that at once: the rows that it passed over are gone. The places
        that came on top are then a reservoir of the rows since. Among the rows before, and among those since, each is
        in with the same probability; as soon as the two are equal, all places are one reservoir again.
        Replayed rows are passed over.
        """
        for example in examples:
            if example.replayed:
                continue
            self.offered += 1
            if len(self.examples) < self.capacity:
                self.examples.append(example)
                continue
            free, since = self.capacity - self.held, self.offered - self.before
            if since * self.held > self.before * free:  # free / since < held / before
                self.held = self.before = 0
            slot = random.Random(f"{self.seed}/reservoir/{self.offered}").randrange(self.offered - self.before)
            if self.held + slot < self.capacity:
                self.examples[self.held + slot] = example

    def resize(self, capacity: int) -> None:
        """Hold at most `capacity` rows from now on. Too many are dropped by the rule that chose them.

        Of a reservoir a random part stays, so that every row is as likely to be in as the others, as before. A balanced
        memory drops what came last in the turns of its tasks and answers.
        """
        full, self.capacity = len(self.examples) == self.capacity, capacity
        count = len(self.examples)
        if capacity >= count:
            if full and capacity > count and self.offered > count:
                self.held, self.before = count, self.offered
        elif not self.offered:
            self.balance(())
        else:
            chance = random.Random(f"{self.seed}/smaller/{self.offered}/{capacity}")
            held = round(self.held * capacity / count)
            kept = [*chance.sample(range(self.held), held), *chance.sample(range(self.held, count), capacity - held)]
            self.examples, self.held = [self.examples[place] for place in sorted(kept)], held

    def clear(self, capacity: int) -> None:
        """Hold nothing, as before the first row, and at most `capacity` rows from now on."""
        self.capacity, self.examples = capacity, []
        self.offered = self.held = self.before = 0

    def take(self, rows: Iterable[Example], *, capacity: int) -> None:
        """Hold these as well, and at most `capacity` rows in all, whatever rule chooses the others.

        From then on all places are one reservoir, so that later rows take the places of any.
        """
        self.capacity = capacity
        self.examples = [*self.examples, *rows][:capacity]
        self.held = self.before = 0

    def forget(self, task: str, *, shown: int) -> None:
        """Drop all rows of a task, for good; once. shown: how many of its rows the reservoir was shown.

        The others stay a sample of what it was shown beside them. The free places go to the rows to come, as in a
        reservoir that has grown.
        """
        before = len(self.examples)
        self.examples = [example for example in self.examples if example.task != task]
        if self.offered and (shown or len(self.examples) < before):
            kept = len(self.examples)
            self.offered = max(kept, self.offered - shown)
            self.held, self.before = (kept, self.offered) if self.offered > kept else (0, 0)

    def balance(self, rows: Iterable[Example]) -> None:
        """Choose anew, from the kept rows and these: equally many of each task, and in a task of each answer.

        A task or answer with too few rows leaves its places to the others, drawn by chance. All answers that occur only
        once in a task count together as one answer.

        A reservoir of few rows can miss an answer altogether, and replay then teaches that it does not exist.
        """
        turns = by_task(self.examples)  # a kept row stays before those that it was preferred to
        for task, new in by_task(rows).items():
            turns[task] = self._turns([*turns.get(task, []), *new])
        self._share(turns)

    def keep_first(self, rows: Iterable[Example]) -> None:
        """Choose anew, from the kept rows and these: equally many of each task, of these the first ones.

        rows: the preferred ones first. A task with too few rows leaves its places to the others.
        """
        turns = by_task(self.examples)
        for task, new in by_task(rows).items():
            turns[task] = [*turns.get(task, []), *new]
        self._share(turns)

    def _share(self, turns: dict[str, list[Example]]) -> None:
        """Fill the memory with the tasks' rows in turn; turns: each task's, the preferred ones first."""
        ranked = [(place, self._chance(place, task), row) for task in turns for place, row in enumerate(turns[task])]
        ranked.sort(key=lambda entry: entry[:2])
        self.examples = [row for *_, row in ranked[: self.capacity]]

    def _turns(self, rows: Sequence[Example]) -> list[Example]:
        """A task's rows: one of every answer, then a second of every answer, and so on."""
        times = Counter(tuple(row.answer) for row in rows)
        seen: Counter[tuple[int, ...]] = Counter()
        turns: list[tuple[int, float, Example]] = []
        for row in sorted(rows, key=lambda row: self._chance(row.task, row.id)):
            answer = tuple(row.answer) if times[tuple(row.answer)] > 1 else ()
            turns.append((seen[answer], self._chance(row.task, seen[answer], answer), row))
            seen[answer] += 1
        return [row for *_, row in sorted(turns, key=lambda turn: turn[:2])]

    def _chance(self, *of: object) -> float:
        return random.Random(f"{self.seed}/balance/{of}").random()

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
            "held": self.held,
            "before": self.before,
            "rows": [[example.task, example.id] for example in self.examples],
            "tokens": torch.tensor([token for pair in pairs for ids in pair for token in ids], dtype=torch.int32),
            "lengths": torch.tensor([[len(prompt), len(answer)] for prompt, answer in pairs], dtype=torch.int32),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.offered = state["offered"]
        self.held, self.before = state.get("held", 0), state.get("before", 0)  # not in those of the versions before
        tokens, self.examples, start = state["tokens"].tolist(), [], 0
        for (task, key), (prompt, answer) in zip(state["rows"], state["lengths"].tolist(), strict=True):
            middle, end = start + prompt, start + prompt + answer
            self.examples.append(Example(task, key, tokens[start:middle], tokens[middle:end]))
            start = end
