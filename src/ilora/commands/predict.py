"""What `ilora predict` does: answers to the rows of a file, or to rows from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilora.answering.predict import Predictor, predict_file, predict_rows
from ilora.errors import InputError
from ilora.files import refuse_own
from ilora.present.numbers import count, points


def predict(
    run: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    weights: str | None = None,
    task: str | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """The rows, each with the `prediction` of a run's adapter, in order.

    rows: `{"prompt": ...}` or `{"messages": [...]}`, with further fields, which are kept.
    weights: `base`, a variant, `phase:2` or `t:0.4`; None: the adapter that answers.
    task: of the run, whose limit, choices and metric hold; a row with an answer then has a `score`.
    max_tokens: of an answer; None: as in the run's evaluation.
    Raises InputError for rows that cannot be used, or what the run does not have.
    """
    predictor = Predictor(Path(run), name=weights, task=task, max_tokens=max_tokens, batch_size=batch_size)
    return predict_rows(predictor, rows, quiet=quiet)


def predict_command(run: Path, source: Path, out: Path, *, quiet: bool, **chosen: Any) -> list[str]:
    """Answer a file into another one; returns the lines to show."""
    if out.suffix != ".jsonl":
        raise InputError(f"--out {out}: a file whose name ends in .jsonl is needed")
    refuse_own(out, "--out")
    found = predict_file(Predictor(run, **chosen), source, out, quiet=quiet)
    lines = [f"answered: {count(found['rows'])} rows with {found['adapter']}"]
    if found["there"]:
        lines[0] += f" ({count(found['there'])} of them were there)"
    if found["cut"]:
        lines.append(
            f"warning:  {count(found['cut'])} prompts were longer than the run's data.max_length, and were cut"
        )
    if found.get("n"):
        error = "" if found["score_se"] is None else f" ± {points(found['score_se'])}"
        lines.append(f"score:    {points(found['score'])}{error} ({found['metric']}, {count(found['n'])} rows)")
    return [*lines, f"written:  {out}"]
