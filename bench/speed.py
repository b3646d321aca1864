"""How fast and how small is it? Everything against the plain way (`plain.py`), in one run.

    make bench                     # = .venv/bin/python bench/speed.py; about 15 minutes on two cores
    .venv/bin/python bench/speed.py [--parts steps tasks evaluation path] [--data FOLDER --tasks NAME NAME]

* **steps**: the same rows, weights and optimizer on both sides, step by step in turn within one process, so that what
  else the machine does falls on both alike. The machine's rate of matrix products is measured between the steps.
* **tasks**: two tasks from the start of the process to the last score, a process each,
  for seconds, peak memory, and how soon the first optimizer step is done.
* **evaluation**: generation and ranking with the same adapter on the same rows.
* **path**: eleven points between two adapters (`connect.py`).

Figures are kept in bench/results.json. Without --data the rows are made of the bundled generated benchmark, each with
solved questions before it, so that prompts have 40 to 140 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import connect
import plain
import tables
import torch
from machine import measured_process
from peft import PeftModel
from setting import ADAPTER, BATCH, MEMORY, METHODS, NEW_TOKENS, RATE, configuration, make_tasks
from steps import measure_steps
from transformers import logging

from ilora.connectivity import space
from ilora.connectivity.landscape import open_landscape
from ilora.connectivity.sources import from_run, pair_of
from ilora.evaluation.scoring import evaluate
from ilora.model.load import resolve
from ilora.stream import load_tasks

RESULTS = Path(__file__).with_name("results.json")
PARTS = ("steps", "tasks", "evaluation", "path")


def run_ours(method: str, data: Path, tasks: Sequence[str], work: Path, *, name: str) -> dict[str, float]:
    """`ilora run` over the tasks."""
    settings, out = work / f"{method}.json", work / f"run-{method}"
    settings.write_text(json.dumps(configuration(method, data, tasks, name=name).dump()), encoding="utf-8")
    command = [sys.executable, "-m", "ilora", "run", str(settings), "--out", str(out), "--quiet"]
    return measured_process(command, log=work / f"{method}.log", watch=out / "metrics.jsonl")


def measure_task(method: str, data: Path, tasks: Sequence[str], work: Path, *, name: str) -> dict[str, Any]:
    """Two tasks with everything: start, training, adapters saved, answers generated. A process each."""
    ours = run_ours(method, data, tasks, work, name=name)
    specification = {
        "model": resolve(name), "adapter": ADAPTER, "tasks": list(tasks), "data": str(data), "method": method,
        "batch": BATCH, "rate": RATE, "memory": MEMORY, "evaluation_batch": 32, "new_tokens": NEW_TOKENS,
        "out": str(work / f"plain-{method}"),
    }  # fmt: skip
    (work / f"plain-{method}.json").write_text(json.dumps(specification), encoding="utf-8")
    theirs = measured_process(
        [sys.executable, str(Path(__file__).with_name("plain.py")), str(work / f"plain-{method}.json")],
        log=work / f"plain-{method}.log",
    )
    results = json.loads((work / f"run-{method}" / "results.json").read_text(encoding="utf-8"))
    told = json.loads((work / f"plain-{method}.log").read_text(encoding="utf-8").splitlines()[-1])
    return {
        "seconds": ours["seconds"],
        "plain_seconds": theirs["seconds"],
        "ratio": theirs["seconds"] / ours["seconds"],
        "train_seconds": results["cost"]["train_seconds"],
        "plain_train_seconds": told["train_seconds"],
        "train_ratio": told["train_seconds"] / results["cost"]["train_seconds"],
        "peak_mib": results["cost"]["peak_memory_bytes"] / 2**20,
        "plain_peak_mib": told["peak_memory_bytes"] / 2**20,
        "first_step_seconds": ours["first"],
        "tokens_per_second": results["cost"]["trained_tokens"] / results["cost"]["train_seconds"],
    }


def last_adapter(run: Path) -> Path:
    """The folder of the adapter that answers after the last task."""
    return run / str(json.loads((run / "results.json").read_text(encoding="utf-8"))["adapter"])


def measure_evaluation(scoring: str, data: Path, names: Sequence[str], adapter: Path, *, name: str) -> dict[str, Any]:
    """Answers to the test rows of every task: generated, or the likeliest of the choices."""
    base, tokenizer = plain.load(resolve(name))
    theirs = PeftModel.from_pretrained(base, adapter).eval()
    update = space.read(adapter)
    config = configuration("sequential", data, [{"name": task, "scoring": scoring} for task in names], name=name)
    size, tasks = config.evaluation.batch_size, load_tasks(config.data)
    landscape = open_landscape(config, tasks, [update], split="test")
    landscape.use(update)

    def ours(number: int) -> list[str]:
        engine, encoder = landscape.engine, landscape.encoder
        lines = evaluate(landscape.sets[number], engine, encoder, batch_size=size)
        return [line["prediction"] for line in lines]

    def plainly(number: int, batch: int) -> list[str]:
        prompts = [row.prompt for row in tasks[number].rows["test"]]
        if scoring == "rank":
            return list(plain.ranked(theirs, tokenizer, prompts, tasks[number].choices, batch=batch))
        return list(plain.generated(theirs, tokenizer, prompts, batch=batch, new_tokens=NEW_TOKENS))

    ways = {
        "seconds": ours,
        "plain_seconds": lambda number: plainly(number, 1),
        "plain_batched_seconds": lambda number: plainly(number, size),
    }
    seconds, answers = dict.fromkeys(ways, 0.0), {way: list[str]() for way in ways}
    for number in range(len(tasks)):
        for label, way in ways.items():
            began = time.perf_counter()
            answers[label] += way(number)
            seconds[label] += time.perf_counter() - began
    return {
        "rows": len(answers["seconds"]),
        **seconds,
        "ratio": seconds["plain_seconds"] / seconds["seconds"],
        "batched_ratio": seconds["plain_batched_seconds"] / seconds["seconds"],
        "same_answers": sum(a == b for a, b in zip(answers["seconds"], answers["plain_seconds"], strict=True)),
    }


def measure_path(run: Path, data: Path, names: Sequence[str], *, name: str) -> dict[str, Any]:
    """From the answering adapter after the first task to that after the second."""
    config = configuration("ilora", data, names, name=name)
    ends = pair_of(from_run(run, pairs="last"), "adjacent").ends
    return connect.time_path(config, ends, points=11, rows=16)


def main() -> None:
    """Measure the parts asked for, print their tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, help="folder with the two task folders, instead of the generated tasks")
    parser.add_argument("--tasks", nargs=2, default=("science", "law"))
    parser.add_argument("--train", type=int, default=64, help="training rows of a generated task")
    parser.add_argument("--test", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    logging.set_verbosity_error()
    found: dict[str, Any] = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.is_file() else {}
    found["machine"] = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.platform(),
                        "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip

    def keep(part: str, value: dict[str, Any], text: str) -> None:
        found[part] = value
        chosen.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(text, flush=True)

    with TemporaryDirectory() as scratch:
        work, data = Path(scratch), chosen.data or Path(scratch) / "data"
        if not chosen.data:
            make_tasks(data, chosen.tasks, train=chosen.train, test=chosen.test)
        if "steps" in chosen.parts:
            steps = {method: measure_steps(method, chosen.model) for method in METHODS}
            keep("steps", steps, tables.steps(steps))
        tasks = {}
        for method in METHODS if "tasks" in chosen.parts else ():
            tasks[method] = measure_task(method, data, chosen.tasks, work, name=chosen.model)
        if tasks:
            keep("tasks", tasks, tables.tasks(tasks))
        run = work / "run-ilora"
        if not run.is_dir():
            run_ours("ilora", data, chosen.tasks, work, name=chosen.model)
        if "evaluation" in chosen.parts:
            answers = {
                scoring: measure_evaluation(scoring, data, chosen.tasks, last_adapter(run), name=chosen.model)
                for scoring in ("generate", "rank")
            }
            keep("evaluation", answers, tables.evaluation(answers))
        if "path" in chosen.parts:
            path = measure_path(run, data, chosen.tasks, name=chosen.model)
            keep("path", path, tables.path(path))
    if {"steps", "tasks"} <= set(found):
        print(tables.overhead(found))


if __name__ == "__main__":
    main()
