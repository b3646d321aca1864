"""What `ilora prune` does: show what a run need not keep, how much that frees and what it costs; then delete it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from ilora.comparison.budget import size
from ilora.config import load_config
from ilora.early import rule_of
from ilora.files import locked
from ilora.keeping import KeepConfig
from ilora.methods import method_class
from ilora.present.numbers import plain
from ilora.releases.opening import open_run
from ilora.report.html import write_report
from ilora.results.reader import matrix, read_results
from ilora.training import keep
from ilora.training.checkpoint import load_latest
from ilora.training.keep import Reached, Surplus

# For each kind: why it may go, and what is not possible without it.
_TEXTS = {
    "checkpoints": ("The last one is all that `add` needs", "to go on from the one before if it gets damaged"),
    "moments": (
        "AdamW's moments; the next task begins with a new optimizer",
        "`add` with training.reset_optimizer=false",
    ),
    "trajectory": (
        "Adapters at steps within tasks, which `connect` draws",
        "these points on planes, and in distances along training",
    ),
    "adapters": ("Adapters of earlier tasks; the last task's stay", "`connect` with them, and to load them"),
    "predictions": ("They are compressed, to about a seventh", "to read them without gunzip; ilora reads both"),
    "left over": ("From a deletion that was cut short, or damaged checkpoints that were set aside", "nothing"),
}


@dataclass(frozen=True)
class Part:
    """What would go of one method's run: of the run itself, or of a contrast run. Nothing has changed yet.

    trouble: that its checkpoints are left alone, and why; empty if they are not.
    """

    folder: Path
    rule: KeepConfig
    surplus: Surplus
    moments: tuple[Path, ...]
    left_over: tuple[Path, ...]
    trouble: str = ""

    @property
    def kinds(self) -> Iterator[tuple[str, tuple[Path, ...]]]:
        """Every kind of which something goes, with its files and folders."""
        found = {
            "checkpoints": self.surplus.checkpoints,
            "moments": tuple(file for file in self.moments if file.parent not in self.surplus.checkpoints),
            "trajectory": self.surplus.trajectory,
            "adapters": self.surplus.adapters,
            "predictions": self.surplus.predictions,
            "left over": self.left_over,
        }
        return ((kind, paths) for kind, paths in found.items() if paths)


def plan(run: Path, changes: Sequence[str] = ()) -> list[Part]:
    """What would go of a run and of its contrast runs. changes: to its rule `keep`.

    A run without such a rule, of an older version, is measured by the defaults. Raises InputError where it is no run,
    or one without any results.
    """
    rule = rule_of(run, changes)
    open_run(run, write_report)
    contrast = (file.parent for file in sorted(run.glob("contrast/*/config.yaml")))
    return [_part(folder, rule) for folder in (run, *contrast) if (folder / "results.json").is_file()]


def _part(folder: Path, rule: KeepConfig) -> Part:
    config, results = load_config(folder / "config.yaml"), read_results(folder)
    answering, method = str(results["answers_with"]), method_class(config.method.name)
    phases, left_over = len(matrix(results, answering)), keep.left_behind(folder)
    found, damaged = load_latest(folder / "checkpoints")
    position = found.values["position"] if found else {"ended": True, "phase": phases}
    # Not so where a task is being added: its checkpoint stands within it, though the results are complete.
    complete = bool(results.get("complete") and position["ended"] and position["phase"] == phases)
    reached = Reached(phases, complete, answering, method.one_adapter_answers)
    sound = found is not None and not damaged
    surplus = keep.surplus(folder, rule, reached, checkpoints_too=sound)
    if not complete:
        return Part(folder, rule, surplus, (), tuple(left_over))
    if not sound:
        why = "; ".join(damaged.values()) or f"there is none in {folder / 'checkpoints'}"
        return Part(folder, rule, surplus, (), tuple(left_over), f"checkpoints are left alone: {why}")
    left_over += sorted(folder.glob("checkpoints/damaged-*"))
    moments = keep.needless_moments(folder, rule, config, fresh_start=method.fresh_start)
    return Part(folder, rule, surplus, tuple(moments), tuple(left_over))


def prune(run: Path, changes: Sequence[str] = ()) -> int:
    """Delete what `plan` finds; returns the bytes by which the folder became smaller, 0 where it did not.

    It does not where a file was shared with a release, which keeps it, or is so small that compressed it is larger.

    Killed anywhere, it leaves a run that can be read and resumed. Raises InputError while a process works on the run.
    """
    open_run(run, write_report)
    with locked(run, what="run"):
        before = disk_bytes([run])
        for part in plan(run, changes):
            keep.finish_dropping(part.folder)
            keep.drop(part.folder, part.surplus)
            keep.delete(part.folder, [path for path in part.left_over if path.exists()])
            if part.moments:
                keep.write_without_moments(part.folder, part.rule)
        return max(0, before - disk_bytes([run]))


def disk_bytes(paths: Iterable[Path]) -> int:
    """Bytes that deleting these files and folders frees: one with another name elsewhere counts nothing."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    links = Counter((info.st_dev, info.st_ino) for info in map(Path.lstat, files))
    found = {(info.st_dev, info.st_ino): info for info in map(Path.lstat, files)}
    return sum(info.st_size for key, info in found.items() if links[key] >= info.st_nlink)


def prune_table(run: Path, parts: Sequence[Part]) -> Table:
    """A row for each kind and method with its files and bytes; then why each kind can go, and what it costs."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("what", "of", "files", "bytes"):
        table.add_column(column, justify="right" if column in ("files", "bytes") else "left")
    reasons = Table.grid(padding=(0, 1))
    for part in parts:
        of = part.folder.relative_to(run).as_posix()
        for kind, paths in part.kinds:
            files = sum(1 if path.is_file() else sum(one.is_file() for one in path.rglob("*")) for path in paths)
            cells = (kind, plain("the run" if of == "." else of, 40), f"{files:,}", size(disk_bytes(paths)))
            table.add_row(*map(Text, cells))
    for kind in dict.fromkeys(kind for part in parts for kind, _ in part.kinds):
        why, lost = _TEXTS[kind]
        reasons.add_row(Text(kind, style="bold"), Text(f"{why}. No longer possible then: {lost}."))
    whole = Table.grid(padding=0)
    whole.add_row(table)
    whole.add_row(reasons)
    return whole


def summary(run: Path, parts: Sequence[Part]) -> list[str]:
    """The lines below the table: what is left alone, and how large the folder is and would be."""
    deleted = [path for part in parts for kind, paths in part.kinds if kind != "predictions" for path in paths]
    smaller = any(part.surplus.predictions for part in parts)
    frees, now = disk_bytes(deleted), disk_bytes([run])
    lines = [part.trouble for part in parts if part.trouble]
    more = ", and compressed predictions" if smaller else ""
    return [*lines, f"{size(frees)} of {size(now)} would go{more}; releases and adapters elsewhere stay as they are"]
