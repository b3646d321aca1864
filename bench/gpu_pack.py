"""Sweeps on one card in slices of time, which may be cut off at any moment and go on, also on another machine.

    python bench/gpu_pack.py DATA --model NAME_OR_FOLDER [--minutes 10] [--out sweeps/gpu] [--drop] [key=value ...]

DATA has a folder for each sweep file, of its name: mixed/ (bench/mixed.py makes it) and eight/ (TRACE's form). A slice
goes on with the first run that is not finished. Before its time is over, the run at work writes a checkpoint, and what
is finished goes into OUT/<sweep>.json, the evidence that `ilora compare` reads and merges. Exit code 0: all runs are
done; 75: the same command goes on; 1: runs failed, which the same command tries again; 2: bad input.

With --drop a finished run's folder is deleted once its evidence is written: OUT then stays small, and is all that has
to be carried to the next machine, to the same path there, with data and model under the same paths, too.
"""

from __future__ import annotations

import argparse
import glob
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ilora.commands.compare import compare
from ilora.commands.sweep import RunsFailed, sweep
from ilora.comparison.evidence import read_evidence
from ilora.errors import InputError
from ilora.sweeps.book import Book, Entry
from ilora.sweeps.plan import expand, read_sweep

SWEEPS = [Path(__file__).parents[1] / "configs" / "sweeps" / "gpu" / f"{name}.yaml" for name in ("mixed", "eight")]
MORE_TO_DO = 75  # EX_TEMPFAIL of sysexits.h


class TimeUp(Exception):
    """The slice has no time left for training."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the block when so much time has gone by: as Ctrl-C ends it, which the runs know how to obey."""
    rung: list[int] = []

    def ring(number: int, _frame: FrameType | None) -> None:
        rung.append(number)
        signal.raise_signal(signal.SIGINT)

    if seconds <= 0:
        raise TimeUp
    before = signal.signal(signal.SIGALRM, ring)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts `command &` with it ignored
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except KeyboardInterrupt:
        if not rung:
            raise
        raise TimeUp from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, ctrl_c)


@dataclass(frozen=True)
class Pack:
    """One sweep of the pack. overrides: of its runs' settings. only: shell patterns of the runs that are wanted."""

    file: Path
    out: Path
    overrides: Sequence[str]
    only: Sequence[str]
    drop: bool

    @property
    def folder(self) -> Path:
        """The sweep's."""
        return self.out / self.file.stem

    @property
    def evidence(self) -> Path:
        """What its finished runs leave."""
        return self.out / f"{self.file.stem}.json"

    def wanted(self) -> list[Entry]:
        """The runs that the pack is to make, with their states."""
        return Book(self.folder, expand(read_sweep(self.file, self.overrides), self.file)).matching(self.only)

    def saved(self) -> set[str]:
        """Names (`<label>/<order>-<seed>...`) of the runs in the evidence."""
        return {ending(Path(run.name)) for run in read_evidence(self.evidence)} if self.evidence.exists() else set()

    def left(self) -> list[str]:
        """Names of the wanted runs that are neither finished nor in the evidence."""
        saved = self.saved()
        names = {ending(entry.path): entry for entry in self.wanted()}
        return [name for name, entry in names.items() if entry.state != "done" and name not in saved]

    def train(self, names: Sequence[str], **at_once: int | None) -> None:
        """Make these runs. at_once: how many together, as `sweep` takes it. Raises RunsFailed when all have ended and
        some have failed.
        """
        patterns = [glob.escape(name) for name in names]
        sweep(self.file, self.overrides, out=self.folder, only=patterns, **at_once)  # type: ignore[arg-type]

    def save(self) -> None:
        """Write the evidence of all finished runs; with `drop`, delete their folders."""
        self.clear()
        if any(entry.state == "done" for entry in self.wanted()):
            earlier = [self.evidence] if self.drop and self.evidence.exists() else []
            compare([*earlier, self.folder], save=self.evidence, out=self.out / f"{self.file.stem}-comparison")
            self.clear()

    def clear(self) -> None:
        """With `drop`, delete the finished runs that the evidence has. A kill before this leaves both."""
        if self.drop:
            saved = self.saved()
            for entry in self.wanted():
                if entry.state == "done" and ending(entry.path) in saved:
                    shutil.rmtree(entry.path)


def ending(path: Path) -> str:
    """The last two parts: what `--only` patterns are compared with."""
    return "/".join(path.parts[-2:])


def work(packs: Sequence[Pack], seconds: float, **at_once: int | None) -> int:
    """One slice, `seconds` of it for training; returns the exit code."""
    until, failed = time.monotonic() + seconds, False
    try:
        for pack in packs:
            pack.clear()
            if names := pack.left():
                with at_most(until - time.monotonic()):
                    try:
                        pack.train(names, **at_once)
                    except RunsFailed as error:
                        failed = True
                        print(error, file=sys.stderr)
    except TimeUp:
        pass
    for pack in packs:
        pack.save()
    counts = [len(pack.left()) for pack in packs]
    for pack, count in zip(packs, counts, strict=True):
        print(f"{pack.file.stem}: {len(pack.saved())} runs in {pack.evidence}, {count} to do")
    return 1 if failed else MORE_TO_DO if any(counts) else 0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with a folder for each sweep")
    parser.add_argument("settings", nargs="*", help="key=value, of every run")
    parser.add_argument("--model", help="name or folder, in place of the files'")
    parser.add_argument("--minutes", type=float, default=10, help="of the slice (default 10)")
    parser.add_argument("--spare", type=float, default=1.5, help="minutes of it for the end: stopping, evidence")
    parser.add_argument("--out", type=Path, default=Path("sweeps/gpu"))
    parser.add_argument("--sweeps", type=Path, nargs="+", default=SWEEPS, help="other sweep files")
    parser.add_argument("--only", action="append", default=[], help="as in `ilora sweep`, for instance '*/*-1'")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, as in `ilora sweep`")
    parser.add_argument("--together", type=int, help="runs in one process and one pass, as in `ilora sweep`")
    parser.add_argument("--drop", action="store_true", help="delete finished runs once their evidence is written")
    return parser.parse_intermixed_args()


def main() -> int:
    """The slice that the command line asks for."""
    chosen = arguments()
    if not 0 <= chosen.spare < chosen.minutes:
        raise InputError(
            f"--minutes {chosen.minutes:g}: allowed is more than --spare ({chosen.spare:g}), which is 0 or more"
        )
    began = time.monotonic()
    model = [f"model.name={chosen.model}"] if chosen.model else []
    packs = [
        Pack(
            file,
            chosen.out,
            [f"data.path={chosen.data / file.stem}", *model, *chosen.settings],
            chosen.only,
            chosen.drop,
        )
        for file in chosen.sweeps
    ]
    for pack in packs:  # bad input ends the slice before its first run
        pack.wanted()
    seconds = (chosen.minutes - chosen.spare) * 60 - (time.monotonic() - began)
    return work(packs, seconds, processes=chosen.processes, together=chosen.together)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except InputError as error:
        print(f"gpu_pack: {error}", file=sys.stderr)
        raise SystemExit(2) from None
