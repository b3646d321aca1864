"""RUN/releases/<n>/ and RUN/current: which releases a run has, which one is current, and reading one.

    RUN/current                    a symbolic link to the current release
    RUN/releases/<n>/manifest.json size and SHA-256 of every file below
                     adapter/      the adapter that answers, an ordinary PEFT folder (adapters/ for methods without one)
                     card.md       the release for people to read
                     scores.json   results.json as it was
                     config.yaml   as it was
                     data.json     the fingerprint of every task's rows
                     state/        the checkpoint at the phase's end: memory, method and optimizer
                     contrast/<method>/  state/, scores.json and config.yaml of each contrast run

Nothing in a release folder is ever changed, but for one thing: `ilora forget` deletes the rows of a task from it, and
the manifest says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilora.errors import InputError
from ilora.files import flush_folder, pending_file
from ilora.releases.manifest import Manifest, read_manifest, verify
from ilora.results.reader import Results, check_results, read_text

if TYPE_CHECKING:
    from ilora.model.identity import BaseModel


@dataclass(frozen=True)
class Release:
    """A release whose every file is as it was when it was made."""

    folder: Path
    manifest: Manifest

    @property
    def number(self) -> int:
        """Its number in the run."""
        return self.manifest.number

    @property
    def adapter(self) -> Path | None:
        """The PEFT folder of the adapter that answers; None for a method that has no such thing."""
        return None if self.manifest.adapter is None else self.folder / self.manifest.adapter

    @property
    def config(self) -> Path:
        """The run's configuration at that moment, a YAML file."""
        return self.folder / "config.yaml"

    @property
    def state(self) -> Path:
        """The checkpoint at the end of its last phase."""
        return self.folder / "state"

    def scores(self) -> Results:
        """results.json at that moment, checked."""
        path = self.folder / "scores.json"
        return check_results(json.loads(read_text(path)), str(path))

    def data(self) -> list[dict[str, Any]]:
        """For every task its name, label, number of rows, source, `fingerprint` and `train_sha256`."""
        found: list[dict[str, Any]] = json.loads(read_text(self.folder / "data.json"))
        return found

    def refuse_other_model(self, base: BaseModel | None, tokenizer: Any = None) -> None:
        """Raises InputError where a loaded base model or tokenizer is not the one that the release was made with."""
        from ilora.model.identity import tokenizer_sha256  # here, because it imports torch

        then, place = self.manifest.base, f"{self.folder}: made with the base model"
        if then and base and then["weights_sha256"] != base.weights_sha256:
            raise InputError(
                f"{place} {then['name']} (weights {then['weights_sha256'][:12]}…); "
                f"{base.name} has other weights ({base.weights_sha256[:12]}…)"
            )
        known = self.manifest.tokenizer_sha256
        if known and tokenizer is not None and tokenizer_sha256(tokenizer) != known:
            raise InputError(f"{self.folder}: made with another tokenizer than the one that was loaded")


def release_folder(run: Path, number: int) -> Path:
    """Where a release lies."""
    return run / "releases" / str(number)


def is_number(name: str) -> bool:
    """Whether a folder's name is a number from 1 on, in plain digits."""
    return re.fullmatch(r"[1-9][0-9]*", name) is not None


def numbers(run: Path) -> list[int]:
    """The numbers of all releases, those that a rollback left behind included, in order."""
    found = (run / "releases").glob("[0-9]*")
    return sorted(int(path.name) for path in found if is_number(path.name) and path.is_dir())


def list_releases(run: Path) -> list[Manifest]:
    """The manifests of all releases in order, those that a rollback left behind included.

    Raises InputError for a damaged manifest; the releases' other files are not looked at, `read_release` does.
    """
    return [read_manifest(release_folder(run, number)) for number in numbers(run)]


def current(run: Path) -> int | None:
    """The number of the current release; None where there is none yet.

    Raises InputError where RUN/current is no link to a release, or is missing though there are releases.
    """
    link = run / "current"
    if not link.is_symlink():
        known = numbers(run)
        if link.exists():
            raise InputError(f"{link}: must be a symbolic link to a release; put it back: {_how_to_link(run, known)}")
        if known and not pending_file(run).exists():
            raise InputError(f"{link} is missing, though there are releases; put it back: {_how_to_link(run, known)}")
        return None
    place = link.readlink()
    if place.parent != Path("releases") or not is_number(place.name) or not link.is_dir():
        raise InputError(f"{link}: leads to {place}, which is no release of this run")
    return int(place.name)


def _how_to_link(run: Path, known: Sequence[int]) -> str:
    last = known[-1] if known else "N"
    return f"ln -s releases/{last} {run / 'current'} (releases/history.jsonl says which one was current)"


def read_release(run: Path, number: int | None = None) -> Release:
    """A release, by default the current one.

    Raises InputError where there is no such release, or one of its files is extra, missing or changed.
    """
    number = current(run) if number is None else number
    if number is None:
        raise InputError(f"{run}: no release yet; `ilora promote {run}` makes the last finished phase the first one")
    folder, known = release_folder(run, number), numbers(run)
    if number not in known:
        there = f"there are {', '.join(map(str, known))}" if known else "there is none yet"
        raise InputError(f"{run}: no release {number}; {there}")
    try:
        manifest = read_manifest(folder)
        if manifest.number != number:
            raise InputError(f"{folder}: it is release {manifest.number}, under another number")
        verify(folder, manifest)
    except InputError as error:
        raise InputError(f"{error}. {_way_out(run, number)}") from None
    return Release(folder, manifest)


def _way_out(run: Path, damaged: int) -> str:
    """What can be done about a damaged release."""
    others = ", ".join(str(number) for number in numbers(run) if number != damaged)
    link = run / "current"
    if not (link.is_symlink() and link.readlink().name == str(damaged)):
        return f"Put its files back from a copy, or move the folder away; releases {others} can be used without it"
    anew = f"`ilora promote {run}` makes one of the last phase anew"
    back = f", and `ilora rollback {run} --to N` goes back to another ({others})" if others else ""
    return f"Put its files back from a copy; without one, {anew}{back}"


def point_to(run: Path, number: int) -> None:
    """Make a release the current one: a new link is renamed over the old one."""
    scratch = run / ".current-writing"
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(Path("releases") / str(number), target_is_directory=True)
    scratch.replace(run / "current")
    flush_folder(run)


def refuse_without_links(run: Path) -> None:
    """Raises InputError where the file system knows no symbolic links: `current` is one."""
    scratch = run / ".current-writing"
    scratch.unlink(missing_ok=True)
    try:
        scratch.symlink_to("releases", target_is_directory=True)
    except (OSError, NotImplementedError) as error:
        raise InputError(
            f"{run}: its file system has no symbolic links ({error}), and {run / 'current'} is one; "
            "move the run to one that has"
        ) from None
    scratch.unlink()
