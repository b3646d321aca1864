"""Going back: the run folder becomes what it was at an earlier release, and what came later is set aside.

Nothing is deleted: later adapters, predictions, checkpoints and the files of before lie in releases/withdrawn/<k>/, at
the paths that they had in the run. Every step looks at what is there, so that it may be repeated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ilora.errors import InputError
from ilora.files import flush_folder, flush_tree, link_or_copy, write_atomic
from ilora.releases import journal
from ilora.releases.candidate import places
from ilora.releases.journal import Pending, line
from ilora.releases.manifest import read_manifest
from ilora.releases.promotion import entries
from ilora.releases.server import Server, retire
from ilora.releases.store import (
    Release,
    current,
    is_number,
    numbers,
    point_to,
    read_release,
    release_folder,
)
from ilora.training.checkpoint import newest
from ilora.training.folder import cut_metrics

MEASURED = ("connectivity", "evaluations", "general.json", "gate", "gate.json")  # of the adapters that the run had last


def prepare(run: Path, number: int | None, *, note: str, server: Server | None = None) -> Pending:
    """Check the release to go back to. number: None for the one before the current one.

    server: has loaded that release when the rollback begins, and drops the one that is left when it ends.

    Raises InputError where there is no such release, it is damaged, or the run is there already.
    """
    release = read_release(run, _chosen(run, number))
    if current(run) == release.number and _is_at(run, release):
        raise InputError(f"{run}: release {release.number} is the current one, and nothing was trained since")
    event = journal.new_event(run, "rollback", release.manifest, release.scores(), note=note, left=current(run))
    return Pending(
        what="rollback",
        number=release.number,
        withdrawn=next_place(run),
        server=server.url if server else None,
        event=event,
    )


def next_place(run: Path) -> int:
    """The number of the next folder below releases/withdrawn/."""
    taken = (run / "releases" / "withdrawn").glob("[0-9]*")
    return max((int(path.name) for path in taken if is_number(path.name)), default=0) + 1


def _chosen(run: Path, number: int | None) -> int:
    known = line(run)
    if not known:
        raise InputError(f"{run}: no release to go back to; `ilora promote {run}` makes the first one")
    if number is None:
        if len(known) == 1:
            raise InputError(
                f"{run}: release {known[0]} has none before it; --to {known[0]} drops what was trained since"
            )
        return known[-2]
    if number in numbers(run) and number not in known:
        raise InputError(
            f"{run}: release {number} was left behind by a rollback; the current one, {known[-1]}, did not come from it"
        )
    return number


def _is_at(run: Path, release: Release) -> bool:
    """Whether the run has the tasks and the state that it had at the release."""
    last = newest(run / "checkpoints")
    if last is None:
        return False
    pairs = [(run / "config.yaml", release.config), (last / "state.json", release.state / "state.json")]
    return all(here.is_file() and here.read_bytes() == then.read_bytes() for here, then in pairs)


def finish(run: Path, pending: Pending, report: Callable[[Path], object]) -> None:
    """Do all that is left of it. report: writes report.html from a run folder."""
    folder = release_folder(run, pending.number)
    kept = set(read_manifest(folder).run)
    aside = run / "releases" / "withdrawn" / str(pending.withdrawn)
    for place in places(folder):
        _set_aside(run, place, kept, aside)
        _put_back(run / place, folder / place, aside / place)
    _keep(run / "report.html", aside / "report.html")
    report(run)
    point_to(run, pending.number)
    left = (pending.event.model_extra or {}).get("left")
    if pending.server is not None and isinstance(left, int) and left != pending.number:
        retire(Server(pending.server), release_folder(run, left))
    journal.finish(run, pending)


def _set_aside(run: Path, place: str, kept: set[str], aside: Path) -> None:
    """Move what came after the release, and what was measured of it. A file may have been compressed since."""
    plain = {path.removesuffix(".gz") for path in kept}
    for entry in [*entries(run / place), *MEASURED]:
        path = f"{place}/{entry}".lstrip("/")
        if path.removesuffix(".gz") not in plain and (run / path).exists():
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (run / path).rename(aside / path)
    below = (path for path in (run / place / "predictions").rglob("*") if path.is_dir())
    for folder in sorted(below, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _put_back(here: Path, then: Path, aside: Path) -> None:
    """The checkpoint and the files of then. here: the folder of the run or of a contrast run; then: the release's."""
    aside.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "results.json", "metrics.jsonl"):
        _keep(here / name, aside / name)
    if not (aside / "checkpoints").exists() and (here / "checkpoints").exists():
        (here / "checkpoints").rename(aside / "checkpoints")
    if not (here / "checkpoints").exists():
        scratch = here / ".checkpoints-writing"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(then / "state", scratch / "000001", copy_function=_link)
        flush_tree(scratch)
        scratch.rename(here / "checkpoints")
        flush_folder(here)
    state = json.loads((then / "state" / "state.json").read_text(encoding="utf-8"))["values"]
    cut_metrics(here / "metrics.jsonl", state["counters"]["steps"])
    write_atomic(here / "results.json", (then / "scores.json").read_bytes())
    write_atomic(here / "config.yaml", (then / "config.yaml").read_bytes())


def _keep(path: Path, aside: Path) -> None:
    """Another name for a file that is about to be replaced."""
    if path.is_file() and not aside.exists():
        link_or_copy(path, aside)


def _link(source: str, target: str) -> None:
    link_or_copy(Path(source), Path(target))
