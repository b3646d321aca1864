"""A sweep's runs as threads of this process, whose passes go through one copy of the base model together."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

from ilora.config import Config
from ilora.errors import IloraError
from ilora.model.gpu import stands_still
from ilora.model.load import GivenModel, load_model
from ilora.model.shared import SharedModel
from ilora.model.together import Meeting, go_round
from ilora.model.turns import Player
from ilora.sweeps.book import Entry
from ilora.training.interrupt import StopRequest, stop_all
from ilora.training.processes import joined

_AT_A_TIME = 1.0  # seconds of work before the sweep looks around


class Together:
    """Runs that take turns; each joint pass is computed here, between their turns.

    run, resume: `runner.run` and `runner.resume`.
    """

    def __init__(self, places: int, *, run: Callable[..., Any], resume: Callable[..., Any]) -> None:
        self.places = places
        self._begin, self._go_on = run, resume
        self._players: list[tuple[Entry, Player]] = []
        self._codes: dict[Path, int] = {}
        self._meetings: dict[str, Meeting] = {}

    def has_room(self, _: Entry) -> bool:
        """As `Executor.has_room`."""
        return len(self._players) < self.places

    def start(self, entry: Entry) -> None:
        """As `Executor.start`."""
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        player = Player(partial(self._perform, entry), around=partial(_said_to, entry.log))
        self._players.append((entry, player))

    def ended(self) -> list[tuple[Entry, int]]:
        """As `Executor.ended`. Raises KeyboardInterrupt after a signal, the runs asked to stop."""
        until = time.monotonic() + _AT_A_TIME
        with StopRequest(notify=lambda _: stop_all()) as stop:
            while not (over := self._over()) and time.monotonic() < until and not stop.requested:
                self._go_round()
        stop.check()
        return over

    def has_more(self, _: Entry) -> bool:
        """As `Executor.has_more`: all have all of it."""
        return False

    def stop(self) -> None:
        """As `Executor.stop`."""
        while self._players:
            stop_all()  # also those that were loading when the first signal came
            self._go_round()
            self._over()

    def _over(self) -> list[tuple[Entry, int]]:
        for player in (player for _, player in self._players if player.over):
            for meeting in self._meetings.values():
                meeting.left(player)
        over = [(entry, self._codes.pop(entry.path)) for entry, player in self._players if player.over]
        self._players = [pair for pair in self._players if not pair[1].over]
        return over

    def _go_round(self) -> None:
        go_round([player for _, player in self._players], self._meetings.values())

    def _perform(self, entry: Entry) -> None:
        self._codes[entry.path] = _exit_code(partial(self._work, entry))

    def _work(self, entry: Entry) -> None:
        model = self._model(entry)
        if entry.begun:
            self._go_on(entry.path, model=model, quiet=True)
        else:
            self._begin(entry.config_file, entry.path, model=model, quiet=True)

    def _model(self, entry: Entry) -> SharedModel | None:
        """The run's copy of the base; None: it loads one of its own, whose weights it changes or cannot share."""
        config = entry.job.config
        if config.model.quantization != "none" or config.model.liger or config.evaluation.merge:
            return None
        (player,) = (player for other, player in self._players if other is entry)
        return SharedModel.at(self._meeting(config), player)

    def _meeting(self, config: Config) -> Meeting:
        key = f"{config.data.max_length} {config.model.model_dump_json()}"  # what the model is prepared by
        if key not in self._meetings:
            model, tokenizer = load_model(config.model, max_length=config.data.max_length, device=joined().device)
            recorded = config.model.graphs == "auto" and stands_still(model, config.model)
            self._meetings[key] = Meeting(GivenModel(model, tokenizer), recorded=recorded)
        return self._meetings[key]


@contextmanager
def _said_to(log: Path) -> Iterator[None]:
    """Inside the block, what is said on standard error stands in the run's log."""
    with log.open("a", encoding="utf-8") as file, redirect_stderr(file):
        yield


def _exit_code(act: Callable[[], None]) -> int:
    """Do it, as the command of a run does: an error is a message, and a code."""
    try:
        act()
    except KeyboardInterrupt as error:
        return _failed("interrupted", error, 130)
    except IloraError as error:
        return _failed(str(error), error, error.code)
    except OSError as error:
        return _failed(f"{error.filename or 'file system'}: {error.strerror or error}", error, 1)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _failed(message: str, error: BaseException, code: int) -> int:
    print("\n".join([f"ilora: {message}", *getattr(error, "__notes__", [])]), file=sys.stderr)
    return code
