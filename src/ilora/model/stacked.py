"""Joint passes whose parts have as many tokens each, so that few shapes occur: recorded, and replayed in one launch."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ilora.data.examples import sent
from ilora.kernels.graphs import Recorder, Recording, unflattened
from ilora.kernels.joint import Segments
from ilora.kernels.packing import round_up
from ilora.model.joint import Adapters, JointDecoder, Part, Pass

Key = tuple[Any, ...]  # the adapters of all parts, and all else that a recording depends on
_RECORDINGS = 32  # at most
_POOLS = 3  # passes at a time whose backward pass is to come: of runs that differ in size or form


@dataclass
class RecordedPass(Pass):
    """A joint pass that was replayed; its backward pass is to be replayed, once."""

    recording: Recording | None = None
    over: bool = False

    def backward(self, upstream: Mapping[int, Sequence[Tensor | None]]) -> dict[int, list[tuple[nn.Parameter, Tensor]]]:
        """As `Pass.backward`."""
        assert self.recording is not None
        self.over = True
        wanted = [part.learning for part in self.parts]
        flat = self.recording.flat_gradient(self.joined(upstream))
        chunks = torch.split(flat, [sum(parameter.numel() for parameter in own) for own in wanted])
        return {
            number: list(zip(wanted[number], unflattened(chunks[number], wanted[number]), strict=True))
            for number in upstream
        }


@dataclass
class _Pool:
    """Recordings with memory in common. in_flight: the pass whose backward pass may be still to come."""

    recorder: Recorder
    in_flight: weakref.ref[RecordedPass] | None = None

    @property
    def free(self) -> bool:
        """Whether a recording may be replayed."""
        before = None if self.in_flight is None else self.in_flight()
        return before is None or before.over


@dataclass
class _Inputs:
    """What a recording reads from, and what else decides on its form."""

    ids: Tensor
    positions: Tensor
    segments: Segments
    hidden: bool

    @property
    def tensors(self) -> dict[str, Tensor]:
        assert self.segments.starts is not None
        return {"ids": self.ids, "positions": self.positions, "starts": self.segments.starts}


class StackedDecoder(JointDecoder):
    """A joint decoder that records its passes, each the second time that its form is met.

    The recordings of a pool share its memory: while the backward pass of one is to come, the next pool serves.
    recorder: makes one, with a pool of memory of its own.
    """

    def __init__(self, core: Any, layers: Sequence[str], recorder: Callable[[], Recorder]) -> None:
        super().__init__(core, layers)
        self.pools = [_Pool(recorder()) for _ in range(_POOLS)]
        self.recordings: dict[Key, Recording] = {}
        self._met: Counter[Key] = Counter()

    def forget(self, gone: Container[Adapters] | None = None) -> None:
        """As `JointDecoder.forget`."""
        for key in [key for key in self._met if gone is None or any(one in gone for one in key[0])]:
            self._met.pop(key)
            self.recordings.pop(key, None)

    def compute(self, parts: Sequence[Part], *, hidden: bool) -> Pass:
        """As `JointDecoder.compute`. Every part has one adapter, all of the same form, without dropout."""
        size, segments = filled(parts)
        none = parts[0].ids.new_zeros(1, size)
        ids = torch.cat([piece for part in parts for piece in (part.ids, none[:, part.tokens :])], dim=1)
        positions = torch.cat([piece for part in parts for piece in (part.positions, none[:, part.tokens :])], dim=1)
        inputs = _Inputs(ids, positions, segments, hidden)
        number = next((number for number, pool in enumerate(self.pools) if pool.free), None)
        recording = None if number is None else self._recording(parts, inputs, number)
        if number is None or recording is None:
            return Pass(parts, segments.spans, self._run(parts, [part.adapters.parameters for part in parts], inputs))
        made = RecordedPass(parts, segments.spans, recording.forward(inputs.tensors), recording=recording)
        self.pools[number].in_flight = weakref.ref(made) if recording.wanted else None
        return made

    def _recording(self, parts: Sequence[Part], inputs: _Inputs, pool: int) -> Recording | None:
        segments = inputs.segments
        learning = tuple(len(part.learning) for part in parts)
        kind = learning, inputs.hidden, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), pool
        key = (tuple(part.adapters for part in parts), segments.ends, segments.rows, segments.length, *kind)
        self._met[key] += 1
        if key in self.recordings:
            self.recordings[key] = self.recordings.pop(key)  # used last
        elif self._met[key] > 1:
            if len(self.recordings) >= _RECORDINGS:
                self.recordings.pop(next(iter(self.recordings)))
            with torch.random.fork_rng([inputs.ids.device] if inputs.ids.device.type == "cuda" else []):
                self.recordings[key] = self._record(parts, inputs, self.pools[pool].recorder)
        return self.recordings.get(key)

    def _record(self, parts: Sequence[Part], inputs: _Inputs, recorder: Recorder) -> Recording:
        # Leaves of their own on the same memory: those of the runs may belong to a graph on another stream.
        found = [part.adapters.parameters for part in parts]
        leaves = [[nn.Parameter(one.detach(), one.requires_grad) for one in own] for own in found]

        def run(given: dict[str, Tensor]) -> list[Tensor]:
            segments = inputs.segments.with_tensors(lambda _: given["starts"])
            return self._run(parts, leaves, _Inputs(given["ids"], given["positions"], segments, inputs.hidden))

        return Recording(run, inputs.tensors, [leaf for own in leaves for leaf in own], recorder)

    def _run(
        self, parts: Sequence[Part], parameters: Sequence[Sequence[nn.Parameter]], inputs: _Inputs
    ) -> list[Tensor]:
        """The pass with the adapters of all parts as one tensor for each factor of a layer: one copy for all of them.

        parameters: of each part, A and B of its layers in turn.
        """
        factors = list(zip(*parameters, strict=True))
        flat = torch.cat([one.flatten() for factor in factors for one in factor]).to(self.core.dtype)
        sizes = [len(factor) * factor[0].numel() for factor in factors]
        pairs = zip(torch.split(flat, sizes), factors, strict=True)
        stacks = iter([stack.view(len(factor), *factor[0].shape) for stack, factor in pairs])
        for layer, own in zip(self.joint.values(), parts[0].adapters.layers.values(), strict=True):
            layer.stacked = (next(stacks), next(stacks), own[0].scaling)
        found = self.outputs(inputs.ids, inputs.positions, inputs.segments, inputs.hidden)
        for layer in self.joint.values():
            layer.stacked = None  # lets their memory go with the pass
        return found


def filled(parts: Sequence[Part]) -> tuple[int, Segments]:
    """How many tokens each part is filled up to, and where the rows of all parts then begin."""
    size = round_up(max(part.tokens for part in parts), parts=4)  # few shapes, as in `packing.fill`
    length = round_up(max(part.packing.length for part in parts), parts=1)
    rows = ceil(max(len(part.packing.sizes) for part in parts) / 8) * 8 + ceil(size / length)
    lengths = []
    for part in parts:
        missing = size - part.tokens
        more = [length] * (missing // length) + ([missing % length] if missing % length else [])
        own = [*part.packing.sizes, *more]
        lengths += own + [0] * (rows - len(own))
    starts = sent(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), parts[0].ids.device)
    ends = tuple(size * number for number in range(1, len(parts) + 1))
    return size, Segments(ends, starts=starts, rows=rows * len(parts), length=length)
