"""Time and cost of the paper's table, from measured figures of one card and stated assumptions.

    python bench/reproduce.py [--cards 8] [--price 2.5] [--tokens 512] [--decode-ms 10]

Measured: I-LoRA's step of a 7B model on one H100 (bench/gpu.json): 16 current and 16 replayed rows of 512 tokens. Such
a step has 48 rows forward and 32 back. As weights are frozen, a row back to its inputs costs about a row forward, so
the step is 80 parts. Everything else here is arithmetic: rows forward and back of each method (as counted in its runs,
tests/test_bench.py), the sweep's settings, and answers: one forward pass over each prompt, then a step for each new
token, for as many rows together as 4 GiB of keys and values hold. Every answer is taken to be as long as it may be and
every row as long as --tokens: both are upper bounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "configs" / "sweeps" / "paper-llama2-7b.yaml"
STEP_PARTS, STEP_TOKENS = 80, 512  # of the measured step
KEYS_AND_VALUES = 2 * 32 * 4096 * 2  # bytes of a token: layers, width, bfloat16
ROOM = 4 * 2**30

Passes = Callable[[float, int], tuple[float, float]]
"""(share of the steps that have earlier tasks, epochs) -> rows forward and back for each row that is trained on."""


def plain(_later: float, _epochs: int) -> tuple[float, float]:
    """The row itself."""
    return 1, 1


def replayed(later: float, _epochs: int) -> tuple[float, float]:
    """A replayed row, or one for a reference gradient, beside it."""
    return 1 + later, 1 + later


PASSES: dict[str, Passes] = {
    "sequential": plain,
    "joint": plain,
    "individual": plain,
    "olora": plain,
    "er": replayed,
    "agem": replayed,
    "ilora": lambda later, _: (1 + 2 * later, 1 + later),
    "lwf": lambda later, _: (1 + later, 1),
    "ewc": lambda _, epochs: (1 + 1 / epochs, 1 + 1 / epochs),
}


@dataclass(frozen=True)
class Setting:
    """Of a run: tasks, training and test rows of each, epochs, new tokens of an answer."""

    tasks: int
    train: int
    test: int
    epochs: int
    new_tokens: int

    @property
    def later(self) -> float:
        """Share of the steps that belong to the second task or a later one."""
        return (self.tasks - 1) / self.tasks

    def answered(self, label: str) -> int:
        """Test rows that are answered, over the whole run: the base model's answers, those to the tasks so far and the
        next one after each task, by each adapter that is scored.
        """
        if label == "joint":
            return 2 * self.tasks * self.test
        after = self.tasks * (self.tasks + 1) // 2 + self.tasks - 1
        return (self.tasks + (2 if label == "ilora" else 1) * after) * self.test


@dataclass(frozen=True)
class Card:
    """part: seconds of a row's forward pass. decode: seconds of a step that makes a token for all rows at once."""

    part: float
    decode: float
    tokens: int

    def training(self, setting: Setting, label: str) -> float:
        """Seconds of a run's steps."""
        forward, back = PASSES[label](setting.later, setting.epochs)
        return setting.tasks * setting.train * setting.epochs * (forward + back) * self.part

    def answering(self, setting: Setting, label: str) -> float:
        """Seconds of a run's answers."""
        at_once = ROOM // (KEYS_AND_VALUES * (self.tokens + setting.new_tokens))
        return setting.answered(label) * (self.part + setting.new_tokens * self.decode / at_once)


def measured() -> float:
    """Seconds of the 7B step as it is by default (nine tenths of the activations kept)."""
    lines: list[dict[str, Any]] = json.loads((ROOT / "bench" / "gpu.json").read_text(encoding="utf-8"))["lines"]
    found = [line for line in lines if line["shape"] == "7B" and line.get("activation_memory_budget") == 0.9]
    return float(found[0]["seconds"])


def setting_of(base: dict[str, Any]) -> Setting:
    """What a configuration says."""
    limit = base["data"]["limit"]
    tasks = len(base["data"]["tasks"])
    new = base["evaluation"]["max_new_tokens"]
    return Setting(tasks, limit["train"], limit["test"], base["training"]["epochs"], new)


def table(*, cards: int, price: float, tokens: int, decode_ms: float) -> list[str]:
    """The lines of docs/reproduce.md. price: of a card's hour. decode_ms: of a step of generation."""
    sweep = yaml.safe_load(SWEEP.read_text(encoding="utf-8"))
    setting = setting_of(yaml.safe_load((SWEEP.parent / sweep["base"]).read_text(encoding="utf-8")))
    card = Card(measured() / STEP_PARTS * tokens / STEP_TOKENS, decode_ms / 1000, tokens)
    pairs = sweep["orders"] * len(sweep["seeds"])
    made, total = ["| method | training (h) | answers (h) | a run (h) |", "| --- | ---: | ---: | ---: |"], 0.0
    for label in sweep["methods"]:
        training, answering = (part(setting, label) / 3600 for part in (card.training, card.answering))
        total += training + answering
        made.append(f"| {label} | {training:.1f} | {answering:.1f} | {training + answering:.1f} |")
    hours = -(-pairs // cards) * total  # a card makes whole pairs, each with all methods
    made.append(f"| all, one order and seed | | | {total:.1f} |")
    return [
        *made,
        "",
        f"{pairs} pairs of order and seed on {cards} cards: {hours:.0f} hours, {pairs * total:.0f} hours of a card, "
        f"{pairs * total * price:,.0f} at {price:g} an hour.",
    ]


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--price", type=float, default=2.5, help="of an hour of one card (assumed)")
    parser.add_argument("--tokens", type=int, default=512, help="of a row; `ilora run --dry-run` counts them")
    parser.add_argument("--decode-ms", type=float, default=10, help="of a step of generation (assumed)")
    chosen = parser.parse_args()
    print("\n".join(table(cards=chosen.cards, price=chosen.price, tokens=chosen.tokens, decode_ms=chosen.decode_ms)))


if __name__ == "__main__":
    main()
