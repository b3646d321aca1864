"""General ability before and after training, for the page: perplexity, and the scores of lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ilora.files import from_yaml
from ilora.present.numbers import number, plain
from ilora.results.reader import Results, method_title


def perplexity_rows(runs: Sequence[Results]) -> list[dict[str, str]]:
    """Before, after and change for every variant of every run that measured it, as texts."""
    rows = []
    for run in runs:
        measured = run.get("perplexity") or {}
        before = number(measured.get("before"))
        for variant, value in (measured.get("after") or {}).items():
            after = number(value)
            change = f"{100 * (after / before - 1):+.1f} %" if before and after is not None else "–"
            title = f"{method_title(run)} {plain(variant, 20)}"
            rows.append({"title": title, "before": _figure(before), "after": _figure(after), "change": change})
    return rows


def harness_rows(runs: Sequence[tuple[Path, Results]]) -> list[dict[str, str]]:
    """Every task and metric of every run that has a general.json (`ilora general`), as texts."""
    rows = []
    for folder, run in runs:
        for entry in _scores(folder / "general.json"):
            before, after = number(entry.get("before")), number(entry.get("after"))
            change = f"{after - before:+.4f}" if before is not None and after is not None else "–"
            rows.append(
                {
                    "title": f"{plain(entry.get('task'), 40)}, {plain(entry.get('metric'), 30)} ({method_title(run)})",
                    "before": _with_error(before, number(entry.get("before_stderr"))),
                    "after": _with_error(after, number(entry.get("after_stderr"))),
                    "change": change,
                }
            )
    return rows


def _scores(path: Path) -> list[dict[str, Any]]:
    """Nothing where the file is missing or damaged: the page can do without."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    scores = content.get("scores") if isinstance(content, dict) else None
    return [entry for entry in scores if isinstance(entry, dict)] if isinstance(scores, list) else []


def _with_error(value: float | None, error: float | None) -> str:
    shown = "–" if value is None else f"{value:.4f}"
    return shown if error is None else f"{shown} ± {error:.4f}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"


def text_name(config: str) -> str:
    """The file name of the text, as the configuration has it."""
    try:
        path = from_yaml(config)["evaluation"]["perplexity_file"]
    except (yaml.YAMLError, KeyError, TypeError):
        path = None
    return plain(Path(str(path)).name, 60) if path else "a text"
