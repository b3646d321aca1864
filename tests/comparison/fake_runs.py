"""Run folders with known effects, in the form that a run leaves them: results.json from the prediction files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ilora.data.task import Phase, Task
from ilora.results.schema import SCHEMA
from ilora.results.scores import BASE, prediction_file, score_matrix

Json = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """Chances of a right answer: `level` when learnt, `loss` less for each task since; `variants` add to the level."""

    level: float = 0.7
    loss: float = 0.05
    variants: Mapping[str, float] = field(default_factory=lambda: {"fast": 0.0})
    seed_spread: float = 0.0
    cost: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_run(
    folder: Path,
    method: str,
    chances: Method,
    *,
    seed: int = 0,
    order: Sequence[str] = ("one", "two", "three"),
    items: int = 40,
    joint: bool = False,
    **more: Any,
) -> Path:
    """A finished run: an item is right where its hardness (the same in all runs) and a run's own noise allow it."""
    names, chosen = list(order), list(chances.variants)
    tasks = [Task(name, {}) for name in names]
    phases = [Phase(1, "joint", tuple(tasks))] if joint else [Phase(k, t.name, (t,)) for k, t in enumerate(tasks, 1)]
    noise = np.random.default_rng([seed, *map(ord, method + "".join(names))])
    shift = chances.seed_spread * noise.standard_normal()
    for variant, gain in chances.variants.items():
        for stage in range(len(phases) + 1):
            label = phases[stage - 1].label if stage else BASE
            for place, task in enumerate(tasks):
                if stage and not joint and place > stage:
                    continue  # the next task is scored for FWT, later ones are not
                age = stage - 1 - place
                learnt = chances.level + gain + shift - chances.loss * max(0, age)
                chance = learnt if stage and (joint or age >= 0) else 0.2
                file = prediction_file(folder, label, variant, task, answering=chosen[0])
                _write_predictions(file, task.label, chance, items, noise)
    results: Json = {
        "schema": SCHEMA,
        "name": "fake",
        "method": method,
        "title": method,
        "model": "tiny",
        "seed": seed,
        "stream": "joint" if joint else "sequential",
        "complete": True,
        "tasks": [
            {"name": t.name, "label": t.label, "metric": "accuracy", "scoring": "generate", "test": items}
            for t in tasks
        ],
        "phases": [phase.name for phase in phases],
        "answers_with": chosen[0],
        "variants": score_matrix(folder, phases, tasks, variants=chosen),
        "cost": {
            "steps": 30,
            "trained_tokens": 24_000,
            "forward_rows": 900,
            "backward_rows": 900,
            "train_seconds": 60.0 + seed,
            "evaluation_seconds": 9.0,
            "peak_memory_bytes": 10**9,
            "trainable_parameters": 460_800,
            "stored_bytes": {"memory": 0, "adapters": 1_843_200},
            **chances.cost,
        },
        "adapter": None,
        **more,
    }
    config = {
        "name": "fake",
        "seed": seed,
        "stream": results["stream"],
        "model": {"name": "tiny"},
        "data": {"tasks": [{"name": name} for name in names]},
        "training": {"epochs": 1},
        "evaluation": {"split": "test"},
        "method": {"name": method, **chances.settings},
    }
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def _write_predictions(file: Path, label: str, chance: float, items: int, noise: np.random.Generator) -> None:
    if file.is_file():
        return  # the base model's, which the variants share
    hardness = np.random.default_rng(list(map(ord, label))).random(items)
    # Half the decision is the item's, half the run's own, so that both kinds of noise are there.
    right = 0.5 * hardness + 0.5 * noise.random(items) < _threshold(chance)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "id": f"{label}/test/{n}",
            "prompt": f"Which one is number {n} of {label}?",
            "prediction": "A" if good else "B",
            "parsed": "A" if good else "B",
            "reference": "A",
            "score": float(good),
        }
        for n, good in enumerate(right)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _threshold(chance: float) -> float:
    """Below it lies half the sum of two uniform numbers with this chance."""
    chance = min(1.0, max(0.0, chance))
    return float(np.sqrt(chance / 2) if chance < 0.5 else 1 - np.sqrt((1 - chance) / 2))


def write_sweep(
    folder: Path,
    methods: Mapping[str, Method],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    orders: Sequence[Sequence[str]] = (("one", "two", "three"), ("three", "one", "two")),
    items: int = 40,
) -> Path:
    """DIR/runs/<label>/<order>-<seed>/ and DIR/sweep.json."""
    entries = []
    for label, chances in methods.items():
        for number, order in enumerate(orders, 1):
            for seed in seeds:
                run = folder / "runs" / label.replace("+", "-plus") / f"{number}-{seed}"
                write_run(run, label.rstrip("+"), chances, seed=seed, order=order, items=items)
                entries.append({"folder": str(run.relative_to(folder)), "label": label, "state": "done"})
    (folder / "sweep.json").write_text(json.dumps({"runs": entries}), encoding="utf-8")
    return folder
