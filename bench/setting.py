"""What `speed.py` measures on: rows and a configuration, the same for both sides."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilora import load_config
from ilora.config import Config
from ilora.stream import load_tasks

METHODS = ("sequential", "er", "ilora")
BATCH = 8
ADAPTER = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
RATE = 1e-3
MEMORY, DECAY, NEW_TOKENS = 64, 0.9, 8


def make_tasks(folder: Path, names: Sequence[str], *, train: int, test: int) -> None:
    """Tasks of the generated benchmark with one to seven solved questions before each."""
    config = load_config({"data": {"benchmark": "mini8", "tasks": list(names)}})
    for task in load_tasks(config.data):
        source = random.Random(task.name)
        (folder / task.name).mkdir(parents=True)
        for split, count in {"train": train, "eval": 8, "test": test}.items():
            rows = []
            for row in source.sample(task.rows[split], min(count, len(task.rows[split]))):
                shots = source.sample(task.rows["train"], source.randint(1, 5))
                before = "".join(f"{shot.prompt} {shot.answer}\n\n" for shot in shots)
                rows.append({"prompt": before + row.prompt, "answer": row.answer})
            (folder / task.name / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def configuration(method: str, data: Path, tasks: Sequence[Any], *, name: str) -> Config:
    """The same for every part; `zero_shot` off, since the plain way has nothing of the kind."""
    settings: dict[str, Any] = {"name": method}
    if method != "sequential":
        settings["memory_size"] = MEMORY
    if method == "ilora":
        settings["ema_decay"] = DECAY
    return load_config(
        {
            "model": {"name": name},
            "adapter": ADAPTER,
            "data": {"path": str(data), "tasks": list(tasks), "max_length": 256},
            "training": {"epochs": 1, "global_batch_size": BATCH, "micro_batch_size": BATCH,
                         "learning_rate": RATE, "warmup_ratio": 0},
            "evaluation": {"zero_shot": False, "unseen": "none", "max_new_tokens": NEW_TOKENS},
            "method": settings,
        }
    )  # fmt: skip
