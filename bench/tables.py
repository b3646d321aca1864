"""The figures of `speed.py` as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def steps(found: dict[str, Any]) -> str:
    """The training step."""
    head = ("step", "rows", "plain (s)", "ours (s)", "ratio", "tokens/s", "needed GFLOP", "GFLOP/s of products",
            "share, plain", "share, ours", "largest difference of a loss")  # fmt: skip
    return table(head, [
        (key, f"{row['rows']}", f"{row['plain_seconds']:.2f}", f"{row['seconds']:.2f}", f"{row['ratio']:.2f}",
         f"{row['tokens_per_second']:.0f}", f"{row['needed_gflop']:.0f}", f"{row['matmul_gflops']:.0f}",
         f"{row['plain_share']:.0%}", f"{row['share']:.0%}", f"{row['largest_loss_difference']:.4f}")
        for key, row in found.items()
    ])  # fmt: skip


def tasks(found: dict[str, Any]) -> str:
    """Whole runs."""
    head = ("two tasks", "training, plain (s)", "ours (s)", "ratio", "whole run, plain (s)", "ours (s)", "ratio",
            "peak, plain (MiB)", "ours (MiB)", "first step after (s)")  # fmt: skip
    return table(head, [
        (key, f"{row['plain_train_seconds']:.0f}", f"{row['train_seconds']:.0f}", f"{row['train_ratio']:.2f}",
         f"{row['plain_seconds']:.0f}", f"{row['seconds']:.0f}", f"{row['ratio']:.2f}",
         f"{row['plain_peak_mib']:,.0f}", f"{row['peak_mib']:,.0f}", f"{row['first_step_seconds']:.1f}")
        for key, row in found.items()
    ])  # fmt: skip


def evaluation(found: dict[str, Any]) -> str:
    """Answers."""
    head = ("answers", "rows", "plain, row by row (s)", "plain, batches (s)", "ours (s)", "ratio", "ratio to batches",
            "same as row by row")  # fmt: skip
    return table(head, [
        (key, f"{row['rows']}", f"{row['plain_seconds']:.1f}", f"{row['plain_batched_seconds']:.1f}",
         f"{row['seconds']:.1f}", f"{row['ratio']:.2f}", f"{row['batched_ratio']:.2f}",
         f"{row['same_answers']} of {row['rows']}")
        for key, row in found.items()
    ])  # fmt: skip


def path(found: dict[str, Any]) -> str:
    """Points between two adapters."""
    return table(
        ("eleven points", "one at a time (s)", "ours (s)", "ratio", "rows scored differently"),
        [("linear path", f"{found['plain_seconds']:.0f}", f"{found['seconds']:.0f}", f"{found['ratio']:.2f}",
          f"{found['differ']} of {found['rows']}")],
    )  # fmt: skip


def overhead(found: dict[str, Any]) -> str:
    """The methods among each other, at equal numbers of current rows."""
    step, whole = found["steps"], found["tasks"]
    return table(
        ("I-LoRA against", "step", "needed operations", "training on two tasks", "peak memory"),
        [
            (other, f"{step['ilora']['seconds'] / step[other]['seconds']:.2f}",
             f"{step['ilora']['needed_gflop'] / step[other]['needed_gflop']:.2f}",
             f"{whole['ilora']['train_seconds'] / whole[other]['train_seconds']:.2f}",
             f"{whole['ilora']['peak_mib'] / whole[other]['peak_mib']:.2f}")
            for other in ("er", "sequential")
        ],
    )  # fmt: skip
