"""How the run folders beside this file were made, with the code of commit d40346a (before the parts were taken apart):

    git worktree add /tmp/before d40346a
    PYTHONPATH=/tmp/before/src:. python tests/old_run/make.py

Two runs on a tiny random Llama: `finished`, and `interrupted`, which was killed in its second task.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilora.config import load_config
from ilora.runner import run
from ilora.training.session import Session

HERE = Path(__file__).parent
PLACE = Path("/ilora-old-run")  # stands in the stored configurations; the test puts its own folder there


def write_model(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=len(wrapped), bos_token_id=0, eos_token_id=1, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)


def write_tasks(folder: Path) -> None:
    for name, answers in {"one": "ab", "two": "ba", "three": "aa"}.items():
        (folder / name).mkdir(parents=True)
        for split, count in {"train": 16, "eval": 4, "test": 4}.items():
            rows = [{"prompt": f"{name} {split} {n} :", "answer": answers[n % 2]} for n in range(count)]
            (folder / name / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


class Killed(Exception):
    pass


def main() -> None:
    for name in ("model", "tasks", "finished", "interrupted"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    write_model(PLACE / "model")
    write_tasks(PLACE / "tasks")
    config = load_config(
        {
            "name": "old",
            "model": {"name": str(PLACE / "model"), "dtype": "float32"},
            "adapter": {"r": 2, "alpha": 4, "dropout": 0.1},
            "data": {"path": str(PLACE / "tasks"), "tasks": ["one", "two"], "max_length": 48},
            "training": {"epochs": 1, "global_batch_size": 4, "learning_rate": 0.01, "checkpoint_every": 1},
            "evaluation": {"max_new_tokens": 2},
            "method": {"name": "ilora", "memory_size": 6},
            "contrast": ["sequential"],
        }
    )
    torch.set_num_threads(1)
    run(config, PLACE / "finished", quiet=True)
    step, calls = Session._step, 0

    def killing(self: Session, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise Killed
        step(self, *args)

    Session._step = killing  # type: ignore[method-assign]
    with contextlib.suppress(Killed):
        run(config, PLACE / "interrupted", quiet=True)
    for name in ("model", "tasks", "finished", "interrupted"):
        shutil.copytree(PLACE / name, HERE / name)
    for file in HERE.glob("*/report.html"):
        file.unlink()


if __name__ == "__main__":
    main()
