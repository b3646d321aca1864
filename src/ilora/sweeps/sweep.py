"""`ilora sweep`: start runs as there is room, note how they end, go on where an earlier call stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ilora.progress import Bar, Display
from ilora.sweeps.book import Book, Entry, busy, last_words
from ilora.sweeps.local import Executor
from ilora.sweeps.shares import NO_ROOM

_INTERRUPTED = 130


def execute(book: Book, chosen: Sequence[Entry], executor: Executor, *, display: Display) -> None:
    """Every chosen run that is not done. One that fails is noted, the others go on. Ctrl-C stops all, resumably."""
    open_runs = [entry for entry in chosen if entry.state != "done"]
    for entry in open_runs:
        entry.state = "waiting"
    waiting, view = deque(open_runs), _View(display, book)
    running = 0
    with view:
        try:
            while waiting or running:
                for _ in range(len(waiting)):
                    entry = waiting.popleft()
                    # Busy: by a process that outlived its sweep, and is about to end.
                    if not executor.has_room(entry) or busy(entry.path):
                        waiting.append(entry)
                        continue
                    executor.start(entry)
                    entry.state, running = "running", running + 1
                    book.write()
                for entry, code in executor.ended():
                    running -= 1
                    if code == NO_ROOM and executor.has_more(entry):
                        entry.state = "waiting"
                        waiting.append(entry)
                    else:
                        _note_end(entry, code)
                    view.ended(entry)
                    book.write()
                view.look()
        except BaseException:
            display.say("stopping: each run ends its step and writes a checkpoint")
            executor.stop()
            for entry in book.entries:
                if entry.state == "running":
                    entry.state = "waiting"
                    entry.look()
            book.write()
            raise


def _note_end(entry: Entry, code: int) -> None:
    entry.fail("interrupted" if code == _INTERRUPTED else f"exit code {code}: {last_words(entry.log)}")
    entry.look()


class _View:
    """A bar for the sweep and one for each run at work; without a terminal a line for each that ends."""

    def __init__(self, display: Display, book: Book) -> None:
        self.display, self.book = display, book
        self._held = ExitStack()
        self._bars: dict[Path, tuple[ExitStack, Bar, int]] = {}

    def __enter__(self) -> None:
        done, total = self.book.count("done"), len(self.book.entries)
        if done:
            self.display.say(f"{done} of {total} runs are done already")
        self._whole = self._held.enter_context(self.display.bar("sweep", total, done=done))

    def __exit__(self, *_: object) -> None:
        for held, _bar, _at in self._bars.values():
            held.close()
        self._held.close()

    def look(self) -> None:
        """Where each running one is."""
        for entry in self.book.entries:
            if entry.state != "running":
                continue
            if entry.path not in self._bars:
                held = ExitStack()
                phases = 1 if entry.job.config.stream == "joint" else len(entry.job.config.data.tasks or ())
                bar = held.enter_context(self.display.bar(f"  {entry.job.title}", phases))
                self._bars[entry.path] = (held, bar, 0)
            held, bar, before = self._bars[entry.path]
            now, note = entry.position
            bar.advance(now - before, note=note)
            self._bars[entry.path] = (held, bar, now)

    def ended(self, entry: Entry) -> None:
        """Say so."""
        if entry.path in self._bars:
            self._bars.pop(entry.path)[0].close()
        counted = f"{self.book.count('done')} of {len(self.book.entries)} done"
        if entry.state == "waiting":
            self.display.say(f"{entry.job.title}: needs more of a GPU's memory, waits until others have ended")
            return
        if entry.state == "done":
            self.display.say(f"{entry.job.title}: done in {entry.seconds:.0f} s; {counted}")
        else:
            self.display.say(f"{entry.job.title}: failed, {entry.error} ({entry.log})")
        self._whole.advance(note=counted)
