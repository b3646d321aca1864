"""Runs over copies of one base model whose passes are computed together (`ilora sweep --together`).

Each run is a thread (`turns.py`), of which one works at a time. Where its pass would go through the decoder, it rests.
When all runs rest, the passes that are alike go through one joint decoder (`joint.py`), and each run goes on with its
part. Backward passes meet in the same way, once no run waits for a forward pass. A run's own graph begins anew at what
it got from the joint pass, so no thread of autograd ever waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from ilora.kernels.attention import WATCHED, flash_serves
from ilora.kernels.graphs import CudaRecorder
from ilora.kernels.packing import Packing
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.gradients import TooManyTogether
from ilora.model.joint import Adapters, Factor, JointDecoder, Part, Pass, sharing_copy
from ilora.model.load import GivenModel
from ilora.model.stacked import StackedDecoder
from ilora.model.turns import Player

Form = tuple[Any, ...]  # what must be the same in passes that are computed together
Gradients = list[tuple[nn.Parameter, Tensor]]


@dataclass
class Forward:
    """A pass that a run waits for. The answer: `number` of `taken`; None: it is to be computed alone."""

    part: Part
    hidden: bool
    grad: bool
    inference: bool
    form: Form
    taken: Pass | None = None
    number: int = 0
    error: BaseException | None = None


@dataclass
class Backward:
    """Gradients that a run waits for: those of each pass's part, given those of what the part got."""

    upstream: list[tuple[Forward, list[Tensor | None]]]
    gradients: Gradients = field(default_factory=list)
    error: BaseException | None = None


@dataclass
class Reading:
    """Figures that a run is about to wait for: by then, all runs have launched their step's work."""

    error: BaseException | None = None


Request = Forward | Backward | Reading


class Meeting:
    """Where the runs over one base model meet.

    base: the model without any adapter. recorded: record the passes on a GPU.
    """

    def __init__(self, base: GivenModel, *, recorded: bool = True) -> None:
        self.base, self.most = base, 0  # most: tokens of a joint pass; 0: as many as there are
        self.recorder = CudaRecorder if recorded and flash_serves(base.model.device, base.model.dtype) else None
        self.requests: list[tuple[Seat, Request]] = []
        self.seats: list[Seat] = []
        self.decoders: dict[tuple[str, ...], JointDecoder] = {}

    def serve(self) -> None:
        """Compute what the runs wait for, all of which rest: forward passes; if there are none, backward ones."""
        forward = [one for _, one in self.requests if isinstance(one, Forward)]
        backward = [one for _, one in self.requests if isinstance(one, Backward)]
        # Those without a gradient first: then more of the others meet, and none of these is in the way of a replay.
        forward = [one for one in forward if not one.grad] or forward
        for group in self._groups(forward):
            self._compute(group)
        if not forward:
            self._go_back(backward)
        served = {id(one) for one in forward or backward or [one for _, one in self.requests]}
        for seat, one in self.requests:
            seat.player.ready = id(one) in served
        self.requests = [pair for pair in self.requests if id(pair[1]) not in served]

    def left(self, player: Player) -> None:
        """A run is over: what is kept for its passes goes."""
        gone = {found for seat in self.seats if seat.player is player for found in seat.known.values()}
        self.seats = [seat for seat in self.seats if seat.player is not player]
        for decoder in self.decoders.values():
            decoder.forget(gone)

    def _groups(self, requests: Sequence[Forward]) -> list[list[Forward]]:
        """Passes that are alike, in the order of the runs. Where they are filled up, to twice their size at most."""
        groups: list[list[Forward]] = []
        for one in requests:
            for group in groups:
                sizes = [other.part.tokens for other in (*group, one)]
                whole = max(sizes) * len(sizes) if self.recorder is not None else sum(sizes)
                even = self.recorder is None or max(sizes) <= 2 * min(sizes)
                if group[0].form == one.form and even and not 0 < self.most < whole:
                    group.append(one)
                    break
            else:
                groups.append([one])
        return groups

    def _compute(self, group: Sequence[Forward]) -> None:
        first, parts, full = group[0], [one.part for one in group], False
        try:
            with torch.inference_mode(first.inference), torch.set_grad_enabled(first.grad):
                taken = self._decoder(tuple(first.part.adapters.layers)).compute(parts, hidden=first.hidden)
            for number, one in enumerate(group):
                one.taken, one.number = taken, number
        except torch.OutOfMemoryError:
            full = True  # each computes this one alone
        except Exception as error:  # whatever it is, it is these runs' alone
            for one in group:
                one.error = error
        if full:  # outside of `except`, which would hold the failed pass's tensors
            self._smaller(parts)

    def _decoder(self, layers: tuple[str, ...]) -> JointDecoder:
        if layers not in self.decoders:
            core = sharing_copy(self.base.model)
            recorder = self.recorder
            self.decoders[layers] = StackedDecoder(core, layers, recorder) if recorder else JointDecoder(core, layers)
        return self.decoders[layers]

    def _go_back(self, requests: Sequence[Backward]) -> None:
        """The passes in the order that is reverse to theirs."""
        wanted: dict[int, tuple[Pass, dict[int, list[Tensor | None]], dict[int, Backward]]] = {}
        for request in requests:
            for one, upstream in request.upstream:
                assert one.taken is not None
                _, given, askers = wanted.setdefault(id(one.taken), (one.taken, {}, {}))
                given[one.number], askers[one.number] = upstream, request
        for taken, given, askers in sorted(wanted.values(), key=lambda item: -item[0].serial):
            full = False
            try:
                for number, gradients in taken.backward(given).items():
                    askers[number].gradients += gradients
            except Exception as error:
                full = isinstance(error, torch.OutOfMemoryError)
                for request in askers.values():
                    request.error = TooManyTogether(str(error)) if full and len(taken.parts) > 1 else error
            if full:
                self._smaller(taken.parts)

    def _smaller(self, parts: Sequence[Part]) -> None:
        """Memory ended with so many tokens: half of them is the most from now on."""
        self.most = sum(part.tokens for part in parts) // 2
        for decoder in self.decoders.values():
            decoder.forget()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()


class Seat:
    """A run's place at the meeting: stands in for the `forward` of its decoder, and for its `backward`.

    player: the run's thread.
    """

    def __init__(self, meeting: Meeting, engine: Engine, player: Player) -> None:
        self.meeting, self.engine, self.player = meeting, engine, player
        meeting.seats.append(self)
        self._decoder: Any = engine.core.get_decoder()  # type: ignore[operator]
        self._forward, self._decoder.forward = self._decoder.forward, self
        self._layers = decoder_layers(engine)
        self.known: dict[Form, Adapters] = {}
        self._collecting: list[tuple[Forward, list[Tensor]]] | None = None

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        """What the decoder returns."""
        if args or not self._open(arguments):
            return self._forward(*args, **arguments)
        part = self._part(arguments)
        grad = torch.is_grad_enabled() and any(one.requires_grad for one in part.adapters.parameters)
        if grad and self._collecting is None:  # nobody would come for the gradients
            return self._forward(**arguments)
        hidden = bool(arguments.get("output_hidden_states"))
        inference = torch.is_inference_mode_enabled()
        request = Forward(part, hidden, grad, inference, self._form(part, hidden, grad, inference))
        self._ask(request)
        if request.taken is None:
            return self._forward(**arguments)
        found = request.taken.of(request.number)
        if self._collecting is not None and grad:
            found = [tensor.requires_grad_() for tensor in found]
            self._collecting.append((request, found))
        last, *others = (part.packing.spread(tensor) for tensor in found) if part.padded else found
        return BaseModelOutputWithPast(last_hidden_state=last, hidden_states=tuple(others) or None)

    def backward(self, compute: Callable[[], Tensor]) -> Tensor:
        """As `model.gradients.backward`."""

        def direct(loss: Tensor, _: Sequence[Tensor]) -> Gradients:
            loss.backward()  # type: ignore[no-untyped-call]
            return []

        loss, own = self._collected(compute, direct)
        for parameter, gradient in own:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return loss

    def gradients(self, compute: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """As `model.gradients.gradients`."""

        def direct(loss: Tensor, got: Sequence[Tensor]) -> Gradients:
            found = torch.autograd.grad(loss, [*parameters, *got], allow_unused=True)
            for tensor, gradient in zip(got, found[len(parameters) :], strict=True):
                tensor.grad = gradient
            return [(one, gradient) for one, gradient in zip(parameters, found, strict=False) if gradient is not None]

        _, own = self._collected(compute, direct)
        sums: dict[int, Tensor] = {}
        for parameter, gradient in own:
            sums[id(parameter)] = sums[id(parameter)] + gradient if id(parameter) in sums else gradient
        return [sums[id(parameter)] for parameter in parameters]

    def read(self, figures: Tensor) -> list[float]:
        """As `model.gradients.read`."""
        self._ask(Reading())
        numbers: list[float] = figures.tolist()
        return numbers

    def _collected(
        self, compute: Callable[[], Tensor], back: Callable[[Tensor, Sequence[Tensor]], Gradients]
    ) -> tuple[Tensor, Gradients]:
        """The loss, and its gradients by way of joint passes and those that `back` returns."""
        self._collecting = []
        try:
            loss = compute()
            passes = self._collecting
            own = back(loss, [tensor for _, got in passes for tensor in got])
        finally:
            self._collecting = None
        request = Backward([(one, [tensor.grad for tensor in got]) for one, got in passes])
        del passes
        if request.upstream:
            self._ask(request)
        return loss, own + request.gradients

    def _ask(self, request: Request) -> None:
        self.meeting.requests.append((self, request))
        self.player.rest()
        if request.error is not None:
            raise request.error

    def _open(self, arguments: dict[str, Any]) -> bool:
        """Whether the pass is of a kind that can be computed together."""
        cached = arguments.get("use_cache") or arguments.get("past_key_values") is not None
        if cached or arguments.get("input_ids") is None or self.engine.recomputes:
            return False
        if self.engine.told or self.engine.core.config._attn_implementation == WATCHED:  # type: ignore[union-attr]
            return False
        first = self._layers[0][1]
        names = adapters.active_names(self.engine.model)
        several = self.meeting.recorder is None  # sums of adapters, and the base alone
        return not first._forward_pre_hooks and not first._forward_hooks and (several or len(names) == 1)

    def _form(self, part: Part, *asked: bool) -> Form:
        alike = self.meeting.recorder is not None  # where they are stacked
        return (*asked, tuple(part.adapters.layers), part.adapters.form if alike else ())

    def _part(self, arguments: dict[str, Any]) -> Part:
        ids, positions, packing = arguments["input_ids"], arguments["position_ids"], arguments.get("packing")
        padded = packing is None
        if packing is None:
            packing = Packing.of(arguments["attention_mask"].cpu()).with_tensors(lambda tensor: tensor.to(ids.device))
            ids, positions = packing.pack(ids), packing.pack(positions)
            mask = packing.attention_mask(self.engine.core.dtype)  # type: ignore[arg-type]
        else:
            mask = arguments["attention_mask"]
        return Part(ids, positions, packing, mask, self._adapters(), padded, self.player.noise)

    def _adapters(self) -> Adapters:
        """Those at work: the same object for the same ones, since to look for them takes a while."""
        names, (_, first) = adapters.active_names(self.engine.model), self._layers[0]
        key = (names, tuple(first.lora_dropout[name].training for name in names if name in first.lora_A))
        if key not in self.known:
            found = {
                path.removeprefix(adapters.WRAPPER): [_factor(layer, name) for name in names if name in layer.lora_A]
                for path, layer in self._layers
            }
            self.known[key] = Adapters(found)
        return self.known[key]


def decoder_layers(engine: Engine) -> list[tuple[str, Any]]:
    """The layers with adapters that a joint pass goes through: an output head is the run's own."""
    inside = set(engine.core.get_decoder().modules())  # type: ignore[operator]
    return [(path, layer) for path, layer in adapters.adapted(engine.model) if layer in inside]


def _factor(layer: Any, name: str) -> Factor:
    drop = layer.lora_dropout[name]
    share = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0
    return Factor(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], share)


def go_round(players: Sequence[Player], meetings: Iterable[Meeting]) -> None:
    """A turn for each run that can go on, in their order; where none can, what they wait for."""
    for player in players:
        if player.ready and not player.over:
            player.turn()
    if not any(player.ready and not player.over for player in players):
        for meeting in meetings:
            meeting.serve()
