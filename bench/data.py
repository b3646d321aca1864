"""What looking at data costs: loading and checking 50,000 rows, and taking 1,000 rows out of up to ten million.

    .venv/bin/python bench/data.py [--rows 10_000_000]

Prints seconds and the peak resident memory of each, in a process of its own (Linux). The rows are made up: words as
frequent as in a language (Zipf), 40 to 160 a prompt, in one of ten an earlier prompt with a word replaced, so that
there are near duplicates to find; shorter ones for the long files. The tokenizer is the bundled model's.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import accumulate, product
from pathlib import Path

WORDS = ["".join(parts) for parts in product("bdfgklmnprst", "aeiou", ("n", "r", "st", "ng", "ck", "ll", "m", "p"))]


def make_texts(source: random.Random, count: int, *, least: int, most: int) -> list[str]:
    """Texts of `least` to `most` words; one of ten repeats an earlier one but for a word."""
    weights = list(accumulate(1 / rank for rank in range(1, len(WORDS) + 1)))
    texts: list[list[str]] = []
    for _ in range(count):
        words = source.choices(WORDS, cum_weights=weights, k=source.randint(least, most))
        if texts and source.random() < 0.1:
            words = list(source.choice(texts))
            words[source.randrange(len(words))] = source.choice(WORDS)
        texts.append(words)
    return [" ".join(words) for words in texts]


def write_rows(path: Path, count: int, *, least: int, most: int) -> None:
    """`count` rows of JSON lines with prompts of `least` to `most` words; beyond 50,000 the texts come again."""
    source = random.Random(f"{path.name}/{count}")
    texts = make_texts(source, min(count, 50_000), least=least, most=most)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = texts[number % len(texts)]
            row = {"prompt": f"Question {number}: {text}\nAnswer:", "answer": source.choice("ABCD")}
            file.write(json.dumps(row) + "\n")


def make_model(folder: Path, **sizes: int) -> None:
    """A random Llama of these sizes and a real tokenizer."""
    import torch  # here, since the memory of processes without it is measured
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from ilora.model.load import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m"))
    torch.manual_seed(0)
    found = {"vocab_size": len(tokenizer), "num_attention_heads": 4, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(**found, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check(folder: Path) -> str:
    """Load and check all of it, as `ilora data check` does."""
    from ilora.check.audit import check_config, config_of

    (report,) = check_config(config_of(folder, []))
    return f"{sum(report['rows'].values()):,} rows loaded and checked, {sum(report['near'].values()):,} near duplicates"


def take(folder: Path) -> str:
    """Load 1,000 rows of each split."""
    from ilora.settings import DataConfig
    from ilora.stream import load_tasks

    limit = {"train": 1000, "eval": 1000, "test": 1000}
    (task,) = load_tasks(DataConfig.model_validate({"path": folder, "limit": limit}))
    return f"{len(task.rows['train']):,} rows taken out of {folder.name}"


def peak_memory() -> float:
    """MiB of this process alone: `ru_maxrss` would begin at its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10


def measure(action: str, folder: Path) -> None:
    """Run one of the above in a process of its own."""
    done = subprocess.run([sys.executable, __file__, action, folder], check=True, capture_output=True, text=True)
    print(done.stdout, end="", flush=True)


def main() -> None:
    """Make the files and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", nargs="?", choices=["check", "take"], help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=10_000_000)
    given = parser.parse_args()
    if given.action:
        began = time.perf_counter()
        said = {"check": check, "take": take}[given.action](given.folder)
        seconds = f"{time.perf_counter() - began:.1f} s ({time.process_time():.1f} s of CPU)"
        print(f"{said}: {seconds}, {peak_memory():,.0f} MiB")
        return
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "small"
        for split, count in {"train": 40_000, "eval": 5_000, "test": 5_000}.items():
            write_rows(small / "task" / f"{split}.jsonl", count, least=40, most=160)
        measure("check", small)
        for count in (given.rows // 100, given.rows // 10, given.rows):
            long = Path(scratch) / f"{count:,} rows"
            for split, size in {"train": count, "eval": 1000, "test": 1000}.items():
                write_rows(long / "task" / f"{split}.jsonl", size, least=5, most=15)
            measure("take", long)


if __name__ == "__main__":
    main()
