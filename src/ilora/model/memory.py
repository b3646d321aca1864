"""How much memory a step takes beyond the weights, before it is taken: the formula of a run and of `--dry-run`.

It counts what the layers keep for the backward pass, by their sizes. `tests/model/test_memory.py` compares it with what
autograd saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ilora.data.examples import Example
from ilora.model.sizes import LayerSizes, Sizes

ADAM = 16  # bytes of a trained value: itself, its gradient, two moments, in float32
SHARE = 0.85  # of the free memory that may be planned with: the rest is for gaps between tensors, and for what is small
TOKENS_ON_GPU = 65536  # in a micro-batch of `auto`, at most: a bound for passes over a whole memory
_GRADIENTS = 0.5  # of what a layer keeps, in its backward pass; measured: 0.3 to 0.7
_EIGHTHS = 8  # a number of tokens is one of so many between a power of two and the next

# How rows attend. flash: without padding; only its inputs and its result are kept. sdpa: padded rows, with a mask.
# grouped: our own on a CPU, which keeps its weights. eager: transformers' own.
Attention = Literal["flash", "sdpa", "grouped", "eager"]


@dataclass(frozen=True)
class Part:
    """Rows that go through the model together. tokens: of all. length, answer: tokens of the longest, at most."""

    rows: int
    length: int
    answer: int
    tokens: int

    @property
    def places(self) -> int:
        """Tokens with padding."""
        return self.rows * self.length

    @staticmethod
    def of(rows: Sequence[Example]) -> Part:
        """Of these rows."""
        answer = max(len(row.answer) for row in rows)
        return Part(len(rows), max(map(len, rows)), answer, sum(map(len, rows)))

    @staticmethod
    def like(rows: int, length: int, answer: int) -> Part:
        """Of rows of one length."""
        return Part(rows, length, answer, rows * length)


@dataclass(frozen=True)
class Device:
    """How a device computes. attention: of the model there. noise: bytes that a value's dropout mask takes there."""

    attention: Attention = "flash"
    noise: int = 1


def layer_bytes(sizes: Sizes, layer: LayerSizes, part: Part, device: Device) -> int:
    """What one layer keeps for its backward pass.

    A frozen matrix keeps nothing of its own, yet what stands at its other end (gate, up and their product; queries,
    keys, values, the mixed values) is kept by activation and attention: for each token as many values as the matrix
    has, over the model's width. A norm keeps its input in float32. An adapter keeps its input and the few values
    between its factors; with dropout each has an input of its own, and a mask.
    """
    tokens = part.places if device.attention in ("sdpa", "eager") else part.tokens
    rest = max(0, layer.matrices // sizes.hidden - 2 * (sizes.queries + sizes.keys))
    inputs = layer.copies if sizes.dropout else layer.inputs
    masks = device.noise * layer.copies if sizes.dropout else 0
    found = tokens * (sizes.element * (rest + layer.ranks + inputs) + 4 * layer.norms + masks)
    return found + _attention_bytes(sizes, layer, part, device.attention)


def _attention_bytes(sizes: Sizes, layer: LayerSizes, part: Part, kind: Attention) -> int:
    """What attention keeps; its result, too, where an adapter reads it."""
    element, places, pairs = sizes.element, part.places, part.places * part.length
    if kind == "flash":
        return element * part.tokens * 2 * (sizes.queries + sizes.keys)
    if kind == "sdpa":  # keys and values stand once for each head, and each layer keeps the mask
        return element * (places * 4 * sizes.queries + pairs)
    mixed = element * places * sizes.queries if layer.mixed and not sizes.dropout else 0
    if kind == "grouped":
        return element * (places * (sizes.queries + 2 * sizes.keys) + pairs * sizes.heads) + mixed
    weights = 4 + (element if element < 4 else 0)  # in float32, and as the model computes
    return element * places * 3 * sizes.queries + pairs * sizes.heads * weights + mixed


def kept_bytes(sizes: Sizes, part: Part, device: Device, *, checkpointing: bool) -> int:
    """What all layers keep for the backward pass. With checkpointing, each keeps its input alone.

    Layers below the first adapter keep nothing.
    """
    above = sizes.layers[sizes.first :]
    if checkpointing:
        tokens = part.tokens if device.attention in ("flash", "grouped") else part.places
        return tokens * sizes.hidden * (sizes.element * len(above) + 4)  # the last norm is no part of a layer
    return sum(layer_bytes(sizes, layer, part, device) for layer in above)


def momentary_bytes(sizes: Sizes, part: Part, device: Device, *, checkpointing: bool) -> int:
    """What stands for a moment beside all that is kept: the logits, or the gradients of one layer.

    With checkpointing that layer's own activations, too. Of the logits there are four in the loss and its gradient.
    """
    logits = 4 * part.rows * (part.answer + 1) * sizes.vocabulary * sizes.element
    layers = (layer_bytes(sizes, layer, part, device) for layer in sizes.layers[sizes.first :])
    return max(logits, round((_GRADIENTS + checkpointing) * max(layers, default=0)))


def step_bytes(sizes: Sizes, part: Part, device: Device, *, checkpointing: bool) -> int:
    """All that a micro-batch takes."""
    kept = kept_bytes(sizes, part, device, checkpointing=checkpointing)
    return kept + momentary_bytes(sizes, part, device, checkpointing=checkpointing)


def rows_that_fit(sizes: Sizes, device: Device, room: float, *, length: int, answer: int, checkpointing: bool) -> int:
    """How many rows of this length fit together into SHARE of the room, in bytes; 0: not even one."""
    one = step_bytes(sizes, Part.like(1, length, answer), device, checkpointing=checkpointing)
    return max(0, min(int(SHARE * room // one), max(1, TOKENS_ON_GPU // length)))


def round_down(tokens: int) -> int:
    """A number of tokens as one of a few, so that a little more or less free memory changes no micro-batch."""
    step = max(1, (1 << max(tokens.bit_length() - 1, 0)) // _EIGHTHS)
    return tokens // step * step


def free_memory(device: torch.device, *, system: Path = Path("/")) -> int | None:
    """Bytes that a process can still have on the device; None where the system does not say.

    On a GPU with what torch holds and does not use, and within the process's share of it. On Linux, without a GPU: what
    the kernel would give without swapping, or what is left of the control group's limit (version 2), as in a container.
    system: where /proc and /sys are.
    """
    if device.type == "cuda":
        (free, total), used = torch.cuda.mem_get_info(device), torch.cuda.memory_allocated(device)
        share = torch.cuda.get_per_process_memory_fraction(device) * total
        return int(min(free + torch.cuda.memory_reserved(device), share) - used)
    if device.type != "cpu":
        return None
    known = [found for found in (_available(system), _left_in_group(system)) if found is not None]
    return min(known, default=None)


def _available(system: Path) -> int | None:
    file = system / "proc" / "meminfo"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((1024 * int(words[1]) for words in found), None)


def _left_in_group(system: Path) -> int | None:
    """None without a limit. Files in the page cache count as used there, and are given up when memory is needed."""
    folder = system / "sys" / "fs" / "cgroup"
    names = [folder / name for name in ("memory.max", "memory.current", "memory.stat")]
    if not all(name.is_file() for name in names):
        return None
    limit, used, stat = (name.read_text(encoding="utf-8").split() for name in names)
    if limit[0] == "max":
        return None
    cached = dict(zip(stat[::2], stat[1::2], strict=False)).get("inactive_file", "0")
    return int(limit[0]) - int(used[0]) + int(cached)
