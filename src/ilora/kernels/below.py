"""What lies below the first adapted layer is the same in every step: computed once for each row, then read back.

With `adapter.layers: n` only the last n layers carry the adapter. Neither the embedding nor the layers under them ever
change, so a row's states there are a function of its tokens alone. They are kept in a file of the user's cache, named
after the weights and the rows it was made from, and shared by all runs on the same rows.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DynamicCache

from ilora.data.examples import Example
from ilora.errors import InputError

Ids = tuple[int, ...]
# A stack of like layers between an embedding and a norm; attention without caps, sinks or biases of its own.
PLAIN = {"llama", "mistral", "qwen2", "qwen3", "smollm3"}


class Below:
    """A decoder in two parts: the frozen layers below, whose states are kept, and the last `above` ones.

    folder: of the user's cache. Raises InputError for an architecture whose layers cannot be taken apart like this.
    """

    def __init__(self, core: nn.Module, *, above: int, folder: Path) -> None:
        config: Any = core.config
        if config.model_type not in PLAIN:
            known = ", ".join(sorted(PLAIN))
            raise InputError(f"adapter.keep_below: not for models of type {config.model_type}; it knows {known}")
        if len(set(getattr(config, "layer_types", None) or [])) > 1:
            raise InputError("adapter.keep_below: not for a model whose layers attend in different ways")
        self.decoder: Any = core.get_decoder()  # type: ignore[operator]
        self.whole: nn.ModuleList = self.decoder.layers
        self.lower, self.upper = self.whole[:-above], self.whole[-above:]
        self.folder = folder
        self.kept: dict[Ids, Tensor] = {}

    def __contains__(self, row: Sequence[int]) -> bool:
        return tuple(row) in self.kept

    def prepare(self, rows: Sequence[Example]) -> None:
        """Have the states of these rows at hand, whole, without their end-of-text and without their answer.

        They come from the file, or are computed now: each prompt by itself, so that its states do not depend on which
        others are there.
        """
        answers: dict[Ids, dict[Ids, None]] = {}  # by prompt; both without repetitions
        for row in rows:
            answers.setdefault(tuple(row.prompt), {})[tuple(row.answer)] = None
        pairs = [(prompt, answer) for prompt, found in answers.items() for answer in found]
        if not pairs:
            return
        file = self.folder / f"{self._digest(pairs)}.safetensors"
        with _alone(file):  # the other runs of a sweep wait, and read what this one has made
            states = _load(file)
            if states is None:
                states = torch.cat([self._compute(prompt, list(found)) for prompt, found in answers.items()])
                _save(file, states)
        start = 0
        for prompt, answer in pairs:
            ids = prompt + answer
            for end in (len(ids), len(ids) - 1, len(prompt)):  # a token's state depends on those before it only
                self.kept[ids[:end]] = states[start : start + end]
            start += len(ids)

    def states(self, rows: Sequence[Sequence[int]], *, length: int, device: torch.device) -> Tensor:
        """(rows, length, features), zero in the padding on the left."""
        found = [self.kept[tuple(row)] for row in rows]
        made = found[0].new_zeros(len(rows), length, found[0].shape[1])
        for place, state in zip(made, found, strict=True):
            place[length - len(state) :] = state
        return made.to(device)

    def behind(self, rows: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
        """The states of further tokens behind rows: (rows, columns, features), zero where `tokens` is negative."""
        made = []
        for row, ids in zip(rows, tokens.tolist(), strict=True):
            more = [token for token in ids if token >= 0]
            states = self.kept[*row, *more][len(row) :]
            made.append(nn.functional.pad(states, (0, 0, 0, len(ids) - len(more))))
        return torch.stack(made).to(tokens.device)

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Inside the block the decoder is its upper layers alone, and its input embeddings are these states."""
        self.decoder.layers = self.upper
        try:
            with _numbered(self.upper):
                yield
        finally:
            self.decoder.layers = self.whole

    @torch.inference_mode()
    def _compute(self, prompt: Ids, answers: Sequence[Ids]) -> Tensor:
        """(tokens, features) of the prompt with the first answer, with the second one, ...; the prompt is read once."""
        norm = self.decoder.norm
        self.decoder.layers, self.decoder.norm = self.lower, nn.Identity()
        try:
            if len(answers) == 1:
                return self._read([prompt + answers[0]], None)[0]
            cache = DynamicCache()
            (head,) = self._read([prompt], cache)
            cache.batch_repeat_interleave(len(answers))
            width = max(map(len, answers))  # what stands behind a shorter answer is never looked at
            tails = self._read([answer + answer[-1:] * (width - len(answer)) for answer in answers], cache)
            return torch.cat([torch.cat([head, tail[: len(ids)]]) for tail, ids in zip(tails, answers, strict=True)])
        finally:
            self.decoder.layers, self.decoder.norm = self.whole, norm

    def _read(self, rows: Sequence[Ids], cache: DynamicCache | None) -> Tensor:
        """(rows, tokens, features) behind what the cache holds."""
        ids = torch.tensor([list(row) for row in rows], device=next(self.decoder.parameters()).device)
        states: Tensor = self.decoder(
            input_ids=ids, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return states.cpu()

    def _digest(self, pairs: Sequence[tuple[Ids, Ids]]) -> str:
        """Of the weights below and the rows."""
        made = hashlib.blake2b(digest_size=16)
        config = self.decoder.config
        made.update(f"1/{config._attn_implementation}/{torch.__version__}/{config.to_json_string()}".encode())
        for part in (self.decoder.get_input_embeddings(), self.lower):
            for tensor in part.state_dict().values():
                made.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
        for prompt, answer in pairs:
            made.update(torch.tensor([len(prompt), len(answer), *prompt, *answer], dtype=torch.int32).numpy().tobytes())
        return made.hexdigest()


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


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _load(file: Path) -> Tensor | None:
    """None where it is missing or damaged: then it is made again."""
    try:
        return load_file(file)["states"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _save(file: Path, states: Tensor) -> None:
    """Complete or not there at all."""
    handle, scratch = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    os.close(handle)
    try:
        save_file({"states": states.contiguous()}, scratch)
        Path(scratch).replace(file)
    finally:
        Path(scratch).unlink(missing_ok=True)
