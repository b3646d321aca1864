"""How much faster are eleven points along a path in one pass than one at a time? Both in one run, on the same rows.

    .venv/bin/python bench/connect.py [--points 11] [--rows 100] [--data FOLDER] [--tasks NAME,NAME,NAME,NAME]
    .venv/bin/python bench/connect.py --plane [--grid 15] [--rows 50]

The plain way, for every t: load the base model, load the adapter at t with PEFT, one forward pass over prompt and
answer for the loss, `generate` for the score, in batches of the same size; dtype and attention are the same. CPU
seconds stand beside wall seconds, since other processes on the machine disturb the latter.

Without --data the tasks are the first four of the generated benchmark. The ends are those of a real training: first a
run of I-LoRA over the first two of the tasks, --train rows each, is made in --work (or found there). So answers change
along the path as trained adapters' answers do, and a draft taken from the neighbouring point is not right for nothing.

--plane: the plane through that run's last adapters over the two tasks, its seconds, and how much of it was there
already: killed and started again with the same --work it goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import GenerationConfig

from ilora import resume, run
from ilora.config import Config, load_config
from ilora.connectivity import files, space
from ilora.connectivity.connect import make_results
from ilora.connectivity.jobs import Settings
from ilora.connectivity.landscape import Landscape, PointScores, RowScores, limited, open_landscape
from ilora.connectivity.paths import Curve, grid, make_path
from ilora.connectivity.sources import from_run, pair_of
from ilora.data.encoding import Encoder
from ilora.data.examples import IGNORED, collate
from ilora.data.task import Task
from ilora.evaluation.scoring import EvaluationSet, answer_text, questions, record
from ilora.model.load import load_model
from ilora.stream import load_tasks


def trained_run(config: Config, names: Sequence[str], work: Path, *, rows: int, test: int = 50) -> Path:
    """A short run of I-LoRA over the first two tasks, made once."""
    folder = work / f"run-{rows}-{test}"
    data = config.data.model_dump(mode="json")
    data |= {"tasks": list(names[:2]), "limit": {"train": rows, "eval": 16, "test": test}}
    training = {"epochs": 1, "global_batch_size": 16, "micro_batch_size": 16, "learning_rate": 1e-3, "warmup_ratio": 0}
    settings = {
        "model": config.model.model_dump(mode="json"),
        "data": data,
        "method": {"name": "ilora", "memory_size": 60},
        "training": training,
        "evaluation": {"zero_shot": False, "unseen": "none", "max_new_tokens": 6},
    }
    if (folder / "config.yaml").is_file():
        resume(folder, quiet=True)
    else:
        run(load_config(settings), folder, quiet=True)
    return folder


def time_plane(folder: Path, work: Path, *, grid: int, rows: int) -> None:
    """`ilora connect RUN --plane`, its pictures and all."""
    out = work / f"plane-{grid}x{grid}-{rows}"
    settings = Settings(paths=(), plane=True, grid=grid, rows=rows)
    done = [files.load(file)["seconds"] for file in out.glob("plane-*.json")]
    (result,), cpu, wall = timed(lambda: make_results(from_run(folder, pairs="last"), settings, out))
    print(f"plane {grid} x {grid}, {len(result['tasks'])} tasks x {rows} rows, {result['space']}")
    print(f"now:              {cpu:7.1f} CPU s {wall:7.1f} s; there before: {sum(done):.1f} s of it")
    print(f"in all:           {result['seconds']:7.1f} s, as the result's file says")


@torch.inference_mode()
def plain_way(config: Config, sets: list[EvaluationSet], encoder: Encoder, folder: Path) -> PointScores:
    """Load the base, load the adapter, loss, generation: what one would write with transformers and PEFT alone."""
    base, _ = load_model(config.model, max_length=config.data.max_length, device=torch.device("cpu"))
    net, found = PeftModel.from_pretrained(base, folder).eval(), {}
    for data in sets:
        settings = GenerationConfig(do_sample=False, max_new_tokens=data.max_new_tokens,
                                    eos_token_id=encoder.end, pad_token_id=encoder.pad)  # fmt: skip
        losses: list[float] = []
        scores: list[float] = []
        for start in range(0, len(data.examples), config.evaluation.batch_size):
            rows = list(range(len(data.examples)))[start : start + config.evaluation.batch_size]
            batch = collate([data.examples[row] for row in rows], pad=encoder.pad)
            logits = net(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
            labels = batch.labels[:, 1:]
            each = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED,
                                            reduction="none").view_as(labels)  # fmt: skip
            losses += (each.sum(1) / (labels != IGNORED).sum(1)).tolist()
            asked = collate(questions(data, rows, encoder), pad=encoder.pad)
            made = net.generate(input_ids=asked.input_ids, attention_mask=asked.attention_mask,
                                generation_config=settings)[:, asked.input_ids.shape[1] :]  # fmt: skip
            texts = [answer_text(ids, encoder) for ids in made.tolist()]
            scores += [record(data, row, text)["score"] for row, text in zip(rows, texts, strict=True)]
        found[data.task.label] = RowScores(losses, scores)
    return found


def timed(what: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, CPU seconds, wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = what()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def all_plain(config: Config, landscape: Landscape, curve: Curve, ts: list[float]) -> list[PointScores]:
    """The plain way at every point; writing the adapter at t is part of it."""
    found = []
    with TemporaryDirectory() as scratch:
        for number, t in enumerate(ts):
            space.write(curve.at(t), Path(scratch) / str(number))
            found.append(plain_way(config, landscape.sets, landscape.encoder, Path(scratch) / str(number)))
    return found


def compare(ours: list[PointScores], theirs: list[PointScores]) -> tuple[int, int, float]:
    """Rows scored differently, rows in all, largest difference of a task's mean loss."""
    differ = total = 0
    gaps = []
    for one, two in zip(ours, theirs, strict=True):
        for label, values in one.items():
            pairs = list(zip(values.scores, two[label].scores, strict=True))
            differ, total = differ + sum(a != b for a, b in pairs), total + len(pairs)
            gaps.append(abs(statistics.fmean(values.losses) - statistics.fmean(two[label].losses)))
    return differ, total, max(gaps)


def main() -> None:
    """Print both times and their ratio, or the plane's time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=11)
    parser.add_argument("--rows", type=int, help="test rows a task (default 100, of a plane 50)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", default="stance,tone,minutes,science")
    parser.add_argument("--ends", type=Path, nargs=2, help="PEFT folders instead of the run's slow adapters")
    parser.add_argument("--train", type=int, default=96, help="training rows a task of the run")
    parser.add_argument("--plane", action="store_true")
    parser.add_argument("--grid", type=int, default=15)
    parser.add_argument("--work", type=Path, help="folder of the run and the plane (default: a temporary one)")
    chosen = parser.parse_args()
    names = chosen.tasks.split(",")
    where: dict[str, Any] = {"path": str(chosen.data)} if chosen.data else {"benchmark": "mini8"}
    rows = chosen.rows or (50 if chosen.plane else 100)
    where |= {"tasks": names, "max_length": 256} | ({} if chosen.data else {"limit": {"test": rows}})
    config = load_config({"model": {"name": chosen.model}, "data": where})
    with ExitStack() as held:
        work = chosen.work or Path(held.enter_context(TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        if chosen.plane:
            folder = trained_run(config, names, work, rows=chosen.train, test=rows)
            time_plane(folder, work, grid=chosen.grid, rows=rows)
            return
        if chosen.ends:
            ends = (space.read(chosen.ends[0], label="a"), space.read(chosen.ends[1], label="b"))
        else:
            source = from_run(trained_run(config, names, work, rows=chosen.train), pairs="last")
            ends = pair_of(source, "adjacent").ends
        time_path(config, ends, points=chosen.points, rows=rows)


def time_path(config: Config, ends: tuple[space.Adapter, space.Adapter], *, points: int, rows: int) -> dict[str, float]:
    """In one pass, then one at a time; printed and returned."""
    tasks: list[Task] = [limited(task, "test", rows) for task in load_tasks(config.data)]
    curve, ts = make_path("linear", ends, space="factors"), grid(points)

    def at_once() -> tuple[Landscape, list[PointScores]]:
        landscape = open_landscape(config, tasks, ends, split="test")
        return landscape, landscape.evaluate([curve.at(t) for t in ts], exact=(0, len(ts) - 1))

    (landscape, ours), cpu, wall = timed(at_once)
    print(f"in one pass:      {cpu:7.1f} CPU s {wall:7.1f} s", flush=True)
    theirs, plain_cpu, plain_wall = timed(lambda: all_plain(config, landscape, curve, ts))
    print(f"one at a time:    {plain_cpu:7.1f} CPU s {plain_wall:7.1f} s")
    print(f"ratio:            {plain_cpu / cpu:7.2f}       {plain_wall / wall:7.2f}")
    differ, total, gap = compare(ours, theirs)
    print(f"rows scored differently: {differ} of {total}; largest difference of a mean loss: {gap:.4f}")
    moved = sum(a != b for task in ours[0] for a, b in zip(ours[0][task].scores, ours[-1][task].scores, strict=True))
    print(f"rows scored differently at the two ends: {moved} of {total // len(ts)}")
    return {"seconds": wall, "plain_seconds": plain_wall, "ratio": plain_wall / wall, "differ": differ, "rows": total}


if __name__ == "__main__":
    main()
