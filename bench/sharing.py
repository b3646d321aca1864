"""A training step on rows with one instruction: as it was, with the instruction read once, with the top layers only.

    .venv/bin/python bench/sharing.py

8 rows of an instruction of 27 tokens and 30 to 70 tokens of their own, SmolLM2-135M in bfloat16, adapters on all linear
layers; all variants in turn within one process, medians. The variants of one pair have the same loss.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from torch import Tensor

from ilora.data.examples import Example, Totals, collate
from ilora.kernels import packing
from ilora.methods import METHODS, Method
from ilora.methods.view import RunView
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.frozen import Below
from ilora.model.load import load_model
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig, ModelConfig, TrainingConfig

ROWS, INSTRUCTION, ROUNDS = 8, 27, 7
VARIANTS = {  # name: (layers with an adapter, instruction shared, states below kept)
    "all layers, every row whole": (None, False, False),
    "all layers": (None, True, False),
    "last ten layers, every row whole": (10, False, False),
    "last ten layers": (10, True, False),
    "last ten layers, states below kept": (10, True, True),
}


def rows() -> list[Example]:
    """Random tokens; the first ones are the same in all rows."""
    source = random.Random(0)

    def some(count: int) -> list[int]:
        return [source.randrange(100, 40_000) for _ in range(count)]

    begin = some(INSTRUCTION)
    return [Example("one", str(n), begin + some(source.randint(30, 70)), some(2)) for n in range(ROWS)]


def method(layers: int | None, kept: Path | None) -> Method:
    """Plain fine-tuning; `kept`: where the states below are."""
    base, _ = load_model(ModelConfig(name="smollm2-135m", dtype="bfloat16"), max_length=128, device=torch.device("cpu"))
    below = Below(base, above=layers or 0, folder=kept) if kept else None
    if below:
        below.prepare(rows())
    config = AdapterConfig(dropout=0.0, target_modules="all-linear", layers=layers)
    engine = Engine(
        adapters.attach(base, config, name="fast", seed=0).train(),
        Accelerator(),
        pad=0,
        adapted=layers or 0,
        below=below,
    )
    run = RunView(engine, ReplayMemory(0, seed=0), TrainingConfig())
    return METHODS["sequential"](run, METHODS["sequential"].Config(name="sequential"))


@contextmanager
def sharing(wanted: bool) -> Iterator[None]:
    """Outside of it, or with True, as it is."""
    real = packing.Packing.of
    if not wanted:
        packing.Packing.of = staticmethod(lambda mask, _=None: real(mask))  # type: ignore[method-assign]
    try:
        yield
    finally:
        packing.Packing.of = staticmethod(real)  # type: ignore[method-assign]


def step(made: Method) -> tuple[float, Tensor]:
    """Seconds of a forward and a backward pass, and the loss."""
    batch, totals = collate(rows(), pad=0), Totals.of(rows())
    began = time.perf_counter()
    loss = made.loss(batch, totals)
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    for parameter in made.trainable:
        parameter.grad = None
    return seconds, loss.detach()


def main() -> None:
    """Print the table."""
    with TemporaryDirectory() as scratch:
        made = {name: method(layers, Path(scratch) if kept else None) for name, (layers, _, kept) in VARIANTS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        losses: dict[str, float] = {}
        for _ in range(ROUNDS):
            for name, (_, shared, _) in VARIANTS.items():
                with sharing(shared):
                    spent, loss = step(made[name])
                seconds[name].append(spent)
                losses[name] = float(loss)
    first = statistics.median(next(iter(seconds.values()))[1:])
    print("| step | seconds | times as fast | loss |\n| --- | ---: | ---: | ---: |")
    for name, found in seconds.items():
        middle = statistics.median(found[1:])
        print(f"| {name} | {middle:.2f} | {first / middle:.2f} | {losses[name]:.3f} |")


if __name__ == "__main__":
    main()
