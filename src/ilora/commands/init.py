"""What `ilora init` does: look at the data, ask a few questions, and write a configuration that says why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ilora.check.lengths import FEW, Lengths
from ilora.commands.settings_file import Setting, settings_file
from ilora.config import Config, load_config
from ilora.data.encoding import Encoder
from ilora.data.task import SPLITS, Task
from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.methods import method_class
from ilora.model.load import load_tokenizer
from ilora.model.names import ALIASES
from ilora.overrides import apply_overrides
from ilora.present.numbers import duration, plain
from ilora.stream import load_tasks, reading_notes, resolve
from ilora.sweeps.estimate import passes
from ilora.training.loading import TOKENS_ON_CPU
from ilora.training.speed import tokens_per_second

_MEMORY = 0.05  # of the training rows: the share of the measurements in docs/results.md
_LEAST_MEMORY = 50
_LONG_ANSWER = 32  # tokens
_MOST_ROWS = 32  # in a pass
_MEASURED_ROWS = 4  # in a step whose time is taken

Ask = Callable[[str, Any, Callable[[str], Any]], Any]
"""Asks a question: its text, the default, and what reads an answer and raises InputError. Returns what was read."""


@dataclass(frozen=True)
class Chosen:
    """What the file is made of. given: nested settings from the command line; they were not asked for."""

    source: Path
    name: str
    tasks: Sequence[Task]
    lengths: Lengths
    template: str
    given: dict[str, Any]
    model: str
    method: str
    max_length: int
    epochs: int
    memory: int | None
    contrast: bool
    rows_at_once: int | str

    @property
    def train_rows(self) -> int:
        """Over all tasks."""
        return sum(len(task.rows["train"]) for task in self.tasks)


def init(
    source: Path, out: Path, overrides: Sequence[str], *, ask: Ask, say: Callable[[str], None], timed: bool = True
) -> Chosen:
    """Write the configuration for the rows in `source` to the file `out`.

    overrides: `key=value` settings, which are written as given. timed: measure how fast this machine trains.
    Raises InputError, with nothing written, where the rows cannot be read or a setting cannot be.
    """
    given = _given(overrides)
    start = load_config(source, overrides)
    tasks = load_tasks(start.data)
    for line in described(tasks):
        say(line)
    chosen = _ask_all(source, start, tasks, given, ask=ask, say=say)
    place = _place(source, out)
    text = settings_file(_head(out, chosen, ""), list(_settings(chosen, place)), given)
    write_atomic(out, text)
    try:
        config = load_config(out)
    except InputError:
        out.unlink()
        raise
    if timed:
        spent = _estimated(config, chosen, say)
        write_atomic(out, settings_file(_head(out, chosen, spent), list(_settings(chosen, place)), given))
        say(f"the run takes {spent}")
    return chosen


def _given(overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of the command line, nested. Raises InputError for what is no setting, or a second place."""
    given: dict[str, Any] = {}
    apply_overrides(given, overrides)
    for section in ("model", "method"):
        if isinstance(given.get(section), str):
            given[section] = {"name": given[section]}
    if "path" in given.get("data", {}):
        raise InputError("data.path: DATA says where the rows are; leave it out")
    return given


def described(tasks: Sequence[Task]) -> Iterator[str]:
    """What the data is, a few lines for each task."""
    for task in tasks:
        rows = ", ".join(f"{len(task.rows[split]):,} {split}" for split in SPLITS if split in task.rows)
        choices = f" with {len(task.choices)} choices ({plain(', '.join(task.choices), 60)})" if task.choices else ""
        yield f"{plain(task.name)}: {rows} rows; metric {task.metric}{choices}, inferred from the training answers"
        for level, text in reading_notes(task):
            yield f"  {'warning: ' if level == 'warning' else ''}{plain(text)}"


def _ask_all(
    source: Path, start: Config, tasks: Sequence[Task], given: dict[str, Any], *, ask: Ask, say: Callable[[str], None]
) -> Chosen:
    def asked(key: str, question: str, default: Any, read: Callable[[str], Any]) -> Any:
        section, _, name = key.partition(".")
        held = given.get(section)
        if isinstance(held, dict) and name in held:
            return held[name]
        return ask(question, default, read)

    def tokenizer_of(name: str) -> tuple[str, Any]:
        return name, load_tokenizer(start.model.model_copy(update={"name": name}))

    model = asked(
        "model.name", "Base model: an alias, a hub id or a folder", start.model.name, lambda name: tokenizer_of(name)[0]
    )
    encoder = Encoder(tokenizer_of(model)[1], start.data)
    lengths = Lengths.of(tasks, encoder)
    say(
        f"tokens of prompt and answer: half of the rows up to {lengths.percentile(50):,}, 95 % up to "
        f"{lengths.percentile(95):,}, the longest {max(lengths.wholes):,}; {encoder.described}"
    )
    method = asked("method.name", "Method (`ilora list methods`)", _usual_method(lengths), _known_method)
    length = asked("data.max_length", "Tokens of a row; a longer prompt is cut", lengths.suggested, _whole(16))
    epochs = asked("training.epochs", "Epochs", start.training.epochs, _whole(1))
    memory = None
    if "memory_size" in method_class(method).Config.model_fields:
        rows = sum(len(task.rows["train"]) for task in tasks)
        usual = max(_LEAST_MEMORY, round(_MEMORY * rows))
        memory = asked("method.memory_size", "Rows of earlier tasks in the replay memory", usual, _whole(0))
    beside = bool(given["contrast"]) if "contrast" in given else None
    if beside is None:
        question = "Train plain fine-tuning beside it, to see what would be forgotten?"
        beside = method != "sequential" and ask(question, len(tasks) > 1, _yes_or_no)
    at_once = "auto" if torch.accelerator.is_available() else _rows_at_once(lengths)
    return Chosen(
        source, start.name, tasks, lengths, encoder.config.template, given, model, method, length, epochs, memory,
        beside, at_once,
    )  # fmt: skip


def _usual_method(lengths: Lengths) -> str:
    """What the measurements favour; they have short answers only."""
    return "ilora+" if max(lengths.answers) <= _LONG_ANSWER else "er"


def _rows_at_once(lengths: Lengths) -> int:
    """Rows of a pass on a CPU: a power of two, so that a pass has at most about TOKENS_ON_CPU tokens."""
    fit = max(1, TOKENS_ON_CPU // lengths.percentile(95))
    return min(_MOST_ROWS, 1 << (fit.bit_length() - 1))


def _known_method(name: str) -> str:
    method_class(name)
    return name


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise InputError(f"{text!r}: a whole number of at least {least} is expected")
        return int(text)

    return read


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("y", "yes", "n", "no"):
        raise InputError(f"{text!r}: yes or no is expected")
    return text.lower().startswith("y")


def _place(source: Path, out: Path) -> str:
    """Where the rows lie: relative to the file's folder where they are below it, so that both can move together."""
    rows, home = source.resolve(), out.parent.resolve()
    return rows.relative_to(home).as_posix() if rows != home and rows.is_relative_to(home) else str(source.absolute())


def _estimated(config: Config, chosen: Chosen, say: Callable[[str], None]) -> str:
    """How long the run takes here, in words: a few small steps are measured, and evaluation counts half as much."""
    say(f"measuring how fast this machine trains {config.model.name} (--no-time leaves it out)")
    few = config.training.model_copy(update={"micro_batch_size": min(_MEASURED_ROWS, config.training.rows_at_once)})
    usual = min(chosen.lengths.percentile(50), chosen.max_length)
    (speed,) = tokens_per_second(config.model_copy(update={"training": few}), [usual])
    whole, length = resolve(config, list(chosen.tasks)), chosen.lengths.mean(chosen.max_length)
    training = chosen.epochs * chosen.train_rows * length / speed
    tested = sum(len(task.rows.get(config.evaluation.split, ())) for task in chosen.tasks)
    evaluation = (len(chosen.tasks) + 1) / 2 * tested * length / (2 * speed)
    found = training * passes(whole) + evaluation
    beside = sum(training * passes(whole.beside(method)) + evaluation for method in config.contrast)
    more = f", and {duration(beside)} for the contrast run" if beside else ""
    return f"about {duration(found)}{more}, at {speed:,.0f} tokens/s"


def _head(out: Path, chosen: Chosen, spent: str) -> Iterator[str]:
    yield f"{chosen.name}: written by `ilora init {chosen.source}`"
    yield f"Start it with `ilora run {out}`. `ilora config show {out}` prints every other setting with its default."
    yield ""
    for task in chosen.tasks:
        rows = "/".join(f"{len(task.rows.get(split, ())):,}" for split in SPLITS)
        yield f"{task.name}: {rows} rows (train/eval/test), metric {task.metric}, {len(task.choices) or 'no'} choices"
    cores = os.cpu_count()
    device = "a GPU" if torch.accelerator.is_available() else f"{cores} CPU cores"
    yield f"A run takes {spent or 'a time that was not measured'} (where this was written: {device})"


def _settings(chosen: Chosen, place: str) -> Iterator[Setting]:
    """The file's lines, in order."""
    yield Setting("name", chosen.name, "the run goes into runs/<name>, unless --out says otherwise")
    yield Setting("seed", 0, "another seed gives another order of the rows; several show how far scores vary", off=True)
    if "contrast" not in chosen.given:
        why = "plain fine-tuning beside it shows what would be forgotten; it takes its own time"
        yield Setting("contrast", ["sequential"], why, off=not chosen.contrast)
    yield from _of_model(chosen)
    yield from _of_data(chosen, place)
    yield from _of_method(chosen)
    yield from _of_training(chosen)
    yield Setting("evaluation.split", "test", "eval: while you still choose settings", off=True)
    yield Setting("evaluation.merge", True, "faster answers where the model is not quantized", off=True)
    yield Setting(
        "keep.trajectory", "none", "a smaller folder; `ilora connect` then draws no way within tasks", off=True
    )
    yield Setting("keep.adapters", "last", "a smaller folder; only the last task's adapters stay", off=True)


def _of_model(chosen: Chosen) -> Iterator[Setting]:
    small = "small enough for a CPU; a larger model answers better" if chosen.model in ALIASES else "as you chose"
    yield Setting("model.name", chosen.model, f"{small}; Qwen/Qwen3-0.6B or a folder can stand here")
    yield Setting("model.quantization", "4bit", "for a model that does not fit into the GPU's memory", off=True)
    yield Setting("adapter.r", 8, "the adapter's rank: how much it can learn, and its size")
    yield Setting("adapter.target_modules", "all-linear", "learns more than attention alone (auto)")
    yield Setting("adapter.dropout", 0.05, "0.0 makes a step independent of how rows are batched", off=True)


def _of_data(chosen: Chosen, place: str) -> Iterator[Setting]:
    yield Setting("data.path", place, "counts from the folder of this file, unless it begins with /")
    names = [task.name for task in chosen.tasks]
    if len(names) > 1:
        yield Setting("data.tasks", names, "all tasks, in this order; name some, or change the order", off=True)
    cut = chosen.lengths.cut(chosen.max_length)
    reason = f"tokens of prompt and answer: cuts {cut:.1%} of the prompts (under {FEW:.0%} is aimed at), no answer"
    if chosen.max_length <= max(chosen.lengths.answers):
        reason = f"tokens; the longest answer has {max(chosen.lengths.answers):,}, and an answer is never cut: raise it"
    yield Setting("data.max_length", chosen.max_length, reason)
    if max(chosen.lengths.answers) >= chosen.max_length:
        yield Setting("data.too_long", "drop", "leaves out rows whose answer alone is longer than max_length")
    yield Setting("data.template", "none", f"auto chose {chosen.template}; none: prompts as they are", off=True)
    yield Setting("data.limit", {"train": 1000}, "at most so many rows of each task, for a first try", off=True)
    if any(task.split_off for task in chosen.tasks):
        yield Setting("data.split", {"test": 0.1, "seed": 0}, "what is taken from train, which lacks a test", off=True)


def _of_method(chosen: Chosen) -> Iterator[Setting]:
    reasons = {
        "ilora+": "its scores vary least in docs/results.md, which has short answers only",
        "er": "plain replay; ilora+ has not been measured on long answers",
    }
    usual = chosen.method == _usual_method(chosen.lengths)
    yield Setting("method.name", chosen.method, reasons[chosen.method] if usual else "as you chose")
    if chosen.memory is not None:
        share = chosen.memory / max(1, chosen.train_rows)
        yield Setting(
            "method.memory_size", chosen.memory, f"rows of earlier tasks that are trained again ({share:.0%})"
        )


def _of_training(chosen: Chosen) -> Iterator[Setting]:
    yield Setting("training.epochs", chosen.epochs, "passes over each task; fewer forget less, more learn more")
    yield Setting("training.learning_rate", 2e-4, "usual for LoRA; a small model may take 1e-3", off=True)
    yield Setting("training.global_batch_size", 16, "rows of a step; it changes the result", off=True)
    why = (
        "by tokens, as many as fit"
        if chosen.rows_at_once == "auto"
        else f"rows of a pass, about {TOKENS_ON_CPU:,} tokens: more are not faster on a CPU; it changes no result"
    )
    yield Setting("training.micro_batch_size", chosen.rows_at_once, why)
    yield Setting("training.checkpoint_every", 50, "steps between states from which a resume goes on", off=True)
