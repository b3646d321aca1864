"""What a training step takes on a GPU, ours against the plain way: shapes with random weights, nothing to download.

`python bench/gpu.py` prints a table and writes JSON beside it. Without a GPU it runs toy sizes: the figures then mean
nothing, and the script is checked.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import torch
import transformers
from accelerate import Accelerator
from machine import needed_operations
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ilora.config import load_config
from ilora.data.examples import IGNORED, Example
from ilora.methods import method_class
from ilora.methods.view import Position, RunView
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.gpu import suit_the_device
from ilora.model.load import prepare_model
from ilora.replay.memory import ReplayMemory
from ilora.settings import ModelConfig
from ilora.training.loop import optimizer_step
from ilora.training.optim import make_optimizer

CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CARD else "cpu")
RATE, DECAY = 1e-4, 0.9


@dataclass(frozen=True)
class Shape:
    """A model of the Llama type, and the rows of a step."""

    name: str
    model: dict[str, Any]
    adapter: dict[str, Any]
    rows: int
    lengths: tuple[int, int]
    answers: tuple[int, int] = (4, 12)


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMALL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
LARGE = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip
TOY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
SHAPES = {
    "135M": Shape("135M", SMALL, {"r": 8, "alpha": 16, "target_modules": ALL}, 16, (32, 128)),
    "7B": Shape("7B", LARGE, {"r": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}, 16, (512, 512)),
    "7B uneven": Shape(
        "7B uneven", LARGE, {"r": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}, 16, (64, 512)
    ),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "padded": {"attention": "sdpa", "kernels": "plain", "graphs": "off"},
    "packed": {"kernels": "plain", "graphs": "off"},
    "packed, graphs": {"kernels": "plain", "graphs": "auto"},
    "packed, compiled": {"kernels": "compiled", "graphs": "off"},
    "packed, compiled, graphs": {"kernels": "compiled", "graphs": "auto"},
}
CASES = {
    "135M": ["padded", "packed", "packed, graphs", "packed, compiled, graphs"],
    "7B": ["packed", "packed, compiled"],
    "7B uneven": ["packed", "packed, compiled"],
}


def toy(shape: Shape) -> Shape:
    """The same with sizes for a CPU."""
    low, high = shape.lengths
    return replace(shape, model=TOY, rows=4, lengths=(low // 8, high // 8), answers=(2, 3))


def base_model(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Random weights, made on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with DEVICE:
            return LlamaForCausalLM(LlamaConfig(**shape.model)).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def some_rows(shape: Shape, task: str, count: int) -> list[Example]:
    """Rows of random tokens."""
    source = random.Random(task)

    def some(size: int) -> list[int]:
        return [source.randrange(4, shape.model["vocab_size"]) for _ in range(size)]

    rows = []
    for index in range(count):
        answer = source.randint(*shape.answers)
        rows.append(
            Example(task, f"{task}/train/{index}", some(max(1, source.randint(*shape.lengths) - answer)), some(answer))
        )
    return rows


class Tokenizer(SimpleNamespace):
    """What `prepare_model` asks of a tokenizer."""

    def __len__(self) -> int:
        return 4


class Ours:
    """I-LoRA in the middle of a second task."""

    def __init__(self, base: Any, shape: Shape, variant: dict[str, Any], *, micro_batch: int, dropout: float) -> None:
        config = load_config(
            {
                "model": {"name": "none", **variant},
                "adapter": shape.adapter | {"dropout": dropout},
                "data": {"path": "none"},
                "training": {"global_batch_size": shape.rows, "micro_batch_size": micro_batch, "learning_rate": RATE},
                "method": {"name": "ilora", "memory_size": 64, "ema_decay": DECAY},
            }
        )
        base.set_attn_implementation("sdpa")
        prepare_model(base, Tokenizer(eos_token_id=2, pad_token_id=0), config.model, max_length=max(shape.lengths))
        model = adapters.attach(base, config.adapter, name="fast", seed=0)
        self.engine = Engine(model.to(DEVICE).train(), Accelerator(cpu=not CARD), pad=0, micro_batch_size=micro_batch)
        suit_the_device(self.engine, ModelConfig(**variant) if variant else ModelConfig())
        here = Position(task="new", current_tasks=frozenset(["new"]), task_index=2, task_steps=1000, epoch=1)
        run = RunView(self.engine, ReplayMemory(64, seed=0), config.training, here)
        self.method = method_class("ilora")(run, config.method)
        self.method.memory.offer(some_rows(shape, "old", 64))
        self.method.begin_task()
        self.optimizer = make_optimizer(self.method.trainable, config.training)

    def step(self, step: int, rows: list[Example]) -> tuple[float, float]:
        """Loss, and the gradient's norm."""
        self.method.run.position = replace(self.method.position, step=step, task_step=step)
        report = optimizer_step(self.method, self.optimizer, rows)
        return report.loss, report.grad_norm

    def drawn(self, step: int, count: int) -> list[Example]:
        """The rows that the step replays."""
        return self.method.memory.draw(count, key=f"{step}", without=["new"])

    def close(self) -> None:
        """Leave the base model as it was."""
        core = self.engine.core
        if self.engine.graphs is not None:
            del self.engine.graphs.decoder.forward
        for layer in core.get_decoder().layers:
            layer._compiled_call_impl = None
        self.engine.model.unload()
        core.set_attn_implementation("sdpa")


class Plain:
    """The same by transformers and PEFT: right padding, three forward passes, a loop over the weights."""

    def __init__(self, base: Any, shape: Shape, *, dropout: float) -> None:
        config = LoraConfig(task_type="CAUSAL_LM", r=shape.adapter["r"], lora_alpha=shape.adapter["alpha"],
                            lora_dropout=dropout, target_modules=shape.adapter["target_modules"])  # fmt: skip
        torch.manual_seed(0)
        self.model = get_peft_model(base, config, adapter_name="fast")
        self.model.add_adapter("slow", config)
        self.model.set_adapter("fast")
        self.model.train()
        weights = dict(self.model.named_parameters())
        self.fast = [value for name, value in weights.items() if ".fast." in name]
        self.slow = [value for name, value in weights.items() if ".slow." in name]
        for slow, fast in zip(self.slow, self.fast, strict=True):
            slow.data.copy_(fast.data)
        self.optimizer = torch.optim.AdamW(self.fast, lr=RATE, weight_decay=0.0)

    def take(self, start: dict[str, Tensor]) -> None:
        """Start from these weights, by the names that ours have."""
        for name, value in self.model.named_parameters():
            for adapter in ("fast", "slow"):
                if f".{adapter}." in name:
                    value.data.copy_(start[name.replace(f".{adapter}.", ".")])

    def batch(self, rows: Sequence[Example]) -> dict[str, Tensor]:
        """Padded on the right, as transformers' collator does it."""
        width = max(map(len, rows))
        ids = [row.prompt + row.answer + [0] * (width - len(row)) for row in rows]
        labels = [[IGNORED] * len(row.prompt) + row.answer + [IGNORED] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        values = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        return {name: torch.tensor(value, device=DEVICE) for name, value in values.items()}

    def step(self, rows: Sequence[Example], old: Sequence[Example]) -> tuple[float, float]:
        """Loss, and the gradient's norm."""
        replayed = self.batch(old)
        self.optimizer.zero_grad()
        loss = 0.5 * self.model(**self.batch(rows)).loss
        loss.backward()
        fast = self.model(**replayed, output_hidden_states=True)
        self.model.set_adapter("slow")
        with torch.no_grad():
            slow = self.model(**replayed, output_hidden_states=True)
        self.model.set_adapter("fast")
        square = (slow.hidden_states[-1].float() - fast.hidden_states[-1].float()).square().mean(-1)
        gap = (square * replayed["attention_mask"]).sum() / replayed["attention_mask"].sum()
        more = 0.5 * fast.loss + gap
        more.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.fast, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for slow_weight, fast_weight in zip(self.slow, self.fast, strict=True):
                slow_weight.mul_(DECAY).add_(fast_weight, alpha=1 - DECAY)
        return float(loss.detach() + more.detach()), float(norm)


def wait() -> None:
    """Until the card has done all that it was given."""
    if CARD:
        torch.cuda.synchronize()


def seconds_of(what: Callable[[], Any]) -> float:
    """Wall seconds, the card's work included."""
    wait()
    began = time.perf_counter()
    what()
    wait()
    return time.perf_counter() - began


def matrix_rate() -> float:
    """Floating-point operations in a second of large bfloat16 products."""
    size = 8192 if CARD else 256
    left, right = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    left @ right
    return 2 * size**3 * 10 / seconds_of(lambda: [left @ right for _ in range(10)])


def busy_share(step: Callable[[], Any]) -> dict[str, Any]:
    """The share of a step's time in which the card computes, how many kernels it ran, and the longest of them."""
    from torch.profiler import ProfilerActivity, profile

    took = min(seconds_of(step) for _ in range(3))
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        wait()
    kernels = [event for event in seen.key_averages() if event.self_device_time_total]
    longest = sorted(kernels, key=lambda event: -event.self_device_time_total)[:15]
    return {
        "busy": sum(event.self_device_time_total for event in kernels) / 1e6 / took,
        "kernels": sum(event.count for event in kernels),
        "longest_ms": [
            (event.key[:90], round(event.self_device_time_total / 1e3, 2), event.count) for event in longest
        ],
    }


@dataclass
class Comparison:
    """The plain step and each variant of ours, on the same rows from the same weights."""

    shape: Shape
    micro_batch: int
    count: int

    def __post_init__(self) -> None:
        self.base, self.rate = base_model(self.shape), matrix_rate()
        self.rows = [some_rows(self.shape, f"new{number}", self.shape.rows) for number in range(8)]
        ours = Ours(self.base, self.shape, VARIANTS["padded"], micro_batch=self.micro_batch, dropout=0.0)
        self.old = [ours.drawn(number, self.shape.rows) for number in range(8)]
        self.operations = [
            needed_operations(ours.engine.model, [*rows, *old], old)
            for rows, old in zip(self.rows, self.old, strict=True)
        ]
        self.start = {
            name: value.detach().clone() for name, value in adapters.parameters(ours.engine.model, "fast").items()
        }
        ours.close()

    def plain(self) -> dict[str, Any]:
        """Figures of transformers and PEFT."""
        plain = Plain(self.base, self.shape, dropout=0.0)
        plain.take(self.start)

        def step(number: int) -> tuple[float, float]:
            return plain.step(self.rows[number % 8], self.old[number % 8])

        try:
            return self.measured(step, warm=2)
        finally:
            plain.model.unload()

    def ours(self, variant: str) -> dict[str, Any]:
        """Figures of one variant of ours."""
        ours = Ours(self.base, self.shape, VARIANTS[variant], micro_batch=self.micro_batch, dropout=0.0)

        def step(number: int) -> tuple[float, float]:
            return ours.step(number % 8, self.rows[number % 8])

        try:
            found = self.measured(step, warm=24 if "graphs" in variant else 3)
            if ours.engine.graphs is not None:
                found["recordings"] = len(ours.engine.graphs.recordings)
            return found
        finally:
            ours.close()

    def measured(self, step: Callable[[int], tuple[float, float]], *, warm: int) -> dict[str, Any]:
        """Median seconds of a step, the share of the card's rate and time, the first step's loss and the peak."""
        gc.collect()
        if CARD:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        loss, norm = step(0)
        first = time.perf_counter() - began
        warming = seconds_of(lambda: [step(number) for number in range(1, warm)])
        times = [seconds_of(lambda: step(number)) for number in range(warm, warm + self.count)]  # noqa: B023
        needed = statistics.mean(self.operations[number % 8] for number in range(warm, warm + self.count))
        seconds = statistics.mean(times)
        found = {"seconds": seconds, "fastest": min(times), "slowest": max(times), "first": first, "warming": warming,
                 "loss": loss, "norm": norm, "rate": self.rate, "share": needed / seconds / self.rate}  # fmt: skip
        if CARD:
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            found |= busy_share(lambda: step(0))
        return found

    def run(self, names: Sequence[str], report: Callable[..., None]) -> None:
        """All of them, one after the other."""
        plain_seconds = None
        for name in ["plain", *names]:
            try:
                found = self.plain() if name == "plain" else self.ours(name)
            except torch.OutOfMemoryError as error:
                found = {"failed": str(error).splitlines()[0]}
            else:
                plain_seconds = found["seconds"] if name == "plain" else plain_seconds
                found["times_plain"] = plain_seconds and plain_seconds / found["seconds"]
            report(self.shape, name, self.micro_batch, found)


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/gpu.json"))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--micro-batch", type=int, default=0, help="rows in a pass; 0: the whole step's")
    parser.add_argument("--variants", default="", help="of ours, with ; between them; all of the shape's if left out")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    card = torch.cuda.get_device_name() if CARD else "no GPU: toy sizes"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    print(card, versions)
    lines: list[dict[str, Any]] = []

    def report(shape: Shape, name: str, micro_batch: int, found: dict[str, Any]) -> None:
        lines.append({"shape": shape.name, "variant": name, "micro_batch": micro_batch, **found})
        numbers = {key: f"{value:.4g}" for key, value in found.items() if isinstance(value, float)}
        more = {key: value for key, value in found.items() if isinstance(value, int | str)}
        print(f"{shape.name:10} {name:26} {micro_batch:3} {numbers | more}", flush=True)
        options.out.write_text(json.dumps({"card": card, **versions, "lines": lines}, indent=1), encoding="utf-8")

    for key in options.shapes.split(","):
        shape = SHAPES[key] if CARD else toy(SHAPES[key])
        micro_batch = options.micro_batch or (2 * shape.rows if key == "135M" else shape.rows)
        Comparison(shape, micro_batch, options.steps).run(
            options.variants.split(";") if options.variants else CASES[key], report
        )


if __name__ == "__main__":
    main()
