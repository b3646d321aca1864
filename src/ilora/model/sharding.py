"""The frozen base in parts: every process keeps a part of each weight, and a layer is whole only while it computes.

torch's FSDP2 (`fully_shard`) splits the weights and gathers them again. When, is decided here. A gathering is an act of
all processes, so all must make the same ones in the same order, while their rows differ in number, length and kind. So
before each way through the layers, a `Pass`, the processes agree whose turn it is: one that wants another pass, or that
waits for the others (`rejoin`), helps with its part of the weights and computes nothing. Methods, evaluation and
generation need not know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from ilora.errors import IloraError, InputError

T = TypeVar("T")
_WAITS = 2**62  # what a process says that wants no pass
_BITS = 20  # of a layer's number
_EVEN = 8  # parts of a weight's first side for each process: from here on uneven parts are small


class Together(nn.Module):
    """Modules whose weights are gathered together. It is never called, so that FSDP2's own hooks on calls rest."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)


@dataclass(frozen=True)
class Pass:
    """A way through the layers from number `first` to below `last`, forward or backward; through none: the ends alone.

    The ends are all weights outside the layers: embeddings, last norm, output head.
    """

    first: int = 0
    last: int = 0
    backward: bool = False

    @property
    def order(self) -> range:
        """The layers' numbers, as they are met."""
        return range(self.last - 1, self.first - 1, -1) if self.backward else range(self.first, self.last)

    @property
    def code(self) -> int:
        """Of the passes that are wanted, the one of the lowest code is taken: backward ones last, so that they meet."""
        return (self.backward << 2 * _BITS) | (self.first << _BITS) | self.last

    @staticmethod
    def of(code: int) -> Pass:
        """Inverse of `code`."""
        most = (1 << _BITS) - 1
        return Pass(code >> _BITS & most, code & most, bool(code >> 2 * _BITS))


@dataclass
class _Way:
    """A forward pass. lowest: the first layer whose output has a gradient, as its backward pass ends there."""

    taken: Pass
    lowest: int | None = None


class _Turn(torch.autograd.Function):
    """Returns its tensors; in the backward pass it waits for this process's turn before any layer is reached."""

    @staticmethod
    def forward(ctx: Any, sharding: Sharding, way: _Way, *states: Tensor) -> tuple[Tensor, ...]:
        """One node for all that leaves the layers."""
        ctx.sharding, ctx.way = sharding, way
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, unchanged."""
        ctx.sharding.take(Pass(ctx.way.lowest, ctx.way.taken.last, backward=True))
        return None, None, *gradients


def layers_of(core: nn.Module, name: str) -> tuple[str, nn.ModuleList]:
    """The decoder's list of layers, and the attribute that holds it. Raises InputError where it is not to be told."""
    decoder: nn.Module = core.get_decoder()  # type: ignore[operator]
    lists = {key: part for key, part in decoder.named_children() if isinstance(part, nn.ModuleList)}
    if not lists:
        raise InputError(
            f"model.shard: not for model '{name}' ({type(core).__name__}): its decoder has no list of layers"
        )
    key = max(lists, key=lambda key: sum(weight.numel() for weight in lists[key].parameters()))
    weights = [weight for layer in lists[key] for weight in layer.parameters()]
    ends = {id(weight) for module in _ends(core, lists[key]) for weight in module.parameters(recurse=False)}
    if len({id(weight) for weight in weights}) < len(weights) or ends & {id(weight) for weight in weights}:
        raise InputError(f"model.shard: not for model '{name}' ({type(core).__name__}): its layers share weights")
    return key, lists[key]


def _ends(core: nn.Module, layers: nn.ModuleList) -> list[nn.Module]:
    inside = set(layers.modules())
    return [part for part in core.modules() if part not in inside and any(True for _ in part.parameters(recurse=False))]


def split(core: nn.Module, mesh: Any, name: str) -> None:
    """Split the weights of a model on the `meta` device over a row of processes.

    name: of the model, for messages. `Sharding` goes on from there, once the weights are read.
    Raises InputError for a model whose layers cannot be gathered one by one.
    """
    _, layers = layers_of(core, name)
    core.requires_grad_(False)  # before the first gathering, which makes the whole weights after the parts
    inner = set(layers.parameters())
    count = mesh.size()
    groups = [Together([layer]) for layer in layers]
    ends = Together(_ends(core, layers))
    fully_shard(ends, mesh=mesh, ignored_params=inner, shard_placement_fn=partial(_placement, count))
    for group in groups:
        fully_shard(group, mesh=mesh, shard_placement_fn=partial(_placement, count))
    if mesh.device_type == "cpu":
        for group in (ends, *groups):
            group.set_custom_all_gather(_Broadcasts())  # type: ignore[operator]
    core._ilora_groups = (ends, groups)  # type: ignore[assignment]


class _Broadcasts:
    """FSDP's gathering for gloo, whose own takes 2.6 x as long: each process sends its part to all others."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for the whole weights."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> None:  # noqa: ARG002
        """It waits, whatever it is told. input_tensor: this process's part, a piece of `output_tensor` already."""
        parts = output_tensor.chunk(dist.get_world_size(group))
        for work in [dist.broadcast(one, group=group, group_src=rank, async_op=True) for rank, one in enumerate(parts)]:
            work.wait()


def _placement(count: int, weight: nn.Parameter) -> Shard | None:
    """Along which side a weight is split; None: the first. Eight experts over six processes are no even parts."""
    first = weight.shape[0]
    if first % count == 0 or first >= _EVEN * count:
        return None
    even = [side for side in range(1, weight.dim()) if weight.shape[side] % count == 0]
    return Shard(max(even, key=lambda side: weight.shape[side])) if even else None


def part_of(whole: Tensor, weight: Tensor) -> Tensor:
    """What of a whole tensor belongs to the parts of a weight of the same shape that this process keeps."""
    if not isinstance(weight, DTensor):
        return whole
    sides = [Replicate()] * weight.device_mesh.ndim
    return DTensor.from_local(whole, weight.device_mesh, sides, run_check=False).redistribute(
        placements=weight.placements
    )


def whole_of(weight: Tensor) -> Tensor:
    """A weight, of which every process may keep a part. All of them must ask."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def sharding_of(core: nn.Module) -> Sharding | None:
    """How a model's weights lie in parts; None: it is whole."""
    found: Sharding | None = getattr(core, "_ilora_sharding", None)
    return found


class Sharding:
    """Gathers the weights of a model that was `split`, pass by pass, in step with the other processes.

    mesh: the processes that hold the parts of one model; others may hold copies, in rows of as many.
    """

    def __init__(self, core: Any, mesh: Any, name: str) -> None:
        self.core, self.decoder = core, core.get_decoder()
        self.attribute, layers = layers_of(core, name)
        self.ends, self.layers = core._ilora_groups
        self.number = {id(layer): number for number, layer in enumerate(layers)}
        self.rank, self.count = mesh.get_local_rank(), mesh.size()
        # What they agree on is a number on the CPU: a GPU is not waited for.
        ranks = [list(range(first, first + self.count)) for first in range(0, dist.get_world_size(), self.count)]
        self.group, _ = dist.new_subgroups_by_enumeration(ranks, backend="gloo")  # type: ignore[no-untyped-call]
        self.now, self.place = Pass(), 0
        # Begin to gather a layer while the one before it computes. On a CPU both want the same cores: 2.5 x slower.
        self.ahead = core.device.type != "cpu"
        self.gathered: set[int] = set()
        self.ends_wanted = self.ends_gathered = False
        self.way = _Way(self.now)
        core.get_input_embeddings().register_forward_pre_hook(lambda *_: self.gather_ends())
        self.decoder.register_forward_pre_hook(self._begin_forward)
        self.decoder.register_forward_hook(self._end_forward)
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._before_layer, number))
            layer.register_forward_hook(partial(self._after_layer, number))
        core._ilora_sharding = self

    # -- in step --------------------------------------------------------------------------------------------------

    def take(self, wanted: Pass) -> None:
        """Wait until it is this pass's turn, and help with the others' until then."""
        self._finish()
        while (turn := self._agreed(wanted.code)) != wanted.code:
            self._help(Pass.of(turn))
        self._set_out(wanted)

    def rejoin(self) -> None:
        """Wait for the other processes, help with their passes, and let all whole weights go.

        It must stand before anything else that processes do together; all call it the same number of times.
        """
        self._finish()
        while (turn := self._agreed(_WAITS)) != _WAITS:
            self._help(Pass.of(turn))
        self.now, self.place = Pass(), 0
        if self.ends_gathered:
            self.ends.reshard()
            self.ends_wanted = self.ends_gathered = False

    def gather_ends(self) -> None:
        """Have embeddings and output head whole, until `rejoin`."""
        if not self.ends_gathered:  # which is so in all processes or in none
            self.take(Pass())

    def _agreed(self, code: int) -> int:
        wanted = torch.tensor([code])
        dist.all_reduce(wanted, dist.ReduceOp.MIN, group=self.group)
        return int(wanted)

    def _help(self, turn: Pass) -> None:
        self._set_out(turn)
        self._finish()

    def _set_out(self, turn: Pass) -> None:
        self.now, self.place, self.ends_wanted = turn, 0, True
        self._have_ends()

    def _have_ends(self) -> None:
        if self.ends_wanted and not self.ends_gathered:
            self.ends.unshard()
            self.ends_gathered = True

    def _finish(self) -> None:
        """Make the gatherings that are left of the present pass. One that was given up is finished so, too."""
        self._have_ends()
        while self.place < len(self.now.order):
            self._let_go()
            self._gather_next()
        self._let_go()

    def _gather_next(self) -> None:
        """Have the next layer whole, and begin to gather the one behind it (`ahead`)."""
        order = self.now.order
        self.layers[order[self.place]].unshard()
        self.gathered.add(order[self.place])
        self.place += 1
        if self.ahead and self.place < len(order):
            self.layers[order[self.place]].unshard(async_op=True)

    def _let_go(self) -> None:
        for number in self.gathered:
            self.layers[number].reshard()
        self.gathered.clear()

    # -- a pass of this process -----------------------------------------------------------------------------------

    def _begin_forward(self, *_: Any) -> None:
        numbers = [self.number[id(layer)] for layer in getattr(self.decoder, self.attribute)]
        self.take(Pass(numbers[0], numbers[-1] + 1))
        self.way = _Way(self.now)

    def _before_layer(self, number: int, *_: Any) -> None:
        if not self.now.backward:  # else gradient checkpointing computes a layer again, which is whole
            self._have(number)

    def _after_layer(self, number: int, _: nn.Module, __: Any, output: Any) -> None:
        if self.now.backward:
            return
        self._let_go()
        states = output if isinstance(output, Tensor) else output[0]
        if torch.is_grad_enabled() and states.requires_grad:
            self.way.lowest = number if self.way.lowest is None else min(number, self.way.lowest)
            states.register_hook(lambda _: self._have(number))

    def _end_forward(self, _: nn.Module, __: Any, output: Any) -> None:
        self._let_go()
        if self.way.lowest is None or not torch.is_grad_enabled():
            return
        others = output.get("hidden_states") or ()
        last, *others = _Turn.apply(self, self.way, output.last_hidden_state, *others)  # type: ignore[no-untyped-call]
        output.last_hidden_state = last
        if others:
            output.hidden_states = tuple(others)

    def _have(self, number: int) -> None:
        """Have a layer of the present pass whole, alone; one that was passed over is gathered, as the others do."""
        place = self.now.order.index(number) if number in self.now.order else -1
        if place < self.place - 1 or (place == self.place - 1 and number not in self.gathered):
            raise IloraError(f"model.shard: layer {number} is met out of order ({self.now}); set model.shard: none")
        while self.place <= place:
            self._let_go()
            self._gather_next()

    # -- all weights ----------------------------------------------------------------------------------------------

    def of_whole_weights(self, compute: Callable[[Tensor], T]) -> dict[str, T]:
        """What `compute` makes of every weight, by its name in the model. The processes share the work."""
        self.rejoin()
        named = dict(self.core.named_parameters())
        made: dict[str, T] = {}
        for group in (self.ends, *self.layers):
            parts = {weight for weight in group.parameters() if isinstance(weight, DTensor)}
            names = [name for name, weight in named.items() if weight in parts]
            mine = names[self.rank :: self.count]
            group.unshard()
            made |= {name: compute(self.core.get_parameter(name).detach().clone()) for name in mine}
            group.reshard()
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, made, group=self.group)
        return {name: value for part in found for name, value in part.items()}

    def local_bytes(self) -> int:
        """Bytes of the base's weights that this process keeps. All processes must ask."""
        self.rejoin()
        weights = (weight for group in (self.ends, *self.layers) for weight in group.parameters())
        return sum(weight.to_local().nbytes for weight in weights if isinstance(weight, DTensor))  # others: adapters
