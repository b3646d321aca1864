"""What `ilora export` does with its arguments, and the lines that it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ilora.config import load_config
from ilora.errors import InputError
from ilora.handover.card import Wishes
from ilora.handover.export import export_source
from ilora.handover.push import check, push
from ilora.handover.source import Source, from_run, with_base
from ilora.releases.store import current, read_release


@dataclass(frozen=True)
class Exported:
    """folder: what was written. address: of the commit on the hub, if it was pushed. notes: what is still missing."""

    folder: Path
    address: str | None
    notes: list[str]


def export(
    run: str | Path,
    to: str | Path,
    *,
    kind: str = "peft",
    phase: str | None = None,
    variant: str | None = None,
    release: int | None = None,
    base: str | None = None,
    licence: str | None = None,
    languages: Sequence[str] = (),
    push_to: str | None = None,
    private: bool = False,
) -> Exported:
    """Write a run's adapter into the new folder `to` with a model card, as a PEFT folder, a merged model or GGUF.

    kind: peft, merged or gguf.
    phase, variant, release: which adapter; by default the current release where there is one, else the one that answers
        after the last finished phase.
    base: the base model's hub id, OWNER/NAME[@REVISION], where the run loaded it from a folder.
    push_to: the hub's OWNER/NAME to upload it to.
    Raises InputError, with nothing written, where something does not fit.
    """
    if push_to is not None:
        check(push_to)
    source = _source(Path(run), phase, variant, release, base)
    wishes = Wishes(name=push_to and push_to.partition("/")[2], licence=licence, languages=tuple(languages))
    folder = export_source(source, Path(to), kind=kind, wishes=wishes)
    notes = []
    if not source.base_on_hub:
        notes.append(
            f"the base model was loaded from a folder, so nobody else can tell which it is: `--base OWNER/NAME` says "
            f"where on the hub {source.base.name} is"
        )
    if licence is None:
        notes.append("the card names no licence: --license says which")
    return Exported(folder, None if push_to is None else push(folder, push_to, private=private), notes)


def _source(run: Path, phase: str | None, variant: str | None, number: int | None, base: str | None) -> Source:
    """What is handed over."""
    if number is not None and (phase is not None or variant is not None):
        raise InputError("--release: it says which phase and variant; leave out --phase and --variant")
    if number is None and (phase is not None or variant is not None or current(run) is None):
        return from_run(run, phase=phase, variant=variant, base=base)
    release = read_release(run, number)
    if release.adapter is None:
        raise InputError(f"{release.folder}: it answers with more than one adapter; there is none to export")
    manifest = release.manifest
    source = Source(
        release.adapter, load_config(release.config), release.scores(), len(manifest.phases), manifest.answers_with
    )
    return with_base(source, base)


def lines(exported: Exported) -> list[str]:
    """For the terminal."""
    pushed = [] if exported.address is None else [f"pushed:   {exported.address}"]
    return [f"exported: {exported.folder}", *pushed, *(f"note:     {note}" for note in exported.notes)]
