"""How fast this machine trains: a few steps of the configured model on rows of given lengths."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from accelerate import Accelerator

from ilora.config import Config
from ilora.data.examples import Example
from ilora.methods import method_class
from ilora.methods.view import Position, RunView
from ilora.replay.memory import ReplayMemory
from ilora.training.loading import load_engine
from ilora.training.loop import optimizer_step
from ilora.training.optim import make_optimizer

_STEPS = 3


def tokens_per_second(config: Config, lengths: Sequence[int]) -> list[float]:
    """Trained tokens (prompt and answer) in a second for rows of each length: plain fine-tuning, whole optimizer steps.

    A step has one micro-batch (`auto`: 8 rows); each figure is the median of three. Loads the model, with the adapter
    as configured.
    """
    engine, _ = load_engine(config, Accelerator())
    plain = method_class("sequential")
    view = RunView(engine, ReplayMemory(0, seed=config.seed), config.training, Position(task_step=1, task_steps=1))
    method = plain(view, plain.Config(name="sequential"))
    optimizer = make_optimizer(method.trainable, config.training)

    def step(length: int) -> float:
        rows = [_row(length, engine.pad)] * config.training.rows_at_once
        began = time.perf_counter()
        optimizer_step(method, optimizer, rows)
        return length * len(rows) / (time.perf_counter() - began)

    for length in lengths[:1]:
        step(length)  # the first one also allocates
    return [statistics.median(step(length) for _ in range(_STEPS)) for length in lengths]


def _row(length: int, token: int) -> Example:
    answer = max(1, length // 8)
    return Example("speed", "speed/train/0", [token] * (length - answer), [token] * answer)
