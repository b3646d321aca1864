"""Words of other tools for our settings: those that are taken, and what to use in place of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ilora.errors import InputError

# Words of other tools, and of those who leave a section out: what they mean here.
SAME = {
    "lr": "training.learning_rate",
    "learning_rate": "training.learning_rate",
    "training.lr": "training.learning_rate",
    "epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "num_epochs": "training.epochs",
    "training.num_epochs": "training.epochs",
    "training.num_train_epochs": "training.epochs",
    "max_steps": "training.max_steps",
    "save_steps": "training.checkpoint_every",
    "training.save_steps": "training.checkpoint_every",
    "logging_steps": "training.log_every",
    "training.logging_steps": "training.log_every",
    "rank": "adapter.r",
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "lora_target_modules": "adapter.target_modules",
    "model_name_or_path": "model.name",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "adapter.rank": "adapter.r",
    "adapter.lora_rank": "adapter.r",
    "adapter.lora_r": "adapter.r",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "data.max_seq_length": "data.max_length",
    "columns": "data.columns",
    "marker": "data.marker",
    "template": "data.template",
    "unanswered": "data.unanswered",
    "memory_size": "method.memory_size",
}
# Those without a counterpart of the same meaning: what to use.
INSTEAD = {
    "eval_steps": "training.stop_when: {every: ...} is the steps between validation losses; scores come after tasks",
    "early_stopping": "training.stop_when is {patience: 3, every: 20, min_delta: 0}",
    "early_stopping_patience": "training.stop_when: {patience: ...} is the measurements without a new lowest loss",
    "early_stopping_threshold": "training.stop_when: {min_delta: ...} is how much lower a loss must be",
    "load_best_model_at_end": "training.stop_when ends a task early, with the weights of its last step",
    "gradient_accumulation_steps": "training.global_batch_size is a step's rows, training.micro_batch_size a pass's",
    "per_device_train_batch_size": "training.micro_batch_size is a pass's rows, training.global_batch_size a step's",
    "batch_size": "training.global_batch_size is a step's rows, evaluation.batch_size those answered together",
    "warmup_steps": "training.warmup_ratio is the share of a task's steps",
    "lr_scheduler_type": "training.schedule is constant, linear or cosine",
    "start_from": "adapter.start_from is the adapter that the run and its contrast runs start from",
    "memory_from": "data.start_rows are the rows that enter the memory before the first task",
    "load_in_4bit": "model.quantization is none, 8bit or 4bit",
    "load_in_8bit": "model.quantization is none, 8bit or 4bit",
    "choices": "it is a task's: data.tasks=[{name: ..., path: ..., choices: ['yes', 'no']}]",
    "metric": "it is a task's: data.tasks=[{name: ..., path: ..., metric: ...}]",
    "scoring": "it is a task's: data.tasks=[{name: ..., path: ..., scoring: rank, choices: [...]}]",
    "optimizer": "it is AdamW; training has learning_rate, weight_decay and schedule",
    "optim": "it is AdamW; training has learning_rate, weight_decay and schedule",
    "output_dir": "the folder is given as --out",
    "bf16": "model.dtype is auto, bfloat16 or float32",
    "fp16": "model.dtype is auto, bfloat16 or float32",
}


def advice(word: str, model: type[BaseModel]) -> str:
    """What to write in place of an unknown key at the top level; empty where nothing is known of it.

    model: that of the whole configuration, whose sections may have the key.
    """
    if word in INSTEAD:
        return f"; {INSTEAD[word]}"
    sections = [
        f"{section}.{word}"
        for section, field in model.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and word in field.annotation.model_fields
    ]
    return f"; it is {' or '.join(sections)}" if sections else ""


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the words of SAME under our names. Raises InputError where one is given twice."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for word, ours in SAME.items():
        *section, key = word.split(".")
        table = found.get(section[0]) if section else found
        if not isinstance(table, dict) or key not in table:
            continue
        target, name = ours.split(".")
        place = found.get(target) or {}
        if not isinstance(place, Mapping):
            continue  # the section itself is wrong, which is said elsewhere
        if name in place:
            raise InputError(f"{word} and {ours} are the same setting; give one of them")
        found[target] = {**place, name: table[key]}
        (found[section[0]] if section else found).pop(key)
    return found
