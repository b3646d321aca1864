"""Does a method get slower or bigger with the number of tasks? Every method over 2 and over 20 (or more) short tasks.

    .venv/bin/python bench/growth.py [--tasks 20] [--processes 1] [method ...]

Prints the table of docs/methods.md. The model is a random Llama of 15M parameters with the bundled tokenizer: growth
is a property of the method, and the runs should take minutes. Step times are the smallest within one run (other
processes only ever add): over its tasks 2 to 4 and over its last three. Stored bytes and peak memory are those of
a run over 2 tasks and of the long one.
--processes: so many on this machine for each run, with the base in parts; memory is the first one's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

import data
from ilora import load_config, run
from ilora.methods import METHODS

FEW, ROWS = 2, 16
EARLY = (2, 3, 4)
WORDS = "red green blue black white small large old new fast slow warm cold north south east west".split()


def make_model(folder: Path) -> None:
    """A random Llama of 15M parameters and a real tokenizer."""
    data.make_model(folder, hidden_size=256, intermediate_size=512, num_hidden_layers=4, max_position_embeddings=256)


def make_tasks(folder: Path, count: int) -> None:
    """Tasks of equal size and length: what differs between the second and the last is only how many came before."""
    for number in range(1, count + 1):
        source = random.Random(number)
        (folder / f"t{number:02d}").mkdir(parents=True)
        for split, size in {"train": ROWS, "eval": 1, "test": 1}.items():
            rows = [
                {
                    "prompt": f"task {number} : " + " ".join(source.choices(WORDS, k=20)),
                    "answer": "yes" if index % 2 else "no",
                }
                for index in range(size)
            ]
            (folder / f"t{number:02d}" / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def run_over(method: str, tasks: int, work: Path, processes: int) -> Path:
    """One run. Its peak memory is its own: a run begins to measure anew (on Linux and on a GPU)."""
    memory = {"memory_size": 40} if "memory_size" in METHODS[method].Config.model_fields else {}
    config = load_config(
        {
            "model": {"name": str(work / "model"), "dtype": "float32"},
            "data": {"path": str(work / "data"), "tasks": [f"t{n:02d}" for n in range(1, tasks + 1)], "max_length": 64},
            "training": {"epochs": 1, "global_batch_size": 4, "micro_batch_size": 8, "checkpoint_every": 1000},
            "evaluation": {"zero_shot": False, "unseen": "none", "earlier": "last", "max_new_tokens": 1},
            "method": {"name": method} | memory,
        }
    )
    out = work / f"{method}-{tasks}"
    if processes == 1:
        return run(config, out, quiet=True).path
    file = work / "config.yaml"
    file.write_text(yaml.safe_dump(config.dump()), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", str(processes), "-m", "ilora")
    command = [sys.executable, *launcher, "run", str(file), "model.shard=full", "--out", str(out), "--quiet"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return out


def step_time(folder: Path, tasks: tuple[int, ...]) -> float | None:
    """Fewest seconds of an optimizer step of these tasks, their first ones left out; None without steps."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return None
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    steps = itertools.pairwise(lines)
    return min(
        after["time"] - before["time"]
        for before, after in steps
        if before["task_index"] == after["task_index"] and after["task_index"] in tasks
    )


def row(method: str, tasks: int, work: Path, processes: int) -> list[str]:
    """A line of the table."""
    few, many = run_over(method, FEW, work, processes), run_over(method, tasks, work, processes)
    early, late = step_time(many, EARLY), step_time(many, (tasks - 2, tasks - 1, tasks))
    costs: list[dict[str, Any]] = [
        json.loads((folder / "results.json").read_text(encoding="utf-8"))["cost"] for folder in (few, many)
    ]
    stored = [sum(cost["stored_bytes"].values()) / 1024 for cost in costs]
    peak = [cost["peak_memory_bytes"] / 2**20 for cost in costs]
    steps = (
        ["–"] * 3
        if early is None or late is None
        else [f"{1e3 * early:.0f}", f"{1e3 * late:.0f}", f"{late / early:.2f}"]
    )
    return [
        f"`{method}`",
        *steps,
        *(f"{size:,.0f}" for size in stored),
        f"{stored[1] / stored[0]:.2f}",
        *(f"{size:,.0f}" for size in peak),
    ]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    many = chosen.tasks
    torch.set_num_threads(1)
    print(f"| method | step, tasks 2 to 4 (ms) | tasks {many - 2} to {many} (ms) | ratio | stored, 2 tasks (KiB) | "
          f"{many} tasks (KiB) | ratio | peak, 2 tasks (MiB) | {many} tasks (MiB) |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        make_model(work / "model")
        make_tasks(work / "data", many)
        for method in chosen.methods:
            print("| " + " | ".join(row(method, many, work, chosen.processes)) + " |", flush=True)


if __name__ == "__main__":
    main()
