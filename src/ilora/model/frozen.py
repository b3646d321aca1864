"""The states below the first adapted layer, which are the same in every step: computed once, then read from a file.

With `adapter.layers: n` only the last n layers carry the adapter. Neither the embedding nor the layers under them ever
change, so a row's states there are a function of its tokens alone. They are kept in a file of the user's cache, named
after the weights and the rows it was made from, and shared by all runs on the same rows.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import DynamicCache

from ilora.data.examples import Example
from ilora.errors import IloraError, InputError
from ilora.files import alone, write_atomic
from ilora.kernels.attention import PLAIN
from ilora.model.sharding import whole_of

Ids = tuple[int, ...]
Answers = dict[Ids, dict[Ids, None]]  # by prompt; both without repetitions


@dataclass
class Kept:
    """A prompt's states, (tokens, features), and those of each answer behind it."""

    prompt: Tensor
    answers: dict[Ids, Tensor] = field(default_factory=dict)


class Below:
    """A decoder in two parts: the frozen layers below, whose states are kept, and the last `above` ones.

    folder: of the user's cache. Raises InputError for an architecture whose layers cannot be taken apart like this, and
    where something below is trained.
    """

    def __init__(self, core: nn.Module, *, above: int, folder: Path) -> None:
        _refuse(core.config)
        self.decoder: Any = core.get_decoder()  # type: ignore[operator]
        self.whole: nn.ModuleList = self.decoder.layers
        self.lower, self.upper = self.whole[:-above], self.whole[-above:]
        self.folder = folder
        self.kept: dict[Ids, Kept] = {}
        self.passing: dict[Ids, Kept] = {}
        self._weights = self._digest_of_weights()

    def knows(self, row: Example) -> bool:
        """Whether the states of its prompt and answer are at hand; a prompt may stand alone."""
        return self._found(row) is not None

    def _found(self, row: Example) -> Kept | None:
        for table in (self.kept, self.passing):
            kept = table.get(tuple(row.prompt))
            if kept is not None and (not row.answer or tuple(row.answer) in kept.answers):
                return kept
        return None

    def prepare(self, rows: Sequence[Example], *, advance: Callable[[int], None] = lambda _: None) -> None:
        """Have the states of these rows at hand: from the file, or computed now.

        Each prompt is computed by itself, so that its states do not depend on which others are there. advance: called
        with a number of rows that are done; what it raises ends the work.
        """
        answers = _answers(rows)
        sizes = [size for prompt, found in answers.items() for size in (len(prompt), *map(len, found))]
        if answers:
            _put(self.kept, answers, torch.split(self._states(answers, sum(sizes), advance), sizes))

    def prepare_passing(self, rows: Sequence[Example]) -> None:
        """Have the states of these rows at hand in memory alone, and those of the last call no longer.

        For rows that a method makes for one task: what is at hand in it must not depend on what came before, or a
        stopped run would not go on to the same bits.
        """
        self.passing = {}
        answers = _answers([row for row in rows if not self.knows(row)])
        if answers:
            sizes = [size for prompt, found in answers.items() for size in (len(prompt), *map(len, found))]
            _put(self.passing, answers, torch.split(self._compute(answers, lambda _: None), sizes))

    def states(self, rows: Sequence[Example], *, length: int, device: torch.device) -> Tensor:
        """(rows, length, features), zero in the padding on the left."""
        kept = [self._at_hand(row) for row in rows]
        made = kept[0].prompt.new_zeros(len(rows), length, kept[0].prompt.shape[1])
        for place, row, found in zip(made, rows, kept, strict=True):
            start = length - len(row)
            place[start : start + len(row.prompt)] = found.prompt
            if row.answer:
                place[start + len(row.prompt) :] = found.answers[tuple(row.answer)]
        return made.to(device)

    def behind(self, rows: Sequence[Example], width: int, device: torch.device) -> Tensor:
        """The states of each row's first `width` answer tokens: (rows, width, features), zero behind the last one."""
        found = [self._at_hand(row).answers[tuple(row.answer)][:width] for row in rows]
        return torch.stack([nn.functional.pad(part, (0, 0, 0, width - len(part))) for part in found]).to(device)

    def _at_hand(self, row: Example) -> Kept:
        found = self._found(row)
        if found is None:
            raise KeyError(f"no states of row {row.id}")
        return found

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Inside the block the decoder is its upper layers alone, and its input embeddings are these states."""
        self.decoder.layers = self.upper
        try:
            with _numbered(self.upper):
                yield
        finally:
            self.decoder.layers = self.whole

    # -- made once -------------------------------------------------------------------------------------------------

    def _states(self, answers: Answers, tokens: int, advance: Callable[[int], None]) -> Tensor:
        """(tokens, features) of every prompt and its answers one after another."""
        file = self.folder / f"{self._digest(answers)}.safetensors"
        made = _load(file, tokens)
        if made is None:
            try:
                with alone(file):  # other runs wait, and read what this one has made
                    made = _load(file, tokens)
                    if made is None:
                        made = self._compute(answers, advance)
                        write_atomic(file, save({"states": made}))
            except (OSError, IloraError) as error:
                warnings.warn(f"{file}: states cannot be kept ({error}): every run computes them", stacklevel=2)
        return self._compute(answers, advance) if made is None else made

    @torch.inference_mode()
    def _compute(self, answers: Answers, advance: Callable[[int], None]) -> Tensor:
        norm, training = self.decoder.norm, self.decoder.training
        self.decoder.layers, self.decoder.norm = self.lower, nn.Identity()
        self.decoder.eval()  # gradient checkpointing, which is for training, would pass no cache on
        try:
            made = []
            for prompt, found in answers.items():
                made += self._row(prompt, list(found))
                advance(len(found))
            return torch.cat(made)
        finally:
            self.decoder.layers, self.decoder.norm = self.whole, norm
            self.decoder.train(training)

    def _row(self, prompt: Ids, answers: Sequence[Ids]) -> list[Tensor]:
        """The prompt's states, and those of each answer behind it; the prompt is read once."""
        if len(answers) == 1:
            (row,) = self._read([prompt + answers[0]], None)
            return [row[: len(prompt)], row[len(prompt) :]]
        cache = DynamicCache()
        (head,) = self._read([prompt], cache)
        cache.batch_repeat_interleave(len(answers))
        width = max(map(len, answers))  # what stands behind a shorter answer is never looked at
        tails = self._read([answer + answer[-1:] * (width - len(answer)) for answer in answers], cache)
        return [head, *(tail[: len(ids)] for tail, ids in zip(tails, answers, strict=True))]

    def _read(self, rows: Sequence[Ids], cache: DynamicCache | None) -> Tensor:
        """(rows, tokens, features) behind what the cache holds."""
        ids = torch.tensor([list(row) for row in rows], device=next(self.decoder.parameters()).device)
        read = self.decoder(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
        states: Tensor = read.last_hidden_state.cpu()
        return states

    def _digest_of_weights(self) -> Any:
        """Of all that decides a state's last bits, the rows aside."""
        made, config = hashlib.blake2b(digest_size=16), self.decoder.config
        device = next(self.decoder.parameters()).device.type
        about = (2, config._attn_implementation, torch.__version__, device, torch.get_num_threads())
        made.update(f"{about} {config.to_json_string()}".encode())
        for part in (self.decoder.get_input_embeddings(), self.lower):
            for name, tensor in part.state_dict().items():
                if "lora_" in name:
                    raise InputError(
                        "adapter.keep_below: adapter.target_modules reaches below the last layers; name modules of a "
                        "layer without its number, or leave keep_below out"
                    )
                plain: Any = whole_of(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy()
                made.update(memoryview(plain))
        return made

    def _digest(self, answers: Answers) -> str:
        made = self._weights.copy()
        for prompt, found in answers.items():
            for ids in (prompt, *found):
                made.update(torch.tensor([len(found), len(ids), *ids], dtype=torch.int32).numpy().tobytes())
        return str(made.hexdigest())


def _answers(rows: Sequence[Example]) -> Answers:
    answers: Answers = {}
    for row in rows:
        answers.setdefault(tuple(row.prompt), {})[tuple(row.answer)] = None
    return answers


def _put(table: dict[Ids, Kept], answers: Answers, states: Sequence[Tensor]) -> None:
    """The states of every prompt and its answers one after another."""
    parts = iter(states)
    for prompt, found in answers.items():
        kept = table.setdefault(prompt, Kept(next(parts)))
        kept.answers |= {answer: next(parts) for answer in found}


def _refuse(config: Any) -> None:
    if config.model_type not in PLAIN:
        known = ", ".join(sorted(PLAIN))
        raise InputError(f"adapter.keep_below: not for models of type {config.model_type}; it knows {known}")
    if len(set(getattr(config, "layer_types", None) or [])) > 1:
        raise InputError("adapter.keep_below: not for a model whose layers attend in different ways")
    if getattr(config, "attention_dropout", 0):
        raise InputError("adapter.keep_below: not for a model with attention_dropout: its states differ every time")


@contextmanager
def _numbered(layers: nn.ModuleList) -> Iterator[None]:
    """Inside the block these layers count from 0: a cache of keys and values asks layer 0 how long it is."""
    attentions: list[Any] = [layer.self_attn for layer in layers]
    before = [attention.layer_idx for attention in attentions]
    for number, attention in enumerate(attentions):
        attention.layer_idx = number
    try:
        yield
    finally:
        for attention, number in zip(attentions, before, strict=True):
            attention.layer_idx = number


def _load(file: Path, tokens: int) -> Tensor | None:
    """None where it is missing or damaged: then it is made again."""
    try:
        states: Tensor = load_file(file)["states"]
    except (OSError, SafetensorError, KeyError):
        return None
    return states if len(states) == tokens else None
