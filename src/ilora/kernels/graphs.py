"""The decoder's forward and backward pass as CUDA graphs: one launch instead of thousands.

A small model's step on a GPU waits for Python: its kernels are shorter than what it takes to launch them. So the pass
of each shape is recorded once and replayed. Shapes are few because `packing.fill` rounds rows and lengths up.
All recordings share one pool of memory, which is safe as long as no pass is in flight (its backward pass still to
come) while another is replayed; then that other one is computed without a graph.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import BaseModelOutputWithPast

from ilora.kernels.packing import Packing

Compute = Callable[[], list[Tensor]]


class Recorder(Protocol):
    """Records computations on tensors that stay where they are."""

    def warm_up(self, compute: Callable[[], object]) -> None:
        """Run it once, so that what is made at its first call exists."""

    def record(self, compute: Compute) -> tuple[Callable[[], None], list[Tensor]]:
        """What computes it again, and the tensors that then hold the results."""


class CudaRecorder:
    """Records as CUDA graphs with one pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, compute: Callable[[], object]) -> None:
        """On a stream of its own, as recording asks for."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, compute: Compute) -> tuple[Callable[[], None], list[Tensor]]:
        """Computes nothing yet."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            results = compute()
        return graph.replay, results


class Recording:
    """One shape of the pass. `inputs` are where it reads from, by name; `outputs` is where its results lie."""

    def __init__(
        self,
        run: Callable[[dict[str, Tensor]], list[Tensor]],
        inputs: dict[str, Tensor],
        parameters: Sequence[nn.Parameter],
        recorder: Recorder,
    ) -> None:
        """run: the pass as a function of its inputs and of parameters, which stay where they are."""
        self.inputs = {
            name: tensor.detach().clone().requires_grad_(tensor.requires_grad) for name, tensor in inputs.items()
        }
        self._run = run
        self.wanted: list[Tensor] = []  # what gradients are wanted of
        if torch.is_grad_enabled():
            self.wanted = [tensor for tensor in self.inputs.values() if tensor.requires_grad]
            self.wanted += [parameter for parameter in parameters if parameter.requires_grad]
        recorder.warm_up(self._warm_up)
        self._replay, outputs = recorder.record(self._forward)
        self.outputs = [output.detach() for output in outputs]
        self._has_gradient = [output.requires_grad for output in outputs]  # the embedding's has none
        if self.wanted:
            self._gradients = [torch.zeros_like(output) for output in self.outputs]
            self._replay_back, (self._flat,) = recorder.record(self._backward)
        del self._live

    def _warm_up(self) -> None:
        live = [output for output in self._forward() if output.requires_grad]
        if live:
            torch.autograd.grad(live, self.wanted, [torch.zeros_like(output) for output in live], allow_unused=True)

    def _forward(self) -> list[Tensor]:
        with torch.set_grad_enabled(bool(self.wanted)):
            self._live = self._run(self.inputs)
        return self._live

    def _backward(self) -> list[Tensor]:
        """All gradients in one tensor of float32: one copy hands them over."""
        live = [output for output, has in zip(self._live, self._has_gradient, strict=True) if has]
        given = [gradient for gradient, has in zip(self._gradients, self._has_gradient, strict=True) if has]
        parts = zip(torch.autograd.grad(live, self.wanted, given, allow_unused=True), self.wanted, strict=True)
        return [torch.cat([(torch.zeros_like(of) if part is None else part).float().flatten() for part, of in parts])]

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Compute with these inputs; the results are copies."""
        for name, tensor in inputs.items():
            self.inputs[name].detach().copy_(tensor, non_blocking=True)
        self._replay()
        return [output.clone() for output in self.outputs]

    def backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """The gradient of each of `wanted`, given those of the outputs of the last `forward`."""
        return unflattened(self.flat_gradient(gradients), self.wanted)

    def flat_gradient(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The same as one vector of float32."""
        for place, gradient in zip(self._gradients, gradients, strict=True):
            place.zero_() if gradient is None else place.copy_(gradient)
        self._replay_back()
        return self._flat.clone()


def unflattened(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector as tensors of these shapes and dtypes."""
    parts = zip(_unflatten_dense_tensors(flat, like), like, strict=True)  # type: ignore[no-untyped-call]
    return [part if part.dtype is tensor.dtype else part.to(tensor.dtype) for part, tensor in parts]


class _Flight:
    """A pass whose backward pass is still to come: alive as long as the results are."""

    over = False


class _Replay(torch.autograd.Function):
    """A recorded pass as one node. `wanted` are the live tensors for `recording.wanted`."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, inputs: dict[str, Tensor], flight: _Flight, *wanted: Tensor) -> Any:
        """Returns the outputs."""
        del wanted  # arguments so that autograd asks for their gradients
        ctx.recording, ctx.flight = recording, flight
        ctx.set_materialize_grads(False)
        return tuple(recording.forward(inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Raises RuntimeError the second time: what the forward pass kept is gone."""
        if ctx.flight.over:
            raise RuntimeError("the backward pass of a recorded forward pass runs once")
        ctx.flight.over = True
        return (None, None, None, *ctx.recording.backward(gradients))


@dataclass
class DecoderGraphs:
    """Takes the place of a decoder's `forward` for packed rows without a cache; the rest goes the old way.

    forward: the decoder's own.
    state: of the weights: whatever it depends on that is no argument (the active adapters, dropout).
    parameters: that may want a gradient.
    limit: recordings, at most.
    """

    decoder: nn.Module
    recorder: Recorder
    state: Callable[[], Hashable]
    parameters: Callable[[], Sequence[nn.Parameter]]
    limit: int = 32

    def __post_init__(self) -> None:
        self._forward: Callable[..., Any] = self.decoder.forward
        self.recordings: dict[Hashable, Recording] = {}
        self._met: Counter[Hashable] = Counter()
        self._in_flight: weakref.ref[_Flight] | None = None
        self.decoder.forward = self

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        """What the decoder returns."""
        if args or arguments.get("packing") is None or arguments.get("use_cache"):
            return self._forward(*args, **arguments)
        before = None if self._in_flight is None else self._in_flight()
        if before is not None and not before.over:
            return self._forward(**arguments)
        packing: Packing = arguments.pop("packing")
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
        inputs = tensors | {f"packing.{name}": value for name, value in packing.tensors.items()}
        parameters = self.parameters()
        recording = self._recording(inputs, rest, packing, parameters)
        if recording is None:
            return self._forward(**arguments, packing=packing)
        flight = _Flight()
        if recording.wanted:
            live = [tensor for tensor in inputs.values() if tensor.requires_grad]
            live += [parameter for parameter in parameters if parameter.requires_grad]
            outputs = _Replay.apply(recording, inputs, flight, *live)  # type: ignore[no-untyped-call]
            self._in_flight = weakref.ref(flight)
        else:
            outputs = recording.forward(inputs)
        last, *hidden = outputs
        return BaseModelOutputWithPast(last_hidden_state=last, hidden_states=tuple(hidden) or None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block, the decoder's own `forward` is at work: hooks on its layers are called."""
        self.decoder.forward = self._forward
        try:
            yield
        finally:
            self.decoder.forward = self

    def remove(self) -> None:
        """Give the decoder its own `forward` back."""
        self.decoder.forward = self._forward
        self.recordings.clear()

    def _recording(
        self, inputs: dict[str, Tensor], rest: dict[str, Any], packing: Packing, parameters: Sequence[nn.Parameter]
    ) -> Recording | None:
        """That of this shape: made the second time that the shape is met."""
        key = (
            self.state(),
            torch.is_grad_enabled(),
            tuple((name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in inputs.items()),
            repr(sorted(rest.items())),
            (packing.rows, packing.length),
            tuple(map(Tensor.data_ptr, parameters)),
            tuple(map(attrgetter("requires_grad"), parameters)),
        )
        self._met[key] += 1
        if key not in self.recordings and self._met[key] > 1:
            if len(self.recordings) >= self.limit:  # the one that was used least lately, of an earlier task perhaps
                self.recordings.pop(next(iter(self.recordings)))
            device = next(iter(inputs.values())).device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self.recordings[key] = self._record(inputs, rest, packing, parameters)
        elif key in self.recordings:
            self.recordings[key] = self.recordings.pop(key)
        return self.recordings.get(key)

    def _record(
        self, inputs: dict[str, Tensor], rest: dict[str, Any], packing: Packing, parameters: Sequence[nn.Parameter]
    ) -> Recording:
        # Leaves of their own on the same memory: those of the caller may belong to a graph on another stream.
        leaves = [nn.Parameter(parameter.detach(), parameter.requires_grad) for parameter in parameters]
        places = self._places(parameters)

        def run(given: dict[str, Tensor]) -> list[Tensor]:
            own = {name: tensor for name, tensor in given.items() if not name.startswith("packing.")}
            names = iter(packing.tensors)
            placed = packing.with_tensors(lambda _: given[f"packing.{next(names)}"])
            with _filled(places, leaves):
                result = self._forward(**own, **rest, packing=placed)
            return [result.last_hidden_state, *(result.hidden_states or ())]

        return Recording(run, inputs, leaves, self.recorder)

    def _places(self, parameters: Sequence[nn.Parameter]) -> list[tuple[dict[str, Any], str]]:
        """Where in the decoder's modules each parameter is."""
        found = {
            id(parameter): (module._parameters, name)
            for module in self.decoder.modules()
            for name, parameter in module._parameters.items()
        }
        return [found[id(parameter)] for parameter in parameters]


@contextmanager
def _filled(places: Sequence[tuple[dict[str, Any], str]], parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside the block, these parameters are at these places."""
    before = [table[name] for table, name in places]
    for (table, name), parameter in zip(places, parameters, strict=True):
        table[name] = parameter
    try:
        yield
    finally:
        for (table, name), parameter in zip(places, before, strict=True):
            table[name] = parameter
