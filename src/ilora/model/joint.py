"""One copy of a frozen decoder for the passes of several runs: their rows stand in one row, each meets its adapters."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, count
from typing import Any

import torch
from torch import Tensor, nn

from ilora.kernels.joint import JOINT, JointLinear, Piece, Segments
from ilora.kernels.packing import Packing


def sharing_copy(model: nn.Module) -> Any:
    """A copy with modules of its own around the very same weights."""
    tensors = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


class Noise:
    """The random numbers of one run, as torch draws them while it is that run's turn."""

    def __init__(self) -> None:
        self.state = _states()

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Inside the block, random numbers are this run's; outside, they are as before."""
        before = _states()
        _restore(self.state)
        try:
            yield
        finally:
            self.state = _states()
            _restore(before)


def _generators() -> list[torch.Generator]:
    """The CPU's, and those of the GPUs once they are in use."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.default_generator, *(torch.cuda.default_generators if in_use else ())]


def _states() -> list[Tensor]:
    return [generator.get_state() for generator in _generators()]


def _restore(states: Sequence[Tensor]) -> None:
    # A GPU that came into use since keeps what it has.
    for generator, state in zip(_generators(), states, strict=False):
        generator.set_state(state)


@dataclass(frozen=True)
class Factor:
    """An adapter in one layer. dropout: the share of its inputs that this pass drops."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    dropout: float = 0.0


@dataclass(frozen=True, eq=False)
class Adapters:
    """The adapters of a run that are at work in a pass: by the layer's name in the core, those whose sum it takes."""

    layers: Mapping[str, Sequence[Factor]]

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of each, layer by layer."""
        return [factor for own in self.layers.values() for one in own for factor in (one.a, one.b)]

    @cached_property
    def form(self) -> tuple[Any, ...]:
        """Their shapes and scalings."""
        return tuple((one.a.shape, one.b.shape, one.scaling) for own in self.layers.values() for one in own)


@dataclass
class Part:
    """What one run gives to a joint pass.

    ids, positions: (1, tokens). packing: how its rows stand in them. mask: for attention, row by row.
    adapters: at work. padded: whether the run's own pass would be over padded rows. noise: of the run.
    """

    ids: Tensor
    positions: Tensor
    packing: Packing
    mask: Tensor
    adapters: Adapters
    padded: bool
    noise: Noise

    @property
    def tokens(self) -> int:
        """How many it has."""
        return self.ids.shape[1]

    @property
    def learning(self) -> list[nn.Parameter]:
        """The parameters that want a gradient."""
        return [parameter for parameter in self.adapters.parameters if parameter.requires_grad]

    def drop(self, share: float) -> Callable[[Tensor], Tensor] | None:
        """Dropout with the masks that the run's own pass would draw."""
        if not share:
            return None

        def dropped(x: Tensor) -> Tensor:
            with self.noise.drawn():
                if not self.padded:
                    return nn.functional.dropout(x, share)
                places = x.new_ones(self.packing.rows, self.packing.length, x.shape[-1])
                return x * self.packing.pack(nn.functional.dropout(places, share))

        return dropped


@dataclass
class Pass:
    """A joint pass. outputs: (1, tokens, features) of all parts: the last layer's, and where asked for all layers'.

    serial: counts all passes.
    """

    parts: Sequence[Part]
    spans: list[tuple[int, int]]
    outputs: list[Tensor]
    serial: int = field(default_factory=count().__next__)

    def of(self, number: int) -> list[Tensor]:
        """What a part gets of it, without a graph."""
        start, _ = self.spans[number]
        return [output.detach()[:, start : start + self.parts[number].tokens] for output in self.outputs]

    def backward(self, upstream: Mapping[int, Sequence[Tensor | None]]) -> dict[int, list[tuple[nn.Parameter, Tensor]]]:
        """Each part's gradients, given those of what it got. Parts that ask for none are left out."""
        pairs = zip(self.outputs, self.joined(upstream), strict=True)
        both = [(output, gradient) for output, gradient in pairs if output.requires_grad and gradient is not None]
        live, given = [output for output, _ in both], [gradient for _, gradient in both]
        wanted = [part.learning for part in self.parts]
        flat = [parameter for own in wanted for parameter in own]
        gradients = iter(torch.autograd.grad(live, flat, given, allow_unused=True) if live else [None] * len(flat))
        found = [[(parameter, next(gradients)) for parameter in own] for own in wanted]
        return {
            number: [(parameter, gradient) for parameter, gradient in found[number] if gradient is not None]
            for number in upstream
        }

    def joined(self, upstream: Mapping[int, Sequence[Tensor | None]]) -> list[Tensor | None]:
        """The gradient of each joint output, zero for parts that give none and in what fills up; None: no part does."""
        found = []
        for place, output in enumerate(self.outputs):
            given = [upstream[number][place] if number in upstream else None for number in range(len(self.parts))]
            there = any(gradient is not None for gradient in given)
            found.append(torch.cat(list(self._pieces(given, output)), dim=1) if there else None)
        return found

    def _pieces(self, gradients: Sequence[Tensor | None], like: Tensor) -> Iterator[Tensor]:
        for gradient, (start, end) in zip(gradients, self.spans, strict=True):
            if gradient is not None:
                yield gradient
            missing = end - start - (0 if gradient is None else gradient.shape[1])
            if missing:
                yield like.new_zeros(1, missing, like.shape[2])


class JointDecoder:
    """The decoder for runs whose adapters sit in the same layers.

    core: a copy of the model of its own, which is changed. layers: names in the core.
    """

    def __init__(self, core: Any, layers: Sequence[str]) -> None:
        core.set_attn_implementation(JOINT)
        self.core, self.decoder, self.joint = core, core.get_decoder(), dict[str, JointLinear]()
        for name in layers:
            parent, _, leaf = name.rpartition(".")
            self.joint[name] = JointLinear(core.get_submodule(name))
            setattr(core.get_submodule(parent), leaf, self.joint[name])

    def compute(self, parts: Sequence[Part], *, hidden: bool) -> Pass:
        """hidden: return all layers' outputs, too."""
        noises = [part.noise.state for part in parts]
        try:
            return self._one_by_one(parts, hidden)
        except BaseException:
            for part, state in zip(parts, noises, strict=True):
                part.noise.state = state  # what was drawn is drawn again
            raise

    def forget(self, gone: Container[Adapters] | None = None) -> None:
        """Give memory back that is held for passes to come. gone: for those with one of these; None: for all."""

    def _one_by_one(self, parts: Sequence[Part], hidden: bool) -> Pass:
        ends = tuple(accumulate(part.tokens for part in parts))
        segments = Segments(ends, tuple(part.packing for part in parts), tuple(part.mask for part in parts))
        for name, layer in self.joint.items():
            layer.spans = segments.spans
            layer.pieces = [
                [Piece(one.a, one.b, one.scaling, part.drop(one.dropout)) for one in part.adapters.layers[name]]
                for part in parts
            ]
        ids, positions = (torch.cat(found, dim=1) for found in zip(*((p.ids, p.positions) for p in parts), strict=True))
        return Pass(parts, segments.spans, self.outputs(ids, positions, segments, hidden))

    def outputs(self, ids: Tensor, positions: Tensor, segments: Segments, hidden: bool) -> list[Tensor]:
        """Those of a joint pass."""
        mask = torch.zeros(1, 1, 1, 1, dtype=self.core.dtype, device=ids.device)
        output = self.decoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False,
            output_hidden_states=hidden, packing=segments,
        )  # fmt: skip
        return [output.last_hidden_state, *(output.hidden_states or ())]
