"""Which holds the bound, the projected gradient or the projected step? GEM, A-GEM, O-LoRA; three tasks that disagree.

    .venv/bin/python bench/bounds.py [--seeds 3]

GEM and A-GEM: the share of bounded steps that break a bound, that is, which raise a remembered task's loss to first
order (cosine of step and reference gradient above 0.001), the mean of what is above and the largest cosine, and at the
end the mean loss of the remembered rows of earlier tasks, and the last task's own training loss. O-LoRA:
‖A_k A_tᵀ‖ / (‖A_k‖ ‖A_t‖), the mean over layers and pairs of tasks. The model is the random Llama of bench/growth.py;
under a minute a run on one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from growth import make_model

from ilora import load_config, run
from ilora.data.examples import Example, Totals
from ilora.methods.agem import AGEM
from ilora.methods.gem import GEM
from ilora.methods.olora import OLoRA
from ilora.methods.projection import flat
from ilora.model import adapters

TASKS, WORDS, ANSWERS, BROKEN = ("one", "two", "three"), "red green blue black".split(), "cat dog owl fox".split(), 1e-3
seen: list[float] = []  # of each bounded step its largest cosine
overlaps: list[float] = []
losses: list[tuple[float, float]] = []  # of each run, at its end: of earlier tasks' remembered rows, of its last task's


class _Watched:
    """Notes how each step lies to the references, whatever was projected."""

    def before_step(self: Any) -> None:
        """Where the step begins, and what bounds it."""
        remembered = sorted(set(self.memory.tasks) - self.position.current_tasks)
        self.bounds = self.references(remembered) if remembered else None
        self.held = flat([weight.detach() for weight in self.trainable])
        super().before_step()  # type: ignore[misc]

    def after_step(self: Any) -> None:
        """Where it has led."""
        super().after_step()  # type: ignore[misc]
        if self.bounds is not None:
            step = flat([weight.detach() for weight in self.trainable]) - self.held
            cosines = self.bounds @ step / (self.bounds.norm(dim=1) * step.norm()).clamp(min=1e-30)
            seen.append(float(cosines.max()))

    def end_task(self: Any) -> None:
        """What has become of the earlier tasks."""
        if self.position.task_index == len(TASKS):
            old = self.memory.draw(30, key="end", without=self.position.current_tasks)
            losses.append((self.loss_of(old), self.loss_of(self.rows)))

    @torch.no_grad()
    def loss_of(self: Any, rows: Sequence[Example]) -> float:
        """The mean over answer tokens."""
        rows = [replace(row, replayed=False) for row in rows]
        totals, total = Totals.of(rows), 0.0
        for batch in self.engine.micro_batches(rows):
            total += float(self.cross_entropy(self.engine.forward(batch, dropout=False), batch, totals))
        return total


class WatchedGEM(_Watched, GEM):
    """GEM."""


class WatchedAGEM(_Watched, AGEM):
    """A-GEM."""


class WatchedOLoRA(OLoRA):
    """O-LoRA."""

    def end_task(self) -> None:
        """How far A_t has come into the earlier ones' rows."""
        new = adapters.parameters(self.engine.model, "fast")
        for name in self.earlier:
            for key, old in adapters.parameters(self.engine.model, name).items():
                if "lora_A" in key:
                    product = (old @ new[key].T).norm() / (old.norm() * new[key].norm())
                    overlaps.append(float(product.detach()))


def make_tasks(folder: Path) -> None:
    """The same prompts in every task, and other answers."""
    for shift, name in enumerate(TASKS):
        (folder / name).mkdir(parents=True)
        for split, size in {"train": 48, "eval": 1, "test": 24}.items():
            source = random.Random(f"{name}/{split}")
            rows = []
            for _ in range(size):
                word = source.choice(WORDS)
                filler = " ".join(source.choices("small large old new fast slow".split(), k=4))
                answer = ANSWERS[(WORDS.index(word) + shift) % 4]
                rows.append({"prompt": f"task {name} : {filler} {word}", "answer": answer})
            (folder / name / f"{split}.json").write_text(json.dumps(rows))


def train(place: Path, out: Path, *, seed: int, **method: Any) -> None:
    """Run one method; the lists above fill."""
    values: dict[str, Any] = {
        "seed": seed,
        "model": {"name": str(place / "model"), "dtype": "float32"},
        "adapter": {"r": 8, "alpha": 16, "dropout": 0.0},
        "data": {"path": str(place / "data"), "tasks": list(TASKS), "template": "none", "max_length": 128},
        "training": {"epochs": 8, "global_batch_size": 8, "learning_rate": 5e-3},
        "evaluation": {"zero_shot": False, "unseen": "none", "max_new_tokens": 1},
        "method": method,
    }
    run(load_config(values), out, quiet=True)


def rows_of(place: Path, seeds: int) -> Iterator[str]:
    """The table."""
    yield "| method | `project` | bounded steps | broken | mean cosine of these | largest | loss, earlier | last task |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, watched in (("gem", "WatchedGEM"), ("agem", "WatchedAGEM")):
        for project in ("gradient", "update"):
            seen.clear()
            losses.clear()
            for seed in range(seeds):
                method = {"name": f"bounds:{watched}", "project": project, "memory_size": 30}
                train(place, place / f"{name}-{project}-{seed}", seed=seed, **method)
            broken = [cosine for cosine in seen if cosine > BROKEN]
            old, new = (statistics.mean(values) for values in zip(*losses, strict=True))
            yield (
                f"| `{name}` | `{project}` | {len(seen)} | {len(broken) / len(seen):.0%} | "
                f"{statistics.mean(broken or [0.0]):.3f} | {max(seen):.4f} | {old:.2f} | {new:.2f} |"
            )
    yield ""
    yield "| `olora`, `project` | ‖A_k A_tᵀ‖ / (‖A_k‖ ‖A_t‖) |"
    yield "|---|---|"
    for project in ("none", "gradient", "update"):
        overlaps.clear()
        for seed in range(seeds):
            train(place, place / f"olora-{project}-{seed}", seed=seed, name="bounds:WatchedOLoRA", project=project)
        yield f"| `{project}` | {statistics.mean(overlaps):.5f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model")
        make_tasks(Path(folder) / "data")
        for line in rows_of(Path(folder), seeds):
            print(line, flush=True)


if __name__ == "__main__":
    import bounds  # as the runs import it by its name, and not as the script

    bounds.main()
