"""The plain way: what one would write today with transformers' `Trainer` and PEFT alone.

    .venv/bin/python bench/plain.py SPEC.json

trains sequential fine-tuning, experience replay or I-LoRA over the tasks of a specification and generates the answers
to every task so far after each. Same model, rows, precision, loss, optimizer and adapter as ours: LoRA in PEFT's own
layer, attention as transformers chooses it, logits at every position, rows padded to the longest of the batch as they
come, and for I-LoRA three forward passes: the current rows, the replayed rows, and these again with the slow adapter.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)

from ilora.training.peak import peak_memory

Row = dict[str, list[int]]  # input_ids, labels


def load(name: str, dtype: str = "bfloat16") -> tuple[Any, PreTrainedTokenizerBase]:
    """Model and tokenizer as `from_pretrained` gives them."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype)), tokenizer


def with_adapters(base: Any, adapter: dict[str, Any], names: Sequence[str]) -> PeftModel:
    """LoRA adapters of one shape; the first one is trained."""
    config = LoraConfig(task_type="CAUSAL_LM", r=adapter["r"], lora_alpha=adapter["alpha"],
                        lora_dropout=adapter["dropout"], target_modules=adapter["target_modules"])  # fmt: skip
    model = get_peft_model(base, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.set_adapter(names[0])
    return model


def encode(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    """One row: the loss is on the answer and its end."""
    asked = tokenizer(prompt).input_ids
    said = [*tokenizer(" " + answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return {"input_ids": asked + said, "labels": [-100] * len(asked) + said}


class PlainTrainer(Trainer):
    """A `Trainer` whose loss is that of the method.

    memory: rows of earlier tasks; as many of them as current rows are drawn for every step. draws: those drawn rows,
    step by step, where the caller has chosen them already.
    """

    def __init__(
        self, *, method: str, memory: Sequence[Row] = (), draws: Sequence[list[Row]] = (), **more: Any
    ) -> None:
        super().__init__(**more)
        self.method, self.memory, self.draws = method, list(memory), list(draws)
        self.losses: list[float] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(train_dataset or self.train_dataset)

    def replayed(self, count: int) -> dict[str, Tensor] | None:
        """A batch of earlier rows."""
        if self.draws:
            rows = self.draws[self.state.global_step]
        else:
            rows = random.Random(self.state.global_step).sample(self.memory, min(count, len(self.memory)))
        return self.data_collator([dict(row) for row in rows]) if rows else None

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """Cross-entropy; with replay ½ + ½; with I-LoRA the gap of the last hidden states, too."""
        loss = model(**inputs).loss
        old = None if self.method == "sequential" else self.replayed(len(inputs["input_ids"]))
        if old is not None:
            fast = model(**old, output_hidden_states=self.method == "ilora")
            loss = 0.5 * loss + 0.5 * fast.loss
            if self.method == "ilora":
                model.set_adapter("slow")
                with torch.no_grad():
                    slow = model(**old, output_hidden_states=True)
                model.set_adapter("fast")
                square = (slow.hidden_states[-1].float() - fast.hidden_states[-1].float()).square().mean(-1)
                loss = loss + (square * old["attention_mask"]).sum() / old["attention_mask"].sum()
        self.losses.append(loss.item())
        return (loss, None) if return_outputs else loss


class MovingAverage(TrainerCallback):
    """slow <- λ · slow + (1 - λ) · fast after every step."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        """The optimizer has moved the fast one."""
        weights = dict(model.named_parameters())
        for name, fast in weights.items():
            if ".fast." in name:
                slow = weights[name.replace(".fast.", ".slow.")]
                slow.mul_(self.decay).add_(fast, alpha=1 - self.decay)


def trainer(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, method: str, batch: int, rate: float, folder: str, **more: Any
) -> PlainTrainer:
    """One epoch over the rows in the given order, AdamW at a constant rate, gradients clipped at 1."""
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=rate,
        lr_scheduler_type="constant", optim="adamw_torch", max_grad_norm=1.0, weight_decay=0.0, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False, use_cpu=True,
    )  # fmt: skip
    made = PlainTrainer(
        method=method, model=model, args=arguments, train_dataset=list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True), **more,
    )  # fmt: skip
    if method == "ilora":
        made.add_callback(MovingAverage(0.9))
    return made


def generated(model: Any, tokenizer: Any, prompts: Sequence[str], *, batch: int, new_tokens: int) -> Iterator[str]:
    """Greedy answers, in batches as the prompts come."""
    tokenizer.padding_side = "left"
    model.eval()
    for start in range(0, len(prompts), batch):
        asked = tokenizer(list(prompts[start : start + batch]), return_tensors="pt", padding=True)
        with torch.no_grad():
            made = model.generate(
                **asked, do_sample=False, max_new_tokens=new_tokens, pad_token_id=tokenizer.pad_token_id
            )
        for ids in made[:, asked.input_ids.shape[1] :]:
            yield tokenizer.decode(ids, skip_special_tokens=True).strip()
    model.train()
    tokenizer.padding_side = "right"


@torch.no_grad()
def ranked(model: Any, tokenizer: Any, prompts: Sequence[str], choices: Sequence[str], *, batch: int) -> Iterator[str]:
    """The likeliest choice: a whole pass over prompt and answer for each."""
    model.eval()
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True)
    for start in range(0, len(prompts), batch):
        scores = []
        for choice in choices:
            inputs = collate([encode(prompt, choice, tokenizer) for prompt in prompts[start : start + batch]])
            labels = inputs.pop("labels")[:, 1:]
            likely = model(**inputs).logits[:, :-1].float().log_softmax(-1)
            picked = likely.gather(2, labels.clamp(min=0)[..., None])[..., 0]
            scores.append((picked * (labels != -100)).sum(1))
        yield from (choices[best] for best in torch.stack(scores, 1).argmax(1).tolist())
    model.train()


def main() -> None:
    """Every task of the specification: train, generate, keep rows for replay."""
    logging.set_verbosity_error()
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    base, tokenizer = load(spec["model"])
    model = with_adapters(base, spec["adapter"], ["fast", "slow"] if spec["method"] == "ilora" else ["fast"])
    memory: list[Row] = []
    scores: dict[str, list[float]] = {}
    seconds = 0.0
    for number, task in enumerate(spec["tasks"]):
        folder = Path(spec["data"]) / task
        rows = [encode(row["prompt"], row["answer"], tokenizer)
                for row in json.loads((folder / "train.json").read_text(encoding="utf-8"))]  # fmt: skip
        made = trainer(model, tokenizer, rows, method=spec["method"], batch=spec["batch"], rate=spec["rate"],
                       folder=spec["out"], memory=memory)  # fmt: skip
        seconds += made.train().metrics["train_runtime"]
        memory += rows[: spec["memory"] // len(spec["tasks"])]
        model.save_pretrained(Path(spec["out"]) / f"after-{number}")
        if spec["method"] == "ilora":
            model.set_adapter("slow")
        for seen in spec["tasks"][: number + 1]:
            test = json.loads((Path(spec["data"]) / seen / "test.json").read_text(encoding="utf-8"))
            answers = generated(model, tokenizer, [row["prompt"] for row in test], batch=spec["evaluation_batch"],
                                new_tokens=spec["new_tokens"])  # fmt: skip
            scores.setdefault(seen, []).append(
                sum(said == row["answer"] for said, row in zip(answers, test, strict=True)) / len(test)
            )
        if spec["method"] == "ilora":
            model.set_adapter("fast")
    print(
        json.dumps({"scores": scores, "train_seconds": seconds, "peak_memory_bytes": peak_memory(torch.device("cpu"))})
    )


if __name__ == "__main__":
    main()
