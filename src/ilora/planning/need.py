"""What a step needs on each device, and how long it takes: arithmetic on sizes, with every assumption written down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from pydantic import Field

from ilora.model.memory import ADAM, Device, Part, kept_bytes, momentary_bytes, rows_that_fit
from ilora.model.operations import operations
from ilora.planning.shape import Shape
from ilora.section import Section

GB, TERA = 10**9, 10**12


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

    rows: of a step, replayed ones included, over all devices. micro_batch: rows of a device that are computed at once;
        None: as many as fit.
    tokens: of a row, on average. longest: tokens of a row, at most. answer: tokens of an answer, at most.
    checkpointing: whether activations are computed again in the backward pass; None: where not even one row fits else.
    """

    rows: int
    micro_batch: int | None
    tokens: float
    longest: int
    answer: int
    checkpointing: bool | None


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

    base: the weights that it keeps. gathered: whole weights that are there for a while, beside the parts that it keeps.
    adapter: the trained values, their gradients and moments. activations: kept for the backward pass. momentary: beside
    them, for a while.
    traffic: bytes that come in for weights in a step. reduced: bytes of the gradients' sum that come in.
    computing, gathering, reducing: seconds of a step.
    micro_batch: rows that are computed at once. checkpointing: whether activations are computed again.
    """

    layout: Layout
    micro_batch: int
    checkpointing: bool
    base: int
    gathered: int
    adapter: int
    activations: int
    momentary: int
    reserved: int
    traffic: int
    reduced: int
    computing: float
    gathering: float
    reducing: float

    @property
    def bytes(self) -> int:
        """All of a device's memory that is in use at once."""
        return self.base + self.gathered + self.adapter + self.activations + self.momentary + self.reserved

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
    mine = math.ceil(work.rows / layout.all)
    others = 1 - 1 / layout.shards
    reduced = round(2 * 4 * shape.trained * (1 - 1 / layout.all))
    largest = sorted(shape.layers)[-2:]  # one that is computed, one that arrives
    base = math.ceil(shape.bytes / layout.shards)
    gathered = shape.root + sum(largest) if layout.shards > 1 else 0
    adapter, reserved = ADAM * shape.trained, round(hardware.reserved * GB)
    room = hardware.memory * GB - base - gathered - adapter - reserved
    at_once, again = _division(shape, work, room, mine)
    passes, part = math.ceil(mine / at_once), Part.like(at_once, work.longest, work.answer)
    traffic = round(_arriving(shape, passes) * others)
    each = operations(shape.sizes, trained=shape.trained, tokens=work.tokens, answer=work.answer, checkpointing=again)
    return Need(
        layout=layout,
        micro_batch=at_once,
        checkpointing=again,
        base=base,
        gathered=gathered,
        adapter=adapter,
        activations=kept_bytes(shape.sizes, part, Device(), checkpointing=again),
        momentary=momentary_bytes(shape.sizes, part, Device(), checkpointing=again),
        reserved=reserved,
        traffic=traffic,
        reduced=reduced,
        computing=each * work.tokens * mine / (hardware.rate * TERA),
        gathering=traffic / _bandwidth(hardware, layout, across=layout.shards > layout.devices),
        reducing=reduced / _bandwidth(hardware, layout, across=layout.nodes > 1),
    )


def _arriving(shape: Shape, passes: int) -> int:
    """Bytes of the weights that are gathered in a step: the layers in each pass, those below the adapter not backward;
    what is outside the layers once, since it stays to the end of the step.
    """
    return shape.root + passes * (sum(shape.layers) + sum(shape.layers[shape.sizes.first :]))


def _division(shape: Shape, work: Work, room: float, mine: int) -> tuple[int, bool]:
    """Of a device's `mine` rows, those computed at once, and whether activations are computed again: as in a run.

    room: bytes that weights, adapter and optimizer leave.
    """
    find = partial(rows_that_fit, shape.sizes, Device(), room, length=work.longest, answer=work.answer)
    again = work.checkpointing if work.checkpointing is not None else find(checkpointing=False) == 0
    most = find(checkpointing=again) if work.micro_batch is None else work.micro_batch
    return max(1, min(most, mine)), again


def _bandwidth(hardware: Hardware, layout: Layout, *, across: bool) -> float:
    """Bytes a second into a device. Across machines, all devices of one share their connections."""
    inside = hardware.link * GB
    return min(inside, hardware.network * GB * layout.devices) if across else inside
