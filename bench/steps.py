"""A training step, ours and the plain one in turn, on the same rows from the same weights."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import plain
import torch
from accelerate import Accelerator
from machine import linear_layers, matmul_rate, needed_operations, timed
from setting import ADAPTER, BATCH, RATE, configuration
from transformers import TrainerCallback

from ilora.config import Config
from ilora.data.examples import Example
from ilora.methods import method_class
from ilora.methods.view import Position, RunView
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.load import load_model, resolve
from ilora.replay.memory import ReplayMemory
from ilora.training.loop import optimizer_step
from ilora.training.optim import make_optimizer

LENGTH, STEPS = 128, 6


class Ours:
    """One method ready to take steps; plain fine-tuning, replay or I-LoRA in the middle of a second task."""

    def __init__(self, config: Config) -> None:
        base, self.tokenizer = load_model(config.model, max_length=LENGTH, device=torch.device("cpu"))
        self.sizes = [(part.out_features, part.in_features) for part in linear_layers(base)]
        self.engine = Engine(
            adapters.attach(base, config.adapter, name="fast", seed=0).train(),
            Accelerator(),
            pad=self.tokenizer.eos_token_id,
            micro_batch_size=config.training.micro_batch_size,
        )
        memory = ReplayMemory(config.method.memory_capacity, seed=0)
        here = Position(task="new", current_tasks=frozenset(["new"]), task_index=2, task_steps=1000, epoch=1)
        self.method = method_class(config.method.name)(
            RunView(self.engine, memory, config.training, here), config.method
        )
        self.optimizer = make_optimizer(self.method.trainable, config.training)

    def begin(self, earlier: Sequence[Example]) -> None:
        """Fill the memory."""
        self.method.memory.offer(earlier)
        self.method.begin_task()

    def drawn(self, step: int) -> list[Example]:
        """The rows that `step` will replay."""
        return self.method.memory.draw(BATCH, key=f"{step}", without=["new"])

    def step(self, step: int, rows: list[Example]) -> float:
        """Take it; returns the loss."""
        self.method.run.position = replace(self.method.position, step=step, task_step=step)
        return optimizer_step(self.method, self.optimizer, rows).loss


class Between(TrainerCallback):
    """Times the trainer's steps, and takes ours and measures the machine between them."""

    def __init__(self, ours: Ours, rows: Sequence[list[Example]]) -> None:
        self.ours, self.rows = ours, rows
        self.plain_seconds: list[float] = []
        self.our_seconds: list[float] = []
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The rows are there; the step begins."""
        self.began = time.perf_counter()

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """The step has ended; now ours, with the same rows."""
        self.plain_seconds.append(time.perf_counter() - self.began)
        step = state.global_step
        self.our_seconds.append(timed(lambda: self.losses.append(self.ours.step(step, self.rows[step - 1]))))
        self.rates.append(matmul_rate(self.ours.sizes, BATCH * LENGTH, torch.bfloat16))


def random_rows(task: str, count: int, vocabulary: int) -> list[Example]:
    """Rows of LENGTH tokens, three of them the answer."""
    source = random.Random(task)

    def some(size: int) -> list[int]:
        return [source.randrange(100, vocabulary - 100) for _ in range(size)]

    return [Example(task, f"{task}/train/{index}", some(LENGTH - 3), some(3)) for index in range(count)]


def plain_row(row: Example) -> plain.Row:
    """As the trainer takes it."""
    return {"input_ids": row.prompt + row.answer, "labels": [-100] * len(row.prompt) + row.answer}


def measure_steps(method: str, name: str) -> dict[str, Any]:
    """Both sides' step with the same rows from the same weights, and how far their losses are apart."""
    config = configuration(method, Path(), ["new"], name=name)
    ours = Ours(
        config.model_copy(update={"training": config.training.model_copy(update={"micro_batch_size": 2 * BATCH})})
    )
    vocabulary = len(ours.tokenizer)
    ours.begin(random_rows("old", 64, vocabulary))
    fresh = random_rows("new", BATCH * STEPS, vocabulary)
    rows = [fresh[start : start + BATCH] for start in range(0, len(fresh), BATCH)]
    base, tokenizer = plain.load(resolve(name))
    theirs = plain.with_adapters(base, ADAPTER, ["fast", "slow"] if method == "ilora" else ["fast"])
    for label in ["fast", "slow"] if method == "ilora" else ["fast"]:
        with torch.no_grad():
            pairs = zip(
                adapters.parameters(theirs, label).values(),
                adapters.parameters(ours.engine.model, label).values(),
                strict=True,
            )
            for one, two in pairs:
                one.copy_(two)
    between = Between(ours, rows)
    with TemporaryDirectory() as scratch:
        draws = [] if method == "sequential" else [[plain_row(row) for row in ours.drawn(n + 1)] for n in range(STEPS)]
        trainer = plain.trainer(
            theirs, tokenizer, [plain_row(row) for row in fresh], method=method, batch=BATCH, rate=RATE,
            folder=scratch, draws=draws, callbacks=[between],
        )  # fmt: skip
        trainer.train()
    replayed = [] if method == "sequential" else ours.drawn(1)
    tokens = LENGTH * (BATCH + len(replayed))
    needed = needed_operations(ours.engine.model, rows[0] + replayed, replayed if method == "ilora" else ())
    rate = statistics.median(between.rates)
    mine, other = (statistics.median(times[1:]) for times in (between.our_seconds, between.plain_seconds))
    return {
        "rows": BATCH + len(replayed),
        "tokens": tokens,
        "plain_seconds": other,
        "seconds": mine,
        "ratio": other / mine,
        "tokens_per_second": tokens / mine,
        "needed_gflop": needed / 1e9,
        "matmul_gflops": rate / 1e9,
        "share": needed / mine / rate,
        "plain_share": needed / other / rate,
        "largest_loss_difference": max(abs(a - b) for a, b in zip(between.losses, trainer.losses, strict=True)),
    }
