"""What answers take on a GPU, ours against transformers and PEFT: random weights, nothing to download.

`python bench/gpu_answers.py` first compares the answers, then prints a table and writes JSON beside it. Without a GPU
it runs toy sizes: the figures then mean nothing, and the script is checked.
"""

from __future__ import annotations

import argparse
import gc
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from accelerate import Accelerator
from gpu import CARD, DEVICE, SHAPES, Shape, Tokenizer, base_model, busy_share, seconds_of, some_rows, toy
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GenerationConfig

from ilora.data.examples import Example, collate
from ilora.kernels.attention import GROUPED
from ilora.kernels.graphs import Compute, CudaRecorder
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.gpu import record_answers, suit_the_device
from ilora.model.load import prepare_model
from ilora.model.ranking import likelihoods
from ilora.settings import AdapterConfig, ModelConfig

PLAIN_ROWS = 32  # in a batch of the plain way


class Eager:
    """In place of CUDA graphs where there is no GPU: computes again."""

    def warm_up(self, compute: Callable[[], object]) -> None:
        """Once."""
        compute()

    def record(self, compute: Compute) -> tuple[Callable[[], object], list[Tensor]]:
        """Nothing is kept."""
        return compute, []


class Answers:
    """Prompts, choices, and how both ways answer them with the same weights."""

    def __init__(self, shape: Shape, dtype: torch.dtype, count: int, new: int) -> None:
        self.shape, self.base = shape, base_model(shape, dtype)
        self.dtype, self.new = dtype, new
        rows = some_rows(shape, "asked", count)
        self.prompts = sorted(([*row.prompt, *row.answer] for row in rows), key=len, reverse=True)
        self.choices = [
            [list(range(9 + number, 9 + number + size)) for size in (1, 2, 3, 2)] for number in range(count)
        ]
        self.settings = GenerationConfig(
            do_sample=False, max_new_tokens=new, eos_token_id=shape.model["vocab_size"], pad_token_id=0
        )  # that end never comes
        self.weights: dict[str, Tensor] = {}

    @contextmanager
    def ours(self) -> Iterator[Engine]:
        """An engine as a run has it; the base is left as it was."""
        self.base.set_attn_implementation("sdpa")
        prepare_model(self.base, Tokenizer(eos_token_id=2, pad_token_id=0), ModelConfig(), max_length=256)
        model = adapters.attach(self.base, AdapterConfig(**self.shape.adapter), name="fast", seed=0).to(DEVICE).eval()
        torch.manual_seed(1)
        for parameter in adapters.parameters(model, "fast").values():
            torch.nn.init.normal_(parameter, std=0.05)
        self.weights = {name: part.detach().clone() for name, part in adapters.parameters(model, "fast").items()}
        engine = Engine(model, Accelerator(cpu=not CARD), pad=0)
        suit_the_device(engine, ModelConfig())
        if engine.decoding is None:  # in float32, or without a GPU
            self.base.set_attn_implementation(GROUPED)
            record_answers(engine, CudaRecorder if CARD else Eager)
        try:
            yield engine
        finally:
            if engine.graphs is not None:
                del engine.graphs.decoder.forward
            model.unload()
            self.base.set_attn_implementation("sdpa")

    @contextmanager
    def plain(self) -> Iterator[Any]:
        """Transformers and PEFT with the weights that ours had."""
        settings = self.shape.adapter
        config = LoraConfig(task_type="CAUSAL_LM", r=settings["r"], lora_alpha=settings["alpha"],
                            target_modules=settings["target_modules"])  # fmt: skip
        model = get_peft_model(self.base, config, adapter_name="fast").eval()
        for name, value in model.named_parameters():
            if ".fast." in name:
                value.data.copy_(self.weights[name.replace(".fast.", ".")])
        try:
            yield model
        finally:
            model.unload()

    def parts(self, count: int, size: int) -> Iterator[slice]:
        """Of the first `count` rows."""
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def generated_by(self, engine: Engine, count: int) -> Tensor:
        """Our answers, (rows, new)."""
        size = self.size(engine)
        batches = (self.examples(part) for part in self.parts(count, size))
        made = [engine.generate(collate(rows, pad=0, device=DEVICE), self.settings) for rows in batches]
        return torch.cat(made)

    def ranked_by(self, engine: Engine, count: int) -> Tensor:
        """Our log-likelihoods, (rows, choices)."""
        made = []
        for part in self.parts(count, self.size(engine)):
            batch = collate(self.examples(part), pad=0, device=DEVICE)
            made.append(likelihoods(engine, batch, self.choices[part]))
        return torch.cat(made)

    def size(self, engine: Engine) -> int:
        """Rows that we answer at once."""
        assert engine.decoding is not None
        return engine.decoding.rows_at_once(max(map(len, self.prompts)) + self.new)

    def examples(self, part: slice) -> list[Example]:
        """Prompts as the engine takes them."""
        return [Example("asked", str(number), prompt, []) for number, prompt in enumerate(self.prompts[part])]

    def generated_plainly(self, model: Any, count: int) -> Tensor:
        """Left-padded batches through `generate`."""
        made = []
        for part in self.parts(count, PLAIN_ROWS):
            ids, mask = _padded(self.prompts[part], left=True)
            found = model.generate(input_ids=ids, attention_mask=mask, generation_config=self.settings)
            made.append(found[:, ids.shape[1] :])
        return torch.cat(made)

    def ranked_plainly(self, model: Any, count: int) -> Tensor:
        """A forward pass over prompt and choice for each choice."""
        made = []
        for part in self.parts(count, PLAIN_ROWS):
            columns = []
            for number in range(len(self.choices[0])):
                pairs = [
                    (prompt, row[number]) for prompt, row in zip(self.prompts[part], self.choices[part], strict=True)
                ]
                ids, mask = _padded([[*prompt, *choice] for prompt, choice in pairs], left=False)
                logits = model(input_ids=ids, attention_mask=mask).logits
                size = len(pairs[0][1])
                starts = torch.tensor([len(prompt) - 1 for prompt, _ in pairs], device=DEVICE)
                places = starts[:, None] + torch.arange(size, device=DEVICE)
                rows = torch.arange(len(pairs), device=DEVICE)[:, None]
                found = logits[rows, places].float().log_softmax(-1)
                labels = torch.tensor([choice for _, choice in pairs], device=DEVICE)
                columns.append(found.gather(2, labels[..., None]).sum((1, 2)))
            made.append(torch.stack(columns, dim=1))
        return torch.cat(made)


def _padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    gaps = [[0] * (width - len(row)) for row in rows]
    ids = [[*gap, *row] if left else [*row, *gap] for gap, row in zip(gaps, rows, strict=True)]
    ones = [[*gap, *[1] * len(row)] if left else [*[1] * len(row), *gap] for gap, row in zip(gaps, rows, strict=True)]
    return torch.tensor(ids, device=DEVICE), torch.tensor(ones, device=DEVICE)


def compared(shape: Shape, dtype: torch.dtype, count: int, new: int) -> dict[str, Any]:
    """Whether both ways give the same answers. In float32 nearly all must be the same: no rounding hides an error."""
    answers = Answers(shape, dtype, count, new)
    with answers.ours() as engine:
        runs = [answers.generated_by(engine, count) for _ in range(2)]
        ours, likely = runs[1], answers.ranked_by(engine, count)
    with answers.plain() as model:
        theirs, expected = answers.generated_plainly(model, count), answers.ranked_plainly(model, count)
    same = ours == theirs
    return {
        "rows": count, "tokens": new, "replayed_twice_the_same": bool(torch.equal(*runs)),
        "different_tokens": len(ours.unique()), "equal_first_tokens": float(same[:, 0].float().mean()),
        "equal_tokens": float(same.float().mean()), "equal_rows": float(same.all(1).float().mean()),
        "likelihoods_apart": float((likely - expected).abs().max()),
        "equal_choices": float((likely.argmax(1) == expected.argmax(1)).float().mean()),
    }  # fmt: skip


def measured(what: Callable[[], Any], *, times: int, scale: float = 1.0, profile: bool = True) -> dict[str, Any]:
    """Seconds (the fastest), of the first time, peak memory, and the share of the time in which the card computes.

    scale: how many times as much there is to do as is done.
    """
    gc.collect()
    if CARD:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    first = seconds_of(what)
    took = [seconds_of(what) for _ in range(times)] or [first]
    found: dict[str, Any] = {"seconds": scale * min(took), "slowest": scale * max(took), "first": scale * first}
    if CARD:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if profile:
            found |= busy_share(what)
    return found


def table(shape: Shape, count: int, new: int, report: Callable[[str, dict[str, Any]], None]) -> None:
    """Both ways over the same rows in bfloat16; of the plain generation a part is timed, since it takes so long."""
    answers = Answers(shape, torch.bfloat16, count, new)
    found: dict[str, dict[str, Any]] = {}
    with answers.ours() as engine:
        found["generate, ours"] = measured(lambda: answers.generated_by(engine, count), times=2)
        found["rank, ours"] = measured(lambda: answers.ranked_by(engine, count), times=2)
    part = min(count, 3 * PLAIN_ROWS)
    with answers.plain() as model:
        found["generate, plain"] = measured(
            lambda: answers.generated_plainly(model, part), times=0, scale=count / part, profile=False
        )
        found["rank, plain"] = measured(lambda: answers.ranked_plainly(model, count), times=1, profile=False)
    for kind in ("generate", "rank"):
        ours, plain = found[f"{kind}, ours"], found[f"{kind}, plain"]
        report(f"{kind}, plain", plain)
        report(f"{kind}, ours", ours | {"times_plain": plain["seconds"] / ours["seconds"]})


def main() -> int:
    """Print and write the table; 1 where a part failed or the answers differ in float32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/gpu_answers.json"))
    parser.add_argument("--rows", type=int, default=512 if CARD else 12)
    parser.add_argument("--tokens", type=int, default=32 if CARD else 6)
    options = parser.parse_args()
    shape = SHAPES["135M"] if CARD else toy(SHAPES["135M"])
    card = torch.cuda.get_device_name() if CARD else "no GPU: toy sizes"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    print(card, versions)
    lines: dict[str, dict[str, Any]] = {}

    def report(name: str, found: dict[str, Any]) -> None:
        lines[name] = found
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in found.items()}
        print(f"{name:20} { {key: value for key, value in shown.items() if not isinstance(value, list)} }", flush=True)
        options.out.write_text(json.dumps({"card": card, **versions, "lines": lines}, indent=1), encoding="utf-8")

    def part(name: str, what: Callable[[], None]) -> None:
        """One that fails leaves the others to run."""
        try:
            with torch.inference_mode():
                what()
        except Exception as error:  # shown whole: nobody may be there to try again
            traceback.print_exc()
            report(name, {"failed": f"{type(error).__name__}: {error}"})
        gc.collect()

    few = min(options.rows, 64)
    for dtype in (torch.float32, torch.bfloat16):
        name = f"same in {str(dtype).removeprefix('torch.')}"
        part(name, lambda: report(name, compared(shape, dtype, few, options.tokens)))  # noqa: B023
    part("table", lambda: table(shape, options.rows, options.tokens, report))
    exact = lines["same in float32"]
    sound = exact.get("equal_rows", 0.0) >= 0.9 and exact["likelihoods_apart"] < 1e-3
    return 0 if sound and not any("failed" in line for line in lines.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
