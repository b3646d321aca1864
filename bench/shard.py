"""A training step on two processes with the base in parts, against whole weights in each; and what each process keeps.

    .venv/bin/python bench/shard.py

SmolLM2-135M in bfloat16, I-LoRA's step of 16 rows of 100 to 200 tokens in micro-batches of 8, one thread for each of
two gloo processes on this machine. Both ways in turn within the same processes, medians.
"""

from __future__ import annotations

import gc
import json
import os
import random
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from accelerate import Accelerator

from ilora.config import load_config
from ilora.data.examples import Example
from ilora.methods import METHODS
from ilora.methods.view import Position, RunView
from ilora.replay.memory import ReplayMemory
from ilora.training.loading import load_engine
from ilora.training.loop import optimizer_step
from ilora.training.optim import make_optimizer
from ilora.training.peak import peak_memory, reset_peak_memory

ROWS, ROUNDS, PROCESSES = 16, 9, 2


def rows(seed: int) -> list[Example]:
    """Random tokens."""
    source = random.Random(seed)
    lengths = [source.randint(100, 200) for _ in range(ROWS)]
    ids = [[source.randrange(100, 40_000) for _ in range(length)] for length in lengths]
    return [Example("one", f"{seed}-{n}", row[:-8], row[-8:]) for n, row in enumerate(ids)]


class Way:
    """I-LoRA's step with the base in parts ("full"), or whole ("none")."""

    def __init__(self, accelerator: Accelerator, shard: str) -> None:
        values = {
            "data": {"benchmark": "mini8"},
            "model": {"name": "smollm2-135m", "shard": shard},
            "method": {"name": "ilora", "memory_size": 0},
        }
        config = load_config(values, [f"training.global_batch_size={ROWS}", "training.micro_batch_size=8"])
        self.engine, _ = load_engine(config, accelerator)
        position = Position(task_index=1, task_step=1, task_steps=ROUNDS)
        view = RunView(self.engine, ReplayMemory(0, seed=0), config.training, position)
        self.method = METHODS["ilora"](view, config.method)
        self.method.begin_task()
        self.optimizer = make_optimizer(self.method.trainable, config.training)

    def step(self, number: int) -> tuple[float, float]:
        """Seconds and loss."""
        self.engine.accelerator.wait_for_everyone()
        began = time.perf_counter()
        report = optimizer_step(self.method, self.optimizer, rows(number))
        return time.perf_counter() - began, report.loss

    def kept(self) -> int:
        """Bytes of the base in this process."""
        if self.engine.sharding is not None:
            return self.engine.sharding.local_bytes()
        return sum(weight.nbytes for name, weight in self.engine.core.named_parameters() if "lora_" not in name)


def memory(accelerator: Accelerator, shard: str) -> dict[str, int]:
    """Bytes of the base that this process keeps, and the largest size of the process in two steps."""
    gc.collect()
    way = Way(accelerator, shard)
    way.step(0)
    reset_peak_memory(accelerator.device)
    way.step(1)
    return {"base_bytes": way.kept(), "peak_bytes": peak_memory(accelerator.device)}


def seconds(accelerator: Accelerator) -> dict[str, Any]:
    """Of a step, in turn."""
    ways = {shard: Way(accelerator, shard) for shard in ("full", "none")}
    steps = [{shard: way.step(number) for shard, way in ways.items()} for number in range(ROUNDS + 1)][1:]
    assert all(abs(step["full"][1] - step["none"][1]) < 1e-3 for step in steps)  # the same loss
    found: dict[str, Any] = {shard: statistics.median(step[shard][0] for step in steps) for shard in ways}
    return found | {"full / none": statistics.median(step["full"][0] / step["none"][0] for step in steps)}


def work(rank: int, port: int) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    names |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ.update({key: str(value) for key, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    accelerator = Accelerator(cpu=True)
    found = {shard: memory(accelerator, shard) for shard in ("full", "none")} | {"seconds": seconds(accelerator)}
    if rank == 0:
        print(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    multiprocessing.spawn(work, args=(free,), nprocs=PROCESSES)
