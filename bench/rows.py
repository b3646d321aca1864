"""Does memory grow with the number of training rows? Reading, checking, encoding, planning and a few steps of one task.

    .venv/bin/python bench/rows.py [--rows 100000 1000000] [--in-memory]

Prints seconds and the highest resident memory of each stage, each number of rows in a process of its own (Linux). The
rows are made up (5 to 15 words); a tenth each of test and eval rows is taken from train, of which 200 are kept.
The model is a random Llama of two layers with the bundled tokenizer, the method `er`: what grows is the data.
--in-memory: keep all rows in memory, as `data.rows_in_memory` allows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data import make_model, peak_memory, write_rows

STEPS = 20


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print what the block took. The kernel's record of the highest memory begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    began, cpu = time.perf_counter(), time.process_time()
    yield
    seconds = f"{time.perf_counter() - began:.1f} s ({time.process_time() - cpu:.1f} s of CPU)"
    print(f"  {name}: {seconds}, {peak_memory():,.0f} MiB", flush=True)


def work(folder: Path, work: Path, *, in_memory: bool) -> None:
    """One run's stages, without evaluation."""
    import torch
    from accelerate import Accelerator

    from ilora.config import load_config
    from ilora.data.duplicates import warnings
    from ilora.progress import Display
    from ilora.stream import load_tasks
    from ilora.training.interrupt import StopRequest
    from ilora.training.session import Session

    torch.set_num_threads(1)
    data: dict[str, Any] = {"path": str(folder), "max_length": 64, "template": "none"}
    data["limit"] = {"eval": 200, "test": 200}
    values: dict[str, Any] = {
        "model": {"name": str(work / "model"), "dtype": "float32"},
        "data": data | ({"rows_in_memory": 10**9} if in_memory else {}),
        "training": {"epochs": 1, "global_batch_size": 16, "max_steps": STEPS},
        "method": {"name": "er", "memory_size": 1000},
    }
    config = load_config(values)
    with stage("read, split"):
        tasks = load_tasks(config.data)
    with stage("repeated rows"):
        warnings(tasks)
    run = Path(tempfile.mkdtemp(dir=work))
    given: dict[str, Any] = {"accelerator": Accelerator(), "display": Display(quiet=True)}
    with stage("model, tokens"):
        session = Session(config, run, tasks, stop=StopRequest(enabled=False), **given)
    with stage("tokens again, from the cache"):
        Session(config, run, tasks, stop=StopRequest(enabled=False), **given)
    with stage(f"plan and {STEPS} steps"):
        session.train(session.stream.phases[0])


def main() -> None:
    """Make the files and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--work", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(*given.work, in_memory=given.in_memory)
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        make_model(place / "model", hidden_size=64, intermediate_size=128, num_hidden_layers=2)
        for count in given.rows:
            folder = place / f"{count:,} rows"
            write_rows(folder / "task" / "train.jsonl", count, least=5, most=15)
            print(f"{count:,} rows, {(folder / 'task' / 'train.jsonl').stat().st_size / 2**20:,.0f} MiB", flush=True)
            command = [sys.executable, __file__, *(["--in-memory"] if given.in_memory else []), "--work", folder, place]
            subprocess.run(command, check=True, env=os.environ | {"ILORA_CACHE": str(place / "cache")})


if __name__ == "__main__":
    main()
