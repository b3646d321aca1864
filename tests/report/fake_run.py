"""A realistic run folder with numbers that can be checked by hand, and variations of it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

TITLES = {"ilora": "I-LoRA", "er": "ER"}
Json = dict[str, Any]
Matrix = list[list[float | None]]

# Three tasks. ilora slow: OP = (80+60+90)/3 = 76.67, forgotten 10 and 5 (mean 7.5), BWT -7.5.
SLOW: Matrix = [[0.90, None, None], [0.85, 0.65, None], [0.80, 0.60, 0.90]]
FAST: Matrix = [[0.92, None, None], [0.70, 0.70, None], [0.50, 0.40, 0.95]]
SEQUENTIAL: Matrix = [[0.91, None, None], [0.55, 0.72, None], [0.20, 0.30, 0.96]]
ZERO_SHOT: list[float | None] = [0.10, 0.25, None]


def summary(rows: Matrix) -> Json:
    last = len(rows) - 1
    final = [rows[last][i] or 0.0 for i in range(last + 1)]
    own = [rows[i][i] or 0.0 for i in range(last + 1)]
    best = [max(rows[k][i] or 0.0 for k in range(last)) for i in range(last)]
    return {
        "OP": sum(final) / len(final),
        "BWT": sum(final[i] - own[i] for i in range(last)) / last if last else None,
        "FWT": None,
        "forgetting": sum(best[i] - final[i] for i in range(last)) / last if last else None,
        "plasticity": sum(own) / len(own),
    }


def variant(rows: Matrix, zero_shot: list[float | None] | None) -> Json:
    counts = [[None if score is None else 20 for score in row] for row in rows]
    return {"zero_shot": zero_shot, "R": rows, "n": counts, "summary": summary(rows)}


def results(
    names: list[str],
    variants: dict[str, Matrix],
    *,
    method: str = "ilora",
    zero_shot: Any = None,
    **more: Any,
) -> Json:
    tasks = [
        {
            "name": name,
            "label": name.lower().replace(" ", "-"),
            "metric": "accuracy",
            "scoring": "generate",
            "train": 160,
            "eval": 20,
            "test": 20,
            "truncated": {"train": 0, "test": 0},
            "source": "mini8",
        }
        for name in names
    ]
    last = f"{len(names):02d}-{tasks[-1]['label']}"
    answering = next(iter(variants))
    return {
        "schema": 1,
        "name": "demo",
        "method": method,
        "title": TITLES.get(method, ""),
        "method_config": {},
        "model": "smollm2-135m",
        "seed": 0,
        "stream": "sequential",
        "complete": True,
        "tasks": tasks,
        "answers_with": answering,
        "variants": {name: variant(rows, zero_shot) for name, rows in variants.items()},
        "phases": [task["label"] for task in tasks],
        "cost": {
            "train_seconds": 120.0,
            "evaluation_seconds": 30.5,
            "trained_tokens": 240_000,
            "peak_memory_bytes": 3 * 2**30,
            "stored_bytes": {"memory": 65_536, "adapters": 5 * 2**20},
            "steps": 30 * len(names),
        },
        "adapter": f"adapters/{last}/{answering}",
        **more,
    }


def three_tasks() -> tuple[Json, Json]:
    names = ["stance", "fomc", "meeting notes"]
    main = results(names, {"slow": SLOW, "fast": FAST}, zero_shot=ZERO_SHOT)
    return main, results(names, {"fast": SEQUENTIAL}, method="sequential", zero_shot=ZERO_SHOT)


def simulated(count: int, rate: float, seed: int, *, before: list[float | None]) -> Matrix:
    """Scores that are learnt and then fade towards the zero-shot score at `rate` per phase."""
    rng = random.Random(seed)
    top = [rng.uniform(0.6, 0.97) for _ in range(count)]
    rows: Matrix = []
    for k in range(count):
        row: list[float | None] = []
        for i in range(count):
            base = before[i] or 0.0
            kept = base + (top[i] - base) * math.exp(-rate * (k - i)) + rng.gauss(0, 0.015)
            row.append(round(min(1.0, max(0.0, kept)), 4) if k >= i else None)
        rows.append(row)
    return rows


def metric_lines(names: list[str], per_task: int = 30) -> list[Json]:
    rng = random.Random(7)
    lines = []
    for index, name in enumerate(names, 1):
        for step in range(per_task):
            ce = 0.3 + 2.2 * math.exp(-step / 8) + rng.gauss(0, 0.06)
            terms = {"ce": ce}
            if index > 1:
                terms |= {"ce_replayed": 0.25 + abs(rng.gauss(0, 0.08)), "consistency": 0.02 + step / 900}
            lines.append(
                {
                    "time": 4.0 * len(lines),
                    "task": name,
                    "task_index": index,
                    "step": len(lines) + 1,
                    "epoch": 0,
                    "loss": sum(terms.values()),
                    "terms": terms,
                    "grad_norm": 1.0,
                    "learning_rate": 1e-3,
                    "tokens_per_second": 2000.0,
                    "peak_memory_bytes": 3 * 2**30,
                }
            )
    return lines


def write_predictions(run: Path, content: Json, prompt: str = "Which stance has this sentence") -> None:
    """For each task a file just after its training and one at the end, with as many right rows as R says."""
    rows = content["variants"][content["answers_with"]]["R"]
    done = len(rows)
    for i, task in enumerate(content["tasks"][:done]):
        for k in {i, done - 1}:
            folder = run / "predictions" / f"after-{k + 1:02d}-{content['phases'][k]}"
            folder.mkdir(parents=True, exist_ok=True)
            right = round((rows[k][i] or 0.0) * 20)
            lines = [
                {
                    "id": f"{task['label']}/test/{n}",
                    "prompt": f"{prompt}, number {n}?\nA. favour  B. against  C. none\nAnswer:",
                    "prediction": " C" if n < right else " positive, I would say\n",
                    "parsed": "C" if n < right else None,
                    "reference": "C",
                    "score": 1.0 if n < right else 0.0,
                }
                for n in range(20)
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{task['label']}.jsonl").write_text(text, encoding="utf-8")


def write_run(run: Path, content: Json, *, metrics: bool = True, predictions: bool = True) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "results.json").write_text(json.dumps(content), encoding="utf-8")
    config = f"name: {content['name']}\nmodel: {content['model']}\nmethod:\n  name: {content['method']}\n"
    (run / "config.yaml").write_text(config, encoding="utf-8")
    if metrics:
        lines = metric_lines([task["name"] for task in content["tasks"]])
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    if predictions:
        write_predictions(run, content)
    return run


def write_demo(run: Path, count: int = 3) -> Path:
    """A run with one contrast run below it: the three tasks above, or `count` simulated ones."""
    if count == 3:
        main, other = three_tasks()
    else:
        base = [
            "c-stance",
            "fomc",
            "meeting-bank",
            "py150",
            "science-qa",
            "numglue-cm",
            "numglue-ds",
            "20minuten",
        ]
        names = [name if i < len(base) else f"{name} part {1 + i // len(base)}" for i, name in enumerate(base * 3)]
        names = names[:count]
        before: list[float | None] = [0.08 + 0.03 * (i % 7) for i in range(count)]
        slow, fast = (simulated(count, rate, 1, before=before) for rate in (0.02, 0.08))
        main = results(names, {"slow": slow, "fast": fast}, zero_shot=before)
        lost = simulated(count, 0.5, 1, before=before)
        other = results(names, {"fast": lost}, method="sequential", zero_shot=before)
    write_run(run / "contrast" / "sequential", other)
    return write_run(run, main)
