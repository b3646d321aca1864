"""Before the first step: what it will take, against what the device has, and what `auto` makes of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ilora.config import Config
from ilora.data.stored import Stored
from ilora.data.tokens import longest_answer
from ilora.kernels.attention import GROUPED, flash_serves
from ilora.methods.base import Method
from ilora.model import adapters
from ilora.model.dtype import dtype_of
from ilora.model.engine import Engine
from ilora.model.fitting import division, recompute
from ilora.model.memory import (
    ADAM,
    Device,
    Part,
    free_memory,
    kept_bytes,
    momentary_bytes,
    round_down,
    rows_that_fit,
)
from ilora.model.sizes import decoder_layers, sizes_of
from ilora.present.numbers import size
from ilora.progress import Display
from ilora.training.encoded import EncodedStream
from ilora.training.processes import memory_share

_HELD = 4  # bytes of a trained value that are there before the first step; ADAM has its gradient and moments, too


@dataclass(frozen=True)
class Room:
    """Bytes that this process's largest micro-batch needs, and those that are there.

    weights, adapters: there already. optimizer: gradients and moments. activations: kept of the micro-batch `part`.
    momentary: beside them, for a while.
    passing: parts of other processes' weights, while a layer computes (`model.shard`).
    there: for all of these; None where the system does not say.
    recomputed: activations are computed again in the backward pass. share: of a GPU, the part that the process may use.
    """

    weights: int
    adapters: int
    optimizer: int
    activations: int
    momentary: int
    passing: int
    there: int | None
    part: Part
    recomputed: bool
    share: float

    @property
    def bytes(self) -> int:
        """All that is needed at once."""
        return self.weights + self.adapters + self.optimizer + self.activations + self.momentary + self.passing

    @property
    def suffices(self) -> bool:
        """Whether what is there is enough, or is not known."""
        return self.there is None or self.bytes <= self.there

    @property
    def record(self) -> dict[str, Any]:
        """For environment.json."""
        part = self.part
        return {
            "predicted_bytes": self.bytes,
            "there_bytes": self.there,
            "gpu_share": self.share,
            "micro_batch": {"rows": part.rows, "tokens_of_a_row": part.length},
            "gradient_checkpointing": self.recomputed,
        }

    def lines(self) -> list[str]:
        """What is said before the first step."""
        shown = {
            "weights": self.weights,
            "weights of other processes": self.passing,
            "adapters": self.adapters,
            "gradients and AdamW": self.optimizer,
            "activations": self.activations,
            "logits or gradients of a layer": self.momentary,
        }
        parts = ", ".join(f"{name} {size(count)}" for name, count in shown.items() if count)
        of = "" if self.there is None else f" of {size(self.there)}"
        again = "; activations are computed again (model.gradient_checkpointing)" if self.recomputed else ""
        micro = f"{self.part.rows} rows x {self.part.length} tokens"
        made = [f"memory: {size(self.bytes)}{of} expected ({parts}) in micro-batches of {micro}{again}"]
        if not self.suffices:
            made.append(
                "warning: memory may not suffice; a smaller data.max_length, training.micro_batch_size: auto or "
                "model.quantization: 4bit needs less"
            )
        return made


@contextmanager
def telling_of_halves(engine: Engine, display: Display) -> Iterator[None]:
    """Say where memory ended inside the block, and how it goes on."""
    before = division(engine)
    yield
    if (now := division(engine)) != before:
        display.warn(f"out of memory: micro-batches of {before}; going on with {now}")


def settle(method: Method[Any], config: Config, stream: EncodedStream) -> Room:
    """What a run's steps need, once what is `auto` is chosen, alike in all processes.

    That is whether activations are computed again, and the tokens of the first micro-batches.
    """
    engine = method.engine
    dtype = dtype_of(config.model)
    sizes = sizes_of(engine.core, element=dtype.itemsize, dropout=config.adapter.dropout > 0)
    length, answer = _longest(stream)
    length += stream.encoder.vectors
    trained = sum(parameter.numel() for parameter in method.trainable)
    optimizer, passing = (ADAM - _HELD) * trained, _passing(engine)
    free = free_memory(engine.device)
    device = device_of(engine, dtype)
    if free is not None:
        room = free - optimizer - passing
        _decide(engine, partial(rows_that_fit, sizes, device, room, length=length, answer=answer), length)
    mine = math.ceil(step_rows(config, len(stream.phases)) / engine.accelerator.num_processes)
    part = Part.like(_rows(engine, length, mine), length, answer)
    held = sum(value.nbytes for value in adapters.state(engine.model).values())
    weights = sum(_own_bytes(value) for name, value in engine.core.named_parameters() if "lora_" not in name)
    return Room(
        weights=weights,
        adapters=held,
        optimizer=optimizer,
        activations=kept_bytes(sizes, part, device, checkpointing=engine.recomputes),
        momentary=momentary_bytes(sizes, part, device, checkpointing=engine.recomputes),
        passing=passing,
        there=None if free is None else free + weights + held,
        part=part,
        recomputed=engine.recomputes,
        share=memory_share(engine.device),
    )


def step_rows(config: Config, phases: int) -> int:
    """Rows of a step, over all processes: from the second task on, replayed and pseudo rows come on top."""
    share = 1.0
    if phases > 1:
        share += float(config.method.memory_capacity > 0) + float(getattr(config.method, "pseudo_share", 0.0))
    return math.ceil(config.training.global_batch_size * share)


def device_of(engine: Engine, dtype: torch.dtype) -> Device:
    """How the engine computes, with values of this type."""
    noise = 1 if engine.device.type == "cuda" else dtype.itemsize
    kind = engine.core.config._attn_implementation  # type: ignore[union-attr]
    if kind == "flash_attention_2" or (kind == GROUPED and flash_serves(engine.device, dtype)):
        return Device("flash", noise)
    return Device("grouped" if kind == GROUPED else "eager" if kind == "eager" else "sdpa", noise)


def _decide(engine: Engine, find: Callable[..., int], length: int) -> None:
    """find: how many rows of this length fit together, by `checkpointing`."""
    if any(engine.gather([find(checkpointing=False) == 0])):
        recompute(engine)  # changes nothing where the setting is not `auto`
    if engine.micro_batch_size == "auto":
        rows = min(engine.gather([max(1, find(checkpointing=engine.recomputes))]))
        tokens = max(length, round_down(rows * length))
        engine.micro_batch_tokens = min(tokens, engine.micro_batch_tokens or tokens)


def _rows(engine: Engine, length: int, mine: int) -> int:
    """Rows of the largest micro-batch, where a process has `mine` of a step."""
    if engine.micro_batch_size != "auto":
        return min(engine.micro_batch_size, mine)
    return min(mine, max(1, (engine.micro_batch_tokens or mine * length) // length))


def _longest(stream: EncodedStream) -> tuple[int, int]:
    """Tokens of the longest training row and of the longest answer. Rows in a file are not read for it."""
    sets = list(stream.train.values())
    length = max(stream.encoder.config.max_length if isinstance(rows, Stored) else _most(rows) for rows in sets)
    return length, max(map(longest_answer, sets))


def _most(rows: Sequence[Any]) -> int:
    return max(map(len, rows), default=1)


def _own_bytes(weight: torch.Tensor) -> int:
    """Of what this process holds of it."""
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return int(local.nbytes)


def _passing(engine: Engine) -> int:
    """Where the base lies in parts: a layer that computes and one that arrives, and what is outside the layers."""
    if engine.sharding is None:
        return 0
    layers = [sum(weight.nbytes for weight in layer.parameters()) for layer in decoder_layers(engine.core)]
    outside = sum(weight.nbytes for weight in engine.core.parameters()) - sum(layers)
    return outside + sum(sorted(layers)[-2:])
