"""Words of other tools for our settings: those that are taken, and what to use in place of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ilora.errors import InputError

# Words of other tools, and of those who leave a section out: what they mean here.
SAME = {
    "lr": "training.learning_rate",
    "learning_rate": "training.learning_rate",
    "training.lr": "training.learning_rate",
    "epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "training.num_epochs": "training.epochs",
    "training.num_train_epochs": "training.epochs",
    "lora_rank": "adapter.r",
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
}
# Those without a counterpart of the same meaning: what to use.
INSTEAD = {
    "max_steps": "training.epochs and data.limit.train decide how many steps there are",
    "gradient_accumulation_steps": "training.global_batch_size is a step's rows, training.micro_batch_size a pass's",
    "per_device_train_batch_size": "training.micro_batch_size is a pass's rows, training.global_batch_size a step's",
    "batch_size": "training.global_batch_size is a step's rows, evaluation.batch_size those answered together",
    "warmup_steps": "training.warmup_ratio is the share of a task's steps",
    "lr_scheduler_type": "training.schedule is constant, linear or cosine",
    "output_dir": "the folder is given as --out",
    "bf16": "model.dtype is bfloat16 or float32",
    "fp16": "model.dtype is bfloat16 or float32",
}


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
