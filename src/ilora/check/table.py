"""The reports of `ilora data check` as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ilora.present.numbers import plain

_BARS = " ▁▂▃▄▅▆▇█"
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_COLUMNS = ("task", "rows", "twice", "leak", "near", "most", "tokens", "lengths", "cut")


def check_table(summary: Mapping[str, Any]) -> Table:
    """One row a task, then every problem in words. Names and answers are untrusted and shown as plain text."""
    reports = summary["tasks"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("task", "lengths") else "right", no_wrap=True)
    for report in reports:
        table.add_row(*map(Text, _cells(report)))
    problems = Table.grid(padding=(0, 1))
    for report in reports:
        for problem in report["problems"]:
            level = Text(problem["level"], style=_STYLES[problem["level"]])
            problems.add_row(level, Text(plain(report["task"])), Text(plain(problem["text"])))
    whole = Table.grid(padding=0)
    whole.add_row(table)
    whole.add_row(problems)
    whole.add_row(Text(_effort(summary)))
    whole.add_row(Text(_CAPTION, style="dim"))
    return whole


def _effort(summary: Mapping[str, Any]) -> str:
    if summary["train_tokens"] is None:
        return ""
    most = f", at most {summary['max_steps']} steps a task" if summary["max_steps"] else ""
    amount = f"{summary['train_tokens']:,} tokens to train on in {summary['epochs']} epochs{most}"
    line = f"\n{amount} ({plain(summary['model'])})"
    if summary["seconds"] is None:
        return line
    minutes = summary["seconds"] / 60
    return f"{line}: about {minutes:,.0f} minutes at {summary['tokens_per_second']:,.0f} tokens/s, without replay"


_CAPTION = (
    "rows: train/eval/test; twice: train rows whose prompt stood before; leak: test rows that stand in train; near: "
    "test rows much like one of train; most: share of the commonest answer in test; tokens: median/95 % of prompt and "
    "answer; lengths: rows of up to 32, 64, ... 8192 and more tokens; cut: prompts that do not fit, of all splits."
)


def _cells(report: Mapping[str, Any]) -> list[str]:
    rows, near, tokens = report["rows"], report["near"] or {}, report["tokens"]
    return [
        plain(report["task"], 20),
        "/".join(str(rows[split]) if split in rows else "–" for split in ("train", "eval", "test")) if rows else "–",
        f"{report['repeated'].get('train', 0):,}" if rows else "–",
        f"{report['shared'].get('train/test', 0):,}" if rows else "–",
        f"{near['train/test']:,}" if near else "–",
        f"{report['answers']['commonest'].get('test', 0):.0%}" if rows else "–",
        f"{tokens['whole']['median']}/{tokens['whole']['p95']}" if tokens else "–",
        bars(list(tokens["histogram"].values())) if tokens else "–",
        f"{sum(tokens['cut'].values()):,}" if tokens else "–",
    ]


def bars(counts: Sequence[int]) -> str:
    """A histogram in one line; what is not zero shows."""
    top = max(counts, default=0)
    return "".join(_BARS[0] if not count else _BARS[max(1, round(8 * count / top))] for count in counts)
