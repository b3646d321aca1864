"""Probes: what a base model can do that no task of a run asks for, in groups of 25 rows, scored by likelihood.

The rows are made here, always the same ones, with four choices each (two in grammar). A row's score is the probability
that the model gives to the right choice among the choices, so that a change shows before an answer flips.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from ilora.config import Config
from ilora.data.encoding import Encoder
from ilora.data.examples import Example, collate
from ilora.data.task import Row, Task
from ilora.errors import IloraError
from ilora.evaluation.perplexity import perplexity, read_text
from ilora.gates.evidence import Probes
from ilora.model.engine import Engine
from ilora.model.fitting import in_batches
from ilora.model.ranking import likelihoods

ROWS = 25  # in each group
TEXT = Path(str(files("ilora.gates").joinpath("text.txt")))
_WINDOW = 64  # tokens of the text that are read together: each window is a row of its own
_TOKENS = 2_000  # of the text, at most


@dataclass(frozen=True)
class Probe:
    """A prompt and its choices, the right one first."""

    prompt: str
    choices: tuple[str, ...]


def probe_set() -> dict[str, list[Probe]]:
    """All probes, by group."""
    groups = {"arithmetic": _arithmetic, "facts": _facts, "grammar": _grammar, "instructions": _instructions}
    return {group: list(make()) for group, make in groups.items()}


def measure(engine: Engine, encoder: Encoder, config: Config) -> Probes:
    """The probes and the loss on a general text, with the active weights."""
    scores = {group: _scores(group, probes, engine, encoder) for group, probes in probe_set().items()}
    return Probes(made_from=made_from(config), scores=scores, text=_text_losses(engine, encoder, config))


def made_from(config: Config) -> str:
    """SHA-256 of the probes, the text, and how the run shows a prompt to its model."""
    rows = [[group, probe.prompt, probe.choices] for group, probes in probe_set().items() for probe in probes]
    data = [config.data.template, config.data.separator, config.data.max_length]
    model = [config.model.name, config.model.revision, config.model.dtype, config.model.quantization]
    shown = json.dumps([rows, data, model, hashlib.sha256(_text(config).read_bytes()).hexdigest()])
    return hashlib.sha256(shown.encode()).hexdigest()


def _text(config: Config) -> Path:
    return config.evaluation.perplexity_file or TEXT


def _scores(group: str, probes: Sequence[Probe], engine: Engine, encoder: Encoder) -> dict[str, float]:
    """The probability of the right choice among the choices, for each row."""
    rows = [
        encoder.choices(Task(group, {"test": [Row(one.prompt, one.choices[0])]}, choices=one.choices), "test")[0]
        for one in probes
    ]

    def measured(part: Sequence[list[Example]]) -> Tensor:
        batch = collate([replace(row[0], answer=[]) for row in part], pad=encoder.pad, device=engine.device)
        return likelihoods(engine, batch, [[choice.answer for choice in row] for row in part])

    training = engine.model.training
    engine.model.eval()
    try:
        with torch.inference_mode():
            parts = in_batches(engine, rows, measured, size=len(rows), what=f"probes of {group}")
            found = torch.cat([made for _, made in parts])
    finally:
        engine.model.train(training)
    right = found.double().softmax(dim=1)[:, 0].tolist()
    return {f"{group}/{place}": score for place, score in enumerate(right)}


def _text_losses(engine: Engine, encoder: Encoder, config: Config) -> list[float]:
    short = config.data.model_copy(update={"max_length": _WINDOW})
    reader = Encoder(encoder.tokenizer, short, ends=encoder.ends, positions=encoder.positions)
    losses = []
    for window in read_text(_text(config), reader, most=_TOKENS):
        found = perplexity(engine, [window])["perplexity"]
        if found is None:
            raise IloraError(f"{_text(config)}: the model's loss on it is not finite")
        losses.append(math.log(found))
    return losses


def _arithmetic() -> Iterator[Probe]:
    """Sums, differences and products of small numbers; the wrong ones are near."""
    for place in range(ROWS):
        one, other = 3 + 7 * place % 23, 2 + 5 * place % 11
        sign, right = (("+", one + other), ("-", one - other), ("*", one * other))[place % 3]
        yield Probe(f"{one} {sign} {other} =", tuple(str(right + step) for step in (0, 1, -2, 10)))


def _facts() -> Iterator[Probe]:
    for line in _FACTS:
        prompt, choices = line.split(": ")
        right, *wrong = choices.split(", ")
        yield Probe(prompt, (right, *wrong))


def _grammar() -> Iterator[Probe]:
    """The verb agrees with its subject, not with the noun beside it."""
    nouns = ("key", "picture", "letter", "teacher", "window")
    places = (("near", "door"), ("behind", "house"), ("of", "child"), ("from", "neighbour"), ("beside", "lamp"))
    for place in range(ROWS):
        noun, (word, beside) = nouns[place % 5], places[place // 5]
        one, plural = place % 2 == 0, {"child": "children"}.get(beside, f"{beside}s")
        subject, other = (noun, plural) if one else (f"{noun}s", beside)
        yield Probe(f"The {subject} {word} the {other}", ("is", "are") if one else ("are", "is"))


def _instructions() -> Iterator[Probe]:
    """An instruction of one line whose answer is one word."""
    words = ("apple", "river", "garden", "music", "window")
    for place, word in enumerate(words):
        others = [words[(place + step) % 5] for step in (1, 2, 3)]
        yield Probe(f"Repeat this word: {word}\nAnswer:", (word, *others))
        yield Probe(
            f"Write this word in capital letters: {word}\nAnswer:", (word.upper(), word, *map(str.upper, others[:2]))
        )
        yield Probe(f"Say the last of these words: {', '.join([*others, word])}\nAnswer:", (word, *others))
        yield Probe(f"Say the first of these words: {', '.join([word, *others])}\nAnswer:", (word, *others))
    for word, right, *wrong in _OPPOSITES:
        yield Probe(f"Give the opposite of this word: {word}\nAnswer:", (right, *wrong))


_OPPOSITES = (
    ("hot", "cold", "warm", "red", "fast"),
    ("early", "late", "soon", "small", "new"),
    ("full", "empty", "heavy", "open", "round"),
    ("loud", "quiet", "noisy", "bright", "long"),
    ("above", "below", "beside", "over", "inside"),
)

_FACTS = (
    "The capital of France is: Paris, Rome, London, Madrid",
    "The capital of Japan is: Tokyo, Beijing, Seoul, Bangkok",
    "The capital of Italy is: Rome, Paris, Vienna, Athens",
    "The capital of Egypt is: Cairo, Nairobi, Lagos, Tunis",
    "The capital of Canada is: Ottawa, Chicago, Boston, Lima",
    "The largest planet of the solar system is: Jupiter, Mars, Venus, Mercury",
    "The planet nearest to the sun is: Mercury, Saturn, Neptune, Jupiter",
    "Water freezes at a temperature in degrees Celsius of: 0, 50, 75, 20",
    "The chemical symbol of oxygen is: O, Fe, Na, Au",
    "The chemical symbol of gold is: Au, O, Pb, He",
    "The number of days in a week is: 7, 5, 9, 12",
    "The number of months in a year is: 12, 10, 7, 24",
    "The number of legs of a spider is: 8, 6, 4, 10",
    "The number of sides of a triangle is: 3, 4, 5, 6",
    "The day after Monday is: Tuesday, Friday, Sunday, Thursday",
    "The month before March is: February, April, June, October",
    "Bees make: honey, milk, wool, silk",
    "A young dog is called a: puppy, kitten, calf, lamb",
    "A young cat is called a: kitten, puppy, foal, chick",
    "The author of Romeo and Juliet is: Shakespeare, Dickens, Tolstoy, Homer",
    "The ocean between Europe and North America is the: Atlantic, Pacific, Indian, Arctic",
    "The language that most people in Brazil speak is: Portuguese, German, Greek, Dutch",
    "The organ that pumps blood is the: heart, liver, lung, skin",
    "The gas that plants take from the air is carbon: dioxide, monoxide, sulfide, chloride",
    "The opposite direction of north is: south, east, west, up",
)
