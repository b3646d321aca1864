"""Greedy generation whose every step is one recorded computation (`kernels/graphs.py`), for models on a GPU.

Keys and values lie at fixed places, rows x width, in few shapes; a step reads and writes there and is replayed for each
token. The shape depends on the rows alone, not on what was recorded before, so a resumed run gives the same bits.
All shapes lie in the same memory, and one is in use at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.cache_utils import Cache, StaticLayer

from ilora.kernels.graphs import Recorder
from ilora.kernels.packing import round_up
from ilora.model.passes import ReadPrompts

LOOK = 8  # steps between two looks at which rows have ended: a look waits for the device
ROWS = 512  # answered at once, at most: from here on more rows take as much longer
TOKENS, BYTES = 2**17, 2**32  # read at once, at most, and the memory of their keys and values
KEPT = 2**28  # bytes: more than this is given back when training goes on
FEW = 4  # where one of so many rows has not ended, these go on in a smaller shape
GREEDY = {"do_sample", "max_new_tokens", "eos_token_id", "pad_token_id", "use_cache", "transformers_version"}


class _Columns(StaticLayer):  # type: ignore[misc]
    """A layer's keys and values at fixed places, each (rows, groups, width, size); all layers write the same column."""

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        super().__init__(keys.shape[2])
        self.keys, self.values, self.is_initialized = keys, values, True
        self._column = column

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one column, and return all."""
        self.keys.index_copy_(2, self._column, keys)
        self.values.index_copy_(2, self._column, values)
        return self.keys, self.values


class Shape:
    """So many rows of a width, and the step that gives each its next token.

    tokens: (rows, width + 1), each new token at its column. ended: (rows,), whether a row has ended, or is not used.
    """

    def __init__(
        self, core: nn.Module, memory: Sequence[tuple[Tensor, Tensor]], rows: int, width: int, ends: Tensor, pad: int
    ) -> None:
        """memory: each layer's keys and values, (places, groups, size), at least rows x width places."""
        device, dtype = memory[0][0].device, memory[0][0].dtype
        self.core, self.ends, self.pad = core, ends, pad
        self.least = torch.finfo(dtype).min
        self.tokens = torch.full((rows, width + 1), pad, device=device)  # one more, for recording
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.mask = torch.full((rows, 1, 1, width), self.least, dtype=dtype, device=device)
        self.ended = torch.ones(rows, dtype=torch.bool, device=device)
        self.layers = [tuple(_placed(part, rows, width) for part in pair) for pair in memory]
        self.cache = Cache(layers=[_Columns(keys, values, self.column) for keys, values in self.layers])
        self.replay: Callable[[], None] = self.step

    @property
    def rows(self) -> int:
        """Used or not."""
        return len(self.ended)

    def record(self, recorder: Recorder) -> None:
        """From now on `replay` computes the step.

        Memory may be in use by a larger shape. Its last column is free: nothing is read behind an answer's last token.
        """
        self.column.fill_(self.mask.shape[3] - 1)
        recorder.warm_up(self.step)
        self.column.fill_(self.mask.shape[3] - 1)
        self.replay, _ = recorder.record(self._recorded)

    def _recorded(self) -> list[Tensor]:
        self.step()
        return []  # all that it makes lies at places of its own

    def step(self) -> None:
        """Read the tokens at the column and write the next ones behind it."""
        self.mask.index_fill_(3, self.column, 0.0)
        result = self.core(
            input_ids=self.tokens.index_select(1, self.column), attention_mask=self.mask, position_ids=self.positions,
            past_key_values=self.cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.positions += 1
        self.column += 1
        self._write(result.logits[:, -1].argmax(-1))

    def _write(self, chosen: Tensor) -> None:
        chosen = chosen.masked_fill(self.ended[: len(chosen)], self.pad)
        self.tokens[: len(chosen)].index_copy_(1, self.column, chosen[:, None])
        self.ended[: len(chosen)] |= (chosen[:, None] == self.ends).any(1)

    def load(self, read: ReadPrompts) -> None:
        """Begin with these prompts and the first token of their answers; the prompts' cache is used up."""
        real = read.inputs.arguments["attention_mask"].bool()
        count, prompt = real.shape
        for places, layer in zip(self.layers, read.cache.layers, strict=True):
            for place, found in zip(places, (layer.keys, layer.values), strict=True):
                place.zero_()  # what is masked must be finite, too
                place[:count, :, :prompt] = found
            layer.keys = layer.values = None
        self.mask.fill_(self.least)
        self.mask[:count, 0, 0, :prompt].masked_fill_(real, 0.0)
        self.positions.zero_()
        self.positions[:count, 0] = real.sum(1)
        self.tokens.fill_(self.pad)
        self.column.fill_(prompt)
        self.ended.fill_(True)
        self.ended[:count] = False
        self._write(read.logits[:, -1].argmax(-1))

    def take(self, other: Shape, rows: Tensor) -> None:
        """Go on with these rows of another shape of the same width, in the same memory."""
        count = len(rows)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            for place, found in zip(mine, theirs, strict=True):
                place[:count] = found.index_select(0, rows)
        for name in ("tokens", "positions", "mask", "ended"):
            getattr(self, name)[:count] = getattr(other, name).index_select(0, rows)
        self.ended[count:] = True
        self.column.copy_(other.column)


@dataclass
class Decoding:
    """Generates answers with the active adapters, greedily.

    core: the causal language model, whose attention takes a mask of four dimensions.
    recorder: makes one, with memory of its own, each time that all memory was given back.
    weights: what the step depends on beside its rows, and tensors that a recording reads.
    worth: steps still to come, at least, for which a smaller shape is recorded.
    limit: recordings, at most.
    """

    core: nn.Module
    recorder: Callable[[], Recorder]
    weights: Callable[[], tuple[Hashable, list[Tensor]]]
    worth: int = 32
    limit: int = 24

    def __post_init__(self) -> None:
        self._shapes: dict[Hashable, tuple[Shape, list[Tensor]]] = {}
        self._memory: list[tuple[Tensor, Tensor]] = []
        self._recorder: Recorder | None = None

    @staticmethod
    def serves(settings: GenerationConfig) -> bool:
        """Whether the settings ask for the likeliest token each time, and nothing else."""
        known = settings.eos_token_id is not None and settings.pad_token_id is not None
        return known and settings.to_diff_dict().keys() <= GREEDY

    def rows_at_once(self, length: int) -> int:
        """How many rows of so many tokens to answer together: many cost little more than few."""
        config: Any = self.core.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        weight = next(self.core.parameters())
        of_token: int = 2 * config.num_hidden_layers * config.num_key_value_heads * size * weight.element_size()
        return max(1, min(ROWS, TOKENS // length, BYTES // (length * of_token)))

    @torch.no_grad()
    def generate(self, read: ReadPrompts, settings: GenerationConfig) -> Tensor:
        """New tokens (rows, up to max_new_tokens) behind prompts that are read: what transformers generates."""
        ends = torch.tensor(settings.eos_token_id, device=read.logits.device).view(-1)
        try:
            made = self._generate(read, ends, new=settings.max_new_tokens, pad=settings.pad_token_id)
        except torch.OutOfMemoryError:
            self.forget()
            raise
        return made[:, : _longest(made, ends)]

    def _generate(self, read: ReadPrompts, ends: Tensor, *, new: int, pad: int) -> Tensor:
        rows, prompt = read.inputs.arguments["attention_mask"].shape
        if new == 1:
            return read.logits[:, -1].argmax(-1, keepdim=True)
        width = round_up(prompt + new, parts=2)
        self._provide(read.cache, round_up(rows, parts=2) * width)
        shape = self._shape(rows, width, ends, pad)
        shape.load(read)
        made = torch.full((rows, new), pad, device=ends.device)
        places = torch.arange(rows, device=ends.device)  # where in `made` the shape's first rows belong
        for step in range(new - 1):
            if step % LOOK == 0:
                running = (~shape.ended).nonzero()[:, 0]
                if not len(running):
                    break
                if new - step > self.worth and FEW * round_up(len(running), parts=2) <= shape.rows:
                    made[places] = shape.tokens[: len(places), prompt : prompt + new]
                    larger, shape = shape, self._shape(len(running), width, ends, pad)
                    shape.take(larger, running)
                    places = places[running]
            shape.replay()
        made[places] = shape.tokens[: len(places), prompt : prompt + new]
        return made

    def make_room(self) -> None:
        """Training goes on: give back what takes much memory."""
        if sum(part.nbytes for pair in self._memory for part in pair) > KEPT:
            self.forget()

    def forget(self) -> None:
        """Give back all memory; what is needed is recorded anew."""
        self._shapes.clear()
        self._memory, self._recorder = [], None

    def _shape(self, rows: int, width: int, ends: Tensor, pad: int) -> Shape:
        """The recorded one for at least so many rows."""
        rows = round_up(rows, parts=2)
        state, tensors = self.weights()
        key = (rows, width, tuple(ends.tolist()), pad, state)
        if key not in self._shapes:
            if len(self._shapes) >= self.limit:  # the one that was used least lately
                self._shapes.pop(next(iter(self._shapes)))
            with torch.inference_mode(False), torch.no_grad():
                shape = Shape(self.core, self._memory, rows, width, ends.clone(), pad)
                self._recorder = self._recorder or self.recorder()
                shape.record(self._recorder)
            self._shapes[key] = shape, tensors  # as long as these live, no others have their addresses
        self._shapes[key] = self._shapes.pop(key)
        return self._shapes[key][0]

    def _provide(self, cache: Any, places: int) -> None:
        """Memory for so many tokens' keys and values. cache: keys and values of the same sizes."""
        if not self._memory or len(self._memory[0][0]) < places:
            self.forget()
            with torch.inference_mode(False):
                self._memory = [(_room(layer.keys, places), _room(layer.values, places)) for layer in cache.layers]


def _room(like: Tensor, places: int) -> Tensor:
    return torch.zeros(places, like.shape[1], like.shape[3], dtype=like.dtype, device=like.device)


def _placed(room: Tensor, rows: int, width: int) -> Tensor:
    """The first places as (rows, groups, width, size)."""
    _, groups, size = room.shape
    return room.flatten()[: rows * groups * width * size].view(rows, groups, width, size)


def _longest(made: Tensor, ends: Tensor) -> int:
    """Tokens up to the first end, or all, of the row that has most."""
    is_end = torch.isin(made, ends)
    counts = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, made.shape[1])
    return int(counts.max())
