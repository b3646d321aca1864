"""What `ilora compare` does: gather, compute, write every form of it, and the evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilora.comparison.comparison import compare_runs
from ilora.comparison.evidence import refuse_other, write_evidence
from ilora.comparison.gather import gather
from ilora.comparison.page import page
from ilora.comparison.texts import as_csv, as_latex, as_markdown
from ilora.errors import InputError
from ilora.files import write_atomic


def compare(
    places: Sequence[str | Path],
    *,
    baseline: str | None = None,
    out: str | Path | None = None,
    save: str | Path | None = None,
    only: Sequence[str] = (),
) -> tuple[dict[str, Any], Path]:
    """Compare the runs in or below `places`; returns the content of comparison.json and the folder it is in.

    places: folders, and files that `save` made. baseline: a row's name or label (default `sequential`, else the first
    row). out: default `comparison` below the first place, beside a file `<its name>-comparison`. save: a file for what
    was compared, without the data. only: shell patterns for the end of a run's path, such as `er/1-*`. Raises
    InputError for a place without runs, runs that cannot be compared, an unknown baseline, a pattern that fits no run,
    and a `save` that would replace another file or lose runs of one that was read.
    """
    if not places:
        raise InputError("nothing to compare; give run folders, folders below which run folders lie, or evidence files")
    folder = Path(out) if out is not None else _folder(Path(places[0]))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder; --out names another one")
    if save is not None:
        refuse_other(Path(save))
        if only and Path(save).resolve() in [Path(place).resolve() for place in places]:
            raise InputError(f"--save {save}: would lose the runs that --only leaves out; give it another name")
    gathered = gather([Path(place) for place in places], only)
    comparison = compare_runs(gathered, baseline)
    if save is not None:
        write_evidence(Path(save), gathered.runs)
    texts = {
        "comparison.json": json.dumps(comparison, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        "comparison.csv": as_csv(comparison),
        "comparison.md": as_markdown(comparison),
        "comparison.tex": as_latex(comparison),
        "index.html": page(comparison),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text.encode("utf-8", errors="replace"))
    return comparison, folder


def _folder(place: Path) -> Path:
    return place.with_name(f"{place.stem}-comparison") if place.is_file() else place / "comparison"
