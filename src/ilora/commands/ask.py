"""What `ilora ask` does: one question, or a conversation of single questions in which the weights can be exchanged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ilora.answering.answerer import Answerer
from ilora.answering.weights import BASE, RunWeights
from ilora.connectivity.space import Adapter
from ilora.errors import InputError
from ilora.present.numbers import plain

HELP = """Every line is a question of its own: earlier ones are not remembered.
  /base            the base model without an adapter
  {variants}     a variant of the method, after the last phase
  /phase 2         the adapter after a phase, by number or label; /phase 2/{first}: a variant of it
  /t 0.4           a point between the adapters of the last two phases
  /release 3       the adapter of a release
  /side A B        two of them side by side, such as /side base {first} or /side phase:1 phase:2
  /both            the base model beside the adapter that answers now
  /help, /quit     also Ctrl-D; Ctrl-C stops an answer"""

EMPTY = "(empty answer)"


class Asking:
    """A run that is asked: the model is loaded once, `chosen` are the weights that answer, one or two."""

    def __init__(self, run: Path, *, name: str | None, max_tokens: int | None) -> None:
        """max_tokens: of an answer; None: as in the run's evaluation."""
        self.weights = RunWeights(run)
        self.limit = self.weights.longest_answer()
        self.tokens = max_tokens or self.limit
        self.chosen = [self.weights.named(name)]
        self.answerer = Answerer(self.weights.config, self.chosen[0], self.weights.named(None))
        self.console = Console(highlight=False)

    def answer(self, question: str) -> None:
        """Print the answer of each of the chosen weights as it comes."""
        if len(self.chosen) == 1:
            text, cut = self._reply(self.chosen[0], question, _write)
            print(flush=True)
            if not text.strip():  # not into a pipe, where it would be taken for the answer
                print(EMPTY, file=sys.stdout if self.console.is_terminal else sys.stderr)
        else:
            cut = self._side_by_side(question)
        if cut:
            length = self.weights.config.data.max_length
            self.console.print(f"(the question was cut: the run read at most {length} tokens)", style="dim")

    def _reply(self, adapter: Adapter, question: str, tell: Callable[[str], object]) -> tuple[str, bool]:
        """The answer, and whether the question was cut."""
        self.answerer.use(adapter)
        template = self.weights.template(adapter)
        return self.answerer.reply(question, tokens=self.tokens, limit=self.limit, template=template, tell=tell)

    def _side_by_side(self, question: str) -> bool:
        said, cut = [Text() for _ in self.chosen], False
        table = Table(expand=True)
        for adapter in self.chosen:
            table.add_column(Text(plain(adapter.label, 40)), ratio=1)
        table.add_row(*said)
        with Live(table, console=self.console, refresh_per_second=8):
            for adapter, text in zip(self.chosen, said, strict=True):
                answer, too_long = self._reply(adapter, question, partial(_append, text))
                cut = cut or too_long
                if not answer.strip():
                    text.append(EMPTY, style="dim")
        if not self.console.is_terminal:
            print()  # there, the table is without its last line end
        return cut

    def command(self, line: str) -> bool:
        """Do what a line that begins with `/` says; returns whether the conversation goes on."""
        name, *rest = line[1:].split()
        if name in ("quit", "exit", "q"):
            return False
        if name == "help":
            variants = ", ".join(f"/{variant}" for variant in self.weights.variants)
            print(HELP.format(variants=variants, first=self.weights.answering))
            return True
        self.chosen = self._chosen(name, rest)
        print(" | ".join(adapter.label for adapter in self.chosen))
        return True

    def _chosen(self, name: str, rest: list[str]) -> list[Adapter]:
        if name == "both" and not rest:
            now = self.chosen[-1] if self.chosen[-1].label != BASE else self.weights.named(None)
            return [self.weights.named(BASE), now]
        if name == "side":
            if len(rest) != 2:
                raise InputError("/side takes two names, such as /side base phase:1")
            return [self.weights.named(one) for one in rest]
        if name in ("phase", "release", "t"):
            if len(rest) != 1:
                raise InputError(f"/{name} takes one value, such as /{name} {'0.4' if name == 't' else '2'}")
            return [self.weights.named(f"{name}:{rest[0]}")]
        if not rest and name in (BASE, *self.weights.variants):
            return [self.weights.named(name)]
        raise InputError(f"unknown command {plain(name, 40)!r}; /help lists them")


def ask(run: Path, question: str | None, *, weights: str | None, max_tokens: int | None) -> None:
    """Answer a question; None: those that are typed (or piped in, one a line) until the end of the input."""
    if question is not None and not question.strip():
        raise InputError("the question is blank")
    asking = Asking(run, name=weights, max_tokens=max_tokens)
    if question is not None:
        asking.answer(question)
        return
    typed = sys.stdin.isatty()
    if typed and find_spec("readline"):
        import readline  # noqa: F401 (gives `input` its history)
    if typed:
        print(f"{asking.weights.config.model.name}, {asking.chosen[0].label}; /help says what there is")
    while _next(asking, typed=typed):
        pass


def _next(asking: Asking, *, typed: bool) -> bool:
    """Take a line; returns whether the conversation goes on."""
    try:
        line = input("> " if typed else "").strip()
        if line.startswith("/"):
            return asking.command(line)
        if line:
            asking.answer(line)
    except EOFError:
        return False
    except InputError as error:
        print(f"ilora: {error}")
    except KeyboardInterrupt:
        if not typed:
            raise
        print()
    return True


def _write(piece: str) -> None:
    sys.stdout.write(_printable(piece))
    sys.stdout.flush()


def _append(shown: Text, piece: str) -> None:
    shown.append(_printable(piece))


def _printable(text: str) -> str:
    """Untrusted text for a terminal: its lines stay, control characters do not."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
