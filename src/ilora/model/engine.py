"""The engine: a base model with its adapters, ready to train, answer and rank on one or several processes.

It knows no run: no task, no step, no memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig

from ilora.data.examples import IGNORED, Batch, Example, collate
from ilora.kernels.graphs import DecoderGraphs
from ilora.kernels.packing import Packing
from ilora.model import adapters
from ilora.model.decoding import Decoding
from ilora.model.frozen import Below
from ilora.model.identity import BaseModel
from ilora.model.passes import (
    Inputs,
    Modes,
    Output,
    ReadPrompts,
    Seated,
    attention_cache,
    outputs_of,
    pack,
    rows_of,
    spread_cache,
)
from ilora.model.sharding import sharding_of

T = TypeVar("T")
Prefix = Callable[[Batch], Tensor]  # a soft prompt for every row: (rows, length, features)
Route = Callable[[Batch], list[str]]  # the adapter for every row
Layers = Literal["last", "all"]  # which layers' outputs; all: those that an adapter changes (not the embedding's)


@dataclass
class Engine:
    """The model, and every way to compute with it: with the active adapter, a soft prompt, or an adapter for each row.

    pad: the token id that fills short rows.
    micro_batch_size: rows in a forward pass of training, at most; "auto": counted in tokens instead.
    micro_batch_tokens: tokens in such a pass, padding included; None: no limit.
    recomputes: gradient checkpointing is on. may_recompute: it may be, where memory ends (`model/fitting.py`).
    merge: `Method.weights` merges adapters into the base's weights. adapted: the last so many layers carry one; 0: all.
    below: the states of the layers under them, computed once.
    base: which model this is. notices: what to say before the first step.
    graphs: replay the decoder's passes on a GPU. decoding: generates answers by replayed steps there. compiled: the
    decoder's layers are compiled (`model/gpu.py` sets these).
    passes: rows that went through the model in training, in this process.
    told: what is told how often each token of a pass stands in its batch (`model/observing.py` sets it).
    seat: for passes together with other runs (`model/shared.py` sets it).
    """

    model: PeftModel
    accelerator: Accelerator
    pad: int
    micro_batch_size: int | Literal["auto"] = 8
    micro_batch_tokens: int | None = None
    may_recompute: bool = False
    recomputes: bool = False
    merge: bool = False
    adapted: int = 0
    below: Below | None = None
    base: BaseModel | None = None
    graphs: DecoderGraphs | None = None
    decoding: Decoding | None = None
    compiled: bool = False
    notices: list[str] = field(default_factory=list)
    passes: dict[str, int] = field(default_factory=lambda: {"forward": 0, "backward": 0})
    told: Callable[[Tensor], None] | None = None
    seat: Seated | None = None

    def __post_init__(self) -> None:
        signature = inspect.signature(self.core.forward)
        self._slices_logits = "logits_to_keep" in signature.parameters
        self.takes_positions = "position_ids" in signature.parameters
        self._prefix: Prefix | None = None
        self._route: Route | None = None
        self._modes = Modes(self.model)
        self.sharding = sharding_of(self.core)  # None: the base is whole in every process

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.core.parameters()).device

    @property
    def core(self) -> nn.Module:
        """The causal language model inside the adapters' wrapper."""
        core: nn.Module = self.model.get_base_model()
        return core

    # -- computing ------------------------------------------------------------------------------------------------

    def forward(
        self, batch: Batch, *, hidden: Layers | None = None, dropout: bool = True, part: slice | None = None
    ) -> Output:
        """Run the model with the active adapter, and the soft prompt or the routes that are set.

        hidden: also return these layers' outputs, each (rows, length, features), without the soft prompt's columns.
        dropout: False computes as at inference. part: of the trailing columns, those whose logits are made.
        """
        if self.decoding is not None and torch.is_grad_enabled():
            self.decoding.make_room()
        inputs = self._inputs(batch)
        packing = self._pack(inputs, dropout=dropout, alone=True)
        if self._slices_logits:
            inputs.arguments["logits_to_keep"] = _kept(batch, packing, part)
        decoder = self.core.get_decoder() if hidden == "last" else None  # type: ignore[operator]
        with self._modes.training(dropout), outputs_of(decoder) as seen, self._layers(inputs.upper):
            result = self.model(**inputs.arguments, use_cache=False, output_hidden_states=hidden == "all")
        layers = self._adapted(result.hidden_states) if hidden == "all" else tuple(seen)
        shape = (len(batch.examples), -1, result.logits.shape[-1])
        logits = result.logits.view(shape) if packing else result.logits[:, -batch.keep :]
        logits = logits if part is None or self._slices_logits else logits[:, part]
        return Output(logits, rows_of(layers, packing, inputs.soft))

    def states(self, batch: Batch, *, layers: Layers = "last", dropout: bool = True) -> tuple[Tensor, ...]:
        """The layers' outputs alone, as `forward` returns them: no logits are made, and no other layer is kept."""
        inputs = self._inputs(batch)
        packing = self._pack(inputs, dropout=dropout, alone=True)
        with self._modes.training(dropout), self._layers(inputs.upper):
            decoder = self.core.get_decoder()  # type: ignore[operator]
            result = decoder(**inputs.arguments, use_cache=False, output_hidden_states=layers == "all")
        found = self._adapted(result.hidden_states) if layers == "all" else (result.last_hidden_state,)
        return rows_of(found, packing, inputs.soft)

    def _adapted(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return states[-self.adapted :] if self.adapted else states[1:]

    @contextmanager
    def _layers(self, upper: bool) -> Iterator[None]:
        with self.below.skipped() if self.below is not None and upper else nullcontext():
            yield

    @contextmanager
    def as_written(self, *, upper: bool = False) -> Iterator[None]:
        """Without compiled layers: with a cache of keys and values, each length would be compiled anew.

        upper: without the layers below the adapted ones.
        """
        with torch.compiler.set_stance("force_eager") if self.compiled else nullcontext(), self._layers(upper):
            yield

    def generate(self, batch: Batch, settings: GenerationConfig, **more: Any) -> Tensor:
        """New token ids (rows, up to max_new_tokens), with the active adapter, soft prompt or routes.

        more: what else transformers takes: a `streamer`, told of the tokens of a single row as they come, or a
        `logits_processor`.
        """
        plain = not more and self._route is None and not self.model.training
        if self.decoding is not None and plain and self.decoding.serves(settings):
            read = self.read_prompts(batch, whole=True)
            with self.as_written():
                return self.decoding.generate(read, settings)
        inputs = self._inputs(batch, whole=True).arguments
        inputs.pop("position_ids", None)  # generation counts on from the mask itself
        with self.as_written():
            made: Tensor = self.model.generate(**inputs, generation_config=settings, **more)
        # From embeddings, generation returns the new tokens alone.
        return made if "inputs_embeds" in inputs else made[:, batch.input_ids.shape[1] :]

    def read_prompts(self, batch: Batch, *, whole: bool) -> ReadPrompts:
        """Read prompts without answers once, for several answers. whole: through all layers, as in `_inputs`."""
        inputs = self._inputs(batch, whole=whole)
        padded, packing = replace(inputs, arguments=dict(inputs.arguments)), self._pack(inputs)
        if self._slices_logits:
            inputs.arguments["logits_to_keep"] = packing.columns(1) if packing else 1
        with self.as_written(upper=inputs.upper):
            output = self.model(**inputs.arguments, use_cache=True)
        if packing is None:
            return ReadPrompts(padded, output.logits[:, -1:], attention_cache(output))
        spread_cache(output.past_key_values, packing)
        return ReadPrompts(padded, output.logits.view(packing.rows, 1, -1), output.past_key_values)

    def knows(self, rows: Sequence[Example]) -> bool:
        """Whether the states below are at hand for all of these."""
        return self.below is not None and all(map(self.below.knows, rows))

    def _inputs(self, batch: Batch, *, whole: bool = False) -> Inputs:
        """A soft prompt stands before the padding: that is masked and positions skip it, so the model sees the soft
        prompt next to the first token. whole: through all layers, even where the states below are at hand.
        """
        if not torch.is_inference_mode_enabled():  # what evaluation does is not a cost of training
            self.passes["forward"] += len(batch.examples)
        inputs: dict[str, Any] = {"attention_mask": batch.attention_mask}
        made = Inputs(inputs, mask=batch.mask, soft=0, names=batch.input_ids, upper=False)
        if self._route is not None:
            inputs["adapter_names"] = self._route(batch)
        if self._prefix is not None:
            prefix = self._prefix(batch)
            made.soft = prefix.shape[1]
            tokens = self.core.get_input_embeddings()(batch.input_ids)  # type: ignore[operator]
            inputs["inputs_embeds"] = torch.cat([prefix.to(tokens.dtype), tokens], dim=1)
            ones = batch.attention_mask.new_ones(prefix.shape[:2])
            inputs["attention_mask"] = torch.cat([ones, batch.attention_mask], dim=1)
            made.mask = nn.functional.pad(made.mask, (made.soft, 0), value=1)
            soft = -1 - torch.arange(made.soft, device=self.device).expand(len(batch.examples), -1)
            same = prefix.stride(0) == 0  # one prompt, expanded over all rows
            made.names = torch.cat([soft, batch.input_ids], dim=1) if same else None
        elif self.below is not None and not whole and self.knows(batch.examples):
            made.upper = True
            length = batch.input_ids.shape[1]
            inputs["inputs_embeds"] = self.below.states(batch.examples, length=length, device=self.device)
        else:
            inputs["input_ids"] = batch.input_ids
        if self.takes_positions:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return made

    def _pack(self, inputs: Inputs, *, dropout: bool = False, alone: bool = False) -> Packing | None:
        """Change inputs into one long row without repetitions, where our own attention is at work; None: left alone.

        alone: no cache is filled or read.
        """
        # Rows with dropout masks of their own differ from their first token on.
        own = getattr(self.core.config, "attention_dropout", 0.0)
        noisy = dropout and self.model.training and max(own, adapters.dropout(self.model)) > 0
        filled = bool(alone and self.graphs and not self.told)
        packing = pack(inputs, self.core, pad=self.pad, noisy=noisy, filled=filled)
        if self.told is not None:
            self.told(inputs.mask.flatten() if packing is None else packing.counts)
        return packing

    @contextmanager
    def prefixed(self, prefix: Prefix | None) -> Iterator[None]:
        """Inside the block, put a soft prompt before every row."""
        before, self._prefix = self._prefix, prefix
        try:
            yield
        finally:
            self._prefix = before

    @contextmanager
    def routed(self, route: Route | None) -> Iterator[None]:
        """Inside the block, compute every row with an adapter of its own (at inference only)."""
        before, self._route = self._route, route
        try:
            yield
        finally:
            self._route = before

    def word_vectors(self, count: int, source: torch.Generator) -> Tensor:
        """The embeddings of so many random tokens, as the table holds them: (count, features), float32."""
        if self.sharding is not None:
            self.sharding.gather_ends()
        table = self.core.get_input_embeddings().weight.detach()  # type: ignore[operator]
        words: Tensor = table[torch.randint(len(table), (count,), generator=source).to(table.device)].float()
        return words.clone()

    def features(self, batch: Batch) -> Tensor:
        """The base model's mean last hidden state over each prompt's tokens, never the answer's: (rows, features)."""
        prompt = ((batch.labels == IGNORED) & batch.attention_mask.bool())[..., None]
        with torch.no_grad(), adapters.active(self.model, None), self.prefixed(None), self.routed(None):
            (last,) = self.states(batch, dropout=False)
        return (last.float() * prompt).sum(1) / prompt.sum(1)

    # -- a step's rows over processes and micro-batches -----------------------------------------------------------

    def micro_batches(self, rows: Sequence[Example], *, size: int | None = None) -> Iterator[Batch]:
        """This process's part of the rows in micro-batches, longest first (little padding, the memory's peak first)."""
        for part in self.split(self.mine(rows), size=size):
            yield collate(part, pad=self.pad, device=self.device)

    def mine(self, rows: Sequence[Example]) -> list[Example]:
        """This process's part of a step's rows, longest first."""
        return list(self.share(sorted(rows, key=len, reverse=True)))

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of what the processes divide among them."""
        return items[self.accelerator.process_index :: self.accelerator.num_processes]

    def split(self, rows: Sequence[Example], *, size: int | None = None) -> Iterator[Sequence[Example]]:
        """The rows in parts that go through the model together. size: rows in each; None: as set."""
        size = size or (len(rows) if self.micro_batch_size == "auto" else self.micro_batch_size)
        start = 0
        while start < len(rows):
            count = size
            if self.micro_batch_size == "auto" and self.micro_batch_tokens is not None:
                longest = max(map(len, rows[start : start + size]))
                count = min(size, max(1, self.micro_batch_tokens // longest))
            yield rows[start : start + count]
            start += count

    def rejoin(self) -> None:
        """Before processes exchange anything: help those that are still computing, where the base lies in parts."""
        if self.sharding is not None:
            self.sharding.rejoin()

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes."""
        self.rejoin()
        return items if self.accelerator.num_processes == 1 else list(gather_object(items))

    @torch.no_grad()
    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sum every tensor over all processes, in place, in one message of float32."""
        self.rejoin()
        if self.accelerator.num_processes == 1 or not tensors:
            return
        flat = torch.cat([tensor.float().flatten() for tensor in tensors])
        flat = self.accelerator.reduce(flat, reduction="sum")
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def prepare(self, rows: Sequence[Example]) -> None:
        """Compute once what stays the same of rows that a method made (`keep_below`); forget the last such rows."""
        if self.below is not None:
            self.below.prepare_passing(rows)


def _kept(batch: Batch, packing: Packing | None, part: slice | None) -> int | Tensor:
    """Which columns' logits the model makes; of packed rows, which tokens'."""
    if packing is not None:
        columns = packing.columns(batch.keep)
        return columns if part is None else columns.view(len(batch.examples), -1)[:, part].flatten()
    return batch.keep if part is None else torch.arange(-batch.keep, 0, device=batch.input_ids.device)[part]
