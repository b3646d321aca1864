"""What the machine can do, what a step needs, and what a process takes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilora.data.examples import Example
from ilora.model import adapters


def timed(what: Callable[[], Any]) -> float:
    """Wall seconds."""
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def linear_layers(base: nn.Module) -> list[nn.Linear]:
    """Every linear layer but the output head."""
    head = base.get_output_embeddings()  # type: ignore[operator]
    return [part for part in base.modules() if isinstance(part, nn.Linear) and part is not head]


def matmul_rate(sizes: Sequence[tuple[int, int]], tokens: int, dtype: torch.dtype) -> float:
    """Floating-point operations in a second of the model's own matrix products, each at the fastest of eight rounds."""
    needed = seconds = 0.0
    for out, inner in set(sizes):
        x, weight = torch.randn(tokens, inner).to(dtype), torch.randn(out, inner).to(dtype)
        product = partial(nn.functional.linear, x, weight)
        count = sizes.count((out, inner))
        needed += 2 * count * tokens * out * inner
        seconds += count * min(timed(product) for _ in range(8))
    return needed / seconds


def needed_operations(net: Any, rows: Sequence[Example], replayed: Sequence[Example] = ()) -> float:
    """Floating-point operations that a step over these rows cannot do without: matrix products only.

    Forward through every linear layer and back to its input (frozen weights need no gradient); the adapter and its
    gradients; attention within a row; the output head where there is a label. `replayed`: rows that go forward once
    more, with the slow adapter and without logits.
    """
    base, config = net.get_base_model(), net.config
    linear = 2 * sum(part.weight.numel() for part in linear_layers(base) if not hasattr(part, "base_layer"))
    linear -= sum(2 * value.numel() for name, value in net.named_parameters() if "lora_" in name)
    lora = 2 * sum(value.numel() for value in adapters.parameters(net, "fast").values())
    head = 2 * config.hidden_size * config.vocab_size
    total = 0.0
    for row in rows:
        attention = 4 * len(row) * config.hidden_size * config.num_hidden_layers
        total += len(row) * (2 * linear + 3 * lora + 3 * attention) + 2 * len(row.answer) * head
    for row in replayed:
        total += len(row) * (linear + lora + 4 * len(row) * config.hidden_size * config.num_hidden_layers)
    return total


def measured_process(command: Sequence[str], *, log: Path, watch: Path | None = None) -> dict[str, float]:
    """Seconds of a command; `first`: seconds until the file `watch` has a line."""
    with log.open("w", encoding="utf-8") as sink:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        first = None
        while watch is not None and first is None and process.poll() is None:
            if watch.is_file() and watch.stat().st_size:
                first = time.perf_counter() - began
            time.sleep(0.02)
        code = process.wait()
        seconds = time.perf_counter() - began
    if code:
        raise SystemExit(f"{' '.join(command)}: failed\n{log.read_text(encoding='utf-8')[-2000:]}")
    return {"seconds": seconds} | ({"first": first} if first is not None else {})
