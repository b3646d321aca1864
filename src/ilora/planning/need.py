"""What a step needs on each device, and how long it takes: arithmetic on sizes, with every assumption written down."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import Field

from ilora.planning.shape import Shape
from ilora.section import Section

GB, TERA = 10**9, 10**12
_ADAM = 16  # bytes of a trained value: itself, its gradient, two moments, in float32


class Hardware(Section):
    """What a device and its connections can do; as it stands, one of eight H100 in a machine with InfiniBand."""

    memory: float = Field(80, gt=0, description="GB of a device")
    rate: float = Field(400, gt=0, description="TFLOP/s that matrix products reach on a device (H100: 989 at best)")
    link: float = Field(300, gt=0, description="GB/s into a device from others of its machine (NVLink: 450 at best)")
    network: float = Field(40, gt=0, description="GB/s into a device from other machines (400 Gb/s InfiniBand: 50)")
    reserved: float = Field(2, ge=0, description="GB of a device for libraries, buffers and gaps")


@dataclass(frozen=True)
class Work:
    """What a step computes.

    rows: of a step, replayed ones included, over all devices. micro_batch: rows of a device that are computed at once.
    tokens: of a row, on average. longest: tokens of a row, at most. answer: tokens of an answer, at most.
    checkpointing: whether activations are computed again in the backward pass.
    """

    rows: int
    micro_batch: int
    tokens: float
    longest: int
    answer: int
    checkpointing: bool


@dataclass(frozen=True)
class Layout:
    """How the base lies on the devices. shards: over so many devices each weight is divided; 1: all have all of it."""

    name: str
    devices: int
    nodes: int
    shards: int

    @property
    def all(self) -> int:
        """Devices of all machines."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class Need:
    """Of one layout, for each device; bytes and seconds.

    base: the weights that it keeps. gathered: layers of others that are there for a while. adapter: the trained values,
    their gradients and moments. activations: kept for the backward pass. logits: of the answers' columns.
    traffic: bytes that come in for weights in a step. reduced: bytes of the gradients' sum that come in.
    computing, gathering, reducing: seconds of a step.
    """

    layout: Layout
    base: int
    gathered: int
    adapter: int
    activations: int
    logits: int
    reserved: int
    traffic: int
    reduced: int
    computing: float
    gathering: float
    reducing: float

    @property
    def bytes(self) -> int:
        """All of a device's memory that is in use at once."""
        return self.base + self.gathered + self.adapter + self.activations + self.logits + self.reserved

    @property
    def seconds(self) -> float:
        """Of a step: weights arrive while the layer before is computed, gradients are summed at the end."""
        return max(self.computing, self.gathering) + self.reducing


def layouts(shard: str | None, *, devices: int, nodes: int) -> list[Layout]:
    """The layouts that `model.shard` allows. None: all of them."""
    found = [Layout("none", devices, nodes, 1)]
    if devices * nodes > 1:
        found.append(Layout("full", devices, nodes, devices * nodes))
    if devices > 1 and nodes > 1:
        found.append(Layout("full within a machine", devices, nodes, devices))
    return [one for one in found if shard is None or (one.shards == 1) == (shard == "none")]


def need(shape: Shape, work: Work, layout: Layout, hardware: Hardware) -> Need:
    """The needs of a step in one layout."""
    passes = math.ceil(math.ceil(work.rows / layout.all) / work.micro_batch)
    at_once = min(work.micro_batch, math.ceil(work.rows / layout.all))
    others = 1 - 1 / layout.shards
    traffic = round(2 * passes * shape.bytes * others)  # of forward and backward, of each micro-batch
    reduced = round(2 * 4 * shape.trained * (1 - 1 / layout.all))
    largest = sorted(shape.layers)[-2:]  # one that is computed, one that arrives
    tokens = work.tokens * math.ceil(work.rows / layout.all)
    return Need(
        layout=layout,
        base=math.ceil(shape.bytes / layout.shards),
        gathered=round((shape.root + sum(largest)) * others),
        adapter=_ADAM * shape.trained,
        activations=activation_bytes(shape, at_once * work.longest, checkpointing=work.checkpointing),
        logits=logit_bytes(shape, at_once * work.answer),
        reserved=round(hardware.reserved * GB),
        traffic=traffic,
        reduced=reduced,
        computing=operations(shape, work) * tokens / (hardware.rate * TERA),
        gathering=traffic / _bandwidth(hardware, layout, across=layout.shards > layout.devices),
        reducing=reduced / _bandwidth(hardware, layout, across=layout.nodes > 1),
    )


def activation_bytes(shape: Shape, tokens: int, *, checkpointing: bool) -> int:
    """What the layers keep of so many tokens for the backward pass.

    A frozen matrix keeps nothing of its own, yet what stands at its other end (queries, keys, values, the mixed values;
    gate, up and their product) is kept by attention and activation: for each token as many values as the matrix has,
    over the model's width. A norm keeps its input in float32, an adapter its input. With checkpointing, each layer
    keeps its input, and one layer at a time all of it. Layers below the first adapter keep nothing.
    """
    each = [
        tokens * (shape.element * (matrix // shape.hidden + inputs) + 4 * norms)
        for matrix, norms, inputs in zip(shape.matrices, shape.norms, shape.inputs, strict=True)
    ][shape.first :]
    if checkpointing:
        return tokens * shape.element * shape.hidden * len(each) + max(each, default=0)
    return sum(each)


def logit_bytes(shape: Shape, columns: int) -> int:
    """Logits of so many columns, their copy in float32, and the gradients of both."""
    return columns * shape.vocabulary * 2 * (shape.element + 4)


def operations(shape: Shape, work: Work) -> float:
    """Floating-point operations of a token: products with frozen weights forward and back to their inputs, attention
    within the row (half of it, as it is causal), the adapter with its gradients, the head where there is an answer.
    """
    above = sum(shape.matrices[shape.first :])
    again = 1 if work.checkpointing else 0
    attention = 2 * work.tokens * shape.heads
    layers, upper = len(shape.matrices), len(shape.matrices) - shape.first
    head = 4 * shape.hidden * shape.vocabulary * work.answer / max(work.tokens, 1)
    return (
        2 * sum(shape.matrices) + 2 * above * (1 + again)
        + attention * (layers + upper * (2 + again)) + 2 * shape.trained * (3 + again) + head
    )  # fmt: skip


def _bandwidth(hardware: Hardware, layout: Layout, *, across: bool) -> float:
    """Bytes a second into a device. Across machines, all devices of one share their connections."""
    inside = hardware.link * GB
    return min(inside, hardware.network * GB * layout.devices) if across else inside
