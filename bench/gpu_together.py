"""What steps of several runs take together, over one copy of the base, against those of one run alone.

`python bench/gpu_together.py` prints the figures and writes JSON beside it. It compares losses and gradients' norms of
the first steps with those of the runs alone. Without a GPU it runs toy sizes: the figures then mean nothing, and the
script is checked.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from gpu import CARD, SHAPES, Ours, Shape, Tokenizer, base_model, some_rows, toy, wait

from ilora.model.joint import sharing_copy
from ilora.model.load import GivenModel
from ilora.model.shared import SharedModel
from ilora.model.stacked import StackedDecoder
from ilora.model.together import Meeting, go_round
from ilora.model.turns import Player

ROUNDS = 8  # different batches, in turn


class Bench:
    """Runs of I-LoRA with rows of their own over one base."""

    def __init__(self, shape: Shape, runs: int, warm: int, count: int) -> None:
        self.shape, self.warm, self.count = shape, warm, count
        self.base = GivenModel(base_model(shape), Tokenizer(eos_token_id=2, pad_token_id=0))
        self.rows = [
            [some_rows(shape, f"new{run}-{number}", shape.rows) for number in range(ROUNDS)] for run in range(runs)
        ]

    def learner(self, base: Any) -> Ours:
        """One run, in the middle of its second task."""
        return Ours(base, self.shape, {}, micro_batch=2 * self.shape.rows, dropout=0.0)

    def alone(self, run: int, steps: int) -> tuple[list[tuple[float, float]], float]:
        """Loss and norm of the first steps, and the seconds of a step once it is warm."""
        ours = self.learner(sharing_copy(self.base.model))
        found = []
        for step in range(steps):
            if step == self.warm:
                wait()
                began = time.perf_counter()
            found.append(ours.step(step % ROUNDS, self.rows[run][step % ROUNDS]))
        wait()
        return found, (time.perf_counter() - began) / (steps - self.warm) if steps > self.warm else 0.0

    def together(self) -> tuple[list[list[tuple[float, float]]], dict[str, Any]]:
        """The same of all runs together, a step of each; and how many joint passes were recorded."""
        found: list[list[tuple[float, float]]] = [[] for _ in self.rows]
        players: list[Player] = []
        meeting = Meeting(self.base)

        def work(run: int) -> None:
            shared = SharedModel.at(meeting, players[run])
            ours = self.learner(shared.model)
            shared.ready(ours.engine)
            for step in range(self.warm + self.count):
                found[run].append(ours.step(step % ROUNDS, self.rows[run][step % ROUNDS]))

        for run in range(len(self.rows)):
            players.append(Player(lambda run=run: work(run)))  # type: ignore[misc]
        began = time.perf_counter()
        self._until(found, players, meeting, self.warm)
        warming = time.perf_counter() - began
        began = time.perf_counter()
        self._until(found, players, meeting, self.warm + self.count)
        seconds = (time.perf_counter() - began) / self.count
        while not all(player.over for player in players):
            go_round(players, [meeting])
        recordings = sum(len(one.recordings) for one in meeting.decoders.values() if isinstance(one, StackedDecoder))
        return found, {"seconds": seconds, "warming": warming, "recordings": recordings}

    def _until(self, found: list[Any], players: list[Player], meeting: Meeting, steps: int) -> None:
        while min(map(len, found)) < steps:
            if all(player.over for player in players):
                raise SystemExit("a run broke off")
            go_round(players, [meeting])
        wait()


def furthest(first: list[tuple[float, float]], other: list[tuple[float, float]]) -> float:
    """The largest difference of loss or norm, as a share of it."""
    pairs = zip(first, other, strict=False)
    return max(abs(one - two) / abs(two) for steps in pairs for one, two in zip(*steps, strict=True))


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/gpu_together.json"))
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--warm", type=int, default=24)
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    shape = SHAPES["135M"] if CARD else toy(SHAPES["135M"])
    card = torch.cuda.get_device_name() if CARD else "no GPU: toy sizes"
    bench = Bench(shape, options.runs, options.warm, options.steps)
    first, seconds = bench.alone(0, options.warm + options.steps)
    last, _ = bench.alone(options.runs - 1, 2)
    found, figures = bench.together()
    apart = max(furthest(found[0][:2], first[:2]), furthest(found[-1][:2], last))
    figures |= {"card": card, "torch": torch.__version__, "runs": options.runs, "alone": seconds, "apart": apart,
                "times_alone": figures["seconds"] / seconds}  # fmt: skip
    if CARD:
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(figures, indent=1))
    options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if apart > 2e-2:  # of bfloat16
        raise SystemExit(f"losses or norms together are {apart:.2g} from those alone")


if __name__ == "__main__":
    main()
