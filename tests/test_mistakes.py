"""Mistakes that people make: each is one message that names the place, the value and the cure, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import Refused

# What is typed after `ilora`, and what the message must hold: the place, the value, the cure.
SETTINGS: dict[str, tuple[str, ...]] = {
    "lr=fast": ("training.learning_rate", "'fast'", "number"),
    "training.learning_rat=1e-3": ("training.learning_rat", "did you mean 'learning_rate'"),
    "training.epochs=0": ("training.epochs", "got 0", "greater than or equal to 1"),
    "epochs=two": ("training.epochs", "'two'", "integer"),
    "batch_size=8": ("batch_size", "training.global_batch_size", "evaluation.batch_size"),
    "gradient_accumulation_steps=4": ("gradient_accumulation_steps", "training.micro_batch_size"),
    "per_device_train_batch_size=4": ("per_device_train_batch_size", "training.micro_batch_size"),
    "warmup_steps=10": ("warmup_steps", "training.warmup_ratio"),
    "bf16=true": ("bf16", "model.dtype"),
    "choices=[a, b]": ("choices", "data.tasks=", "a task's"),
    "output_dir=out": ("output_dir", "--out"),
    "training.schedule=cosin": ("training.schedule", "'cosin'", "'cosine'"),
    "adapter.rank=0": ("adapter.r", "got 0", "greater than or equal to 1"),
    "adapter.dropout=1": ("adapter.dropout", "less than 1"),
    "adapter.target_modules=[]": ("adapter.target_modules", "at least 1"),
    "adapter.target_modules=[q_proj, v_porj]": ("v_porj", "q_proj"),
    "adapter.use_dora=yes please": ("adapter.use_dora", "'yes please'"),
    "adapter.init_lora_weights=pissa": ("init_lora_weights", "pissa", "base weights"),
    "model.dtype=fp16": ("model.dtype", "'fp16'", "'bfloat16' or 'float32'"),
    "model.name=smollm2-135": ("smollm2-135", "smollm2-135m"),
    "method=ilor": ("unknown method 'ilor'", "'ilora'"),
    "method.gama=1": ("method.gama", "unknown key"),
    "method={name: ilora, ema_decay: 2}": ("method.ema_decay", "got 2", "less than or equal to 1"),
    "contrast=[er, er]": ("contrast", "twice"),
    "data.benchmark=mini": ("unknown benchmark 'mini'", "'mini8'"),
    "data.tasks=[one, tow]": ("no task 'tow'", "did you mean 'two'"),
    "data.tasks=[one, one]": ("duplicate task names 'one'", "name of its own"),
    "data.tasks=[{name: a, test: x.json}]": ("data.tasks.0", "at least `train`"),
    "data.path=no/such/folder": ("no/such/folder", "no such file or folder"),
    "data.template=chatml": ("data.template", "'chatml'", "'chat'"),
    "data.max_length=8": ("data.max_length", "got 8", "greater than or equal to 16"),
    "data.split.test=1": ("data.split.test", "less than 0.9"),
    "data.columns.question=q": ("data.columns", "'prompt', 'answer' or 'messages'"),
    "columns.prompt=question": ("train.json", "no 'question'", "columns.prompt="),
    "evaluation.split=dev": ("evaluation.split", "'dev'", "'eval' or 'test'"),
    "trackers=[mlflow]": ("trackers.0", "'mlflow'", "'tensorboard', 'wandb' or 'trackio'"),
    "name=my run": ("name", "'my run'", "pattern"),
    "training.epochs": ("'training.epochs'", "key=value"),
    "seed=-1": ("seed", "got -1", "greater than or equal to 0"),
}


@pytest.mark.parametrize("override", SETTINGS)
def test_settings(override: str, config: Path, refused: Refused) -> None:
    refused("run", config, override, says=list(SETTINGS[override]))


ROWS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "a preference": ("a.jsonl", '{"prompt": "q", "chosen": "a", "rejected": "b"}', ("a.jsonl:1", "columns.answer=")),
    "two questions": (
        "a.csv",
        "context,question,label\nc,q,a",
        ("a.csv:2", "'question' or 'context'", "columns.prompt="),
    ),
    "a text without a marker": ("a.jsonl", '{"text": "hello"}', ("a.jsonl:1", "marker: '...'")),
    "a picture": (
        "a.jsonl",
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
                    {"role": "assistant", "content": "a cat"},
                ]
            }
        ),
        ("a.jsonl:1", "messages[1].content[1]", "only texts"),
    ),
    "another role": (
        "a.jsonl",
        '{"messages": [{"role": "bot", "content": "x"}, {"role": "assistant", "content": "y"}]}',
        ("a.jsonl:1", "the role 'bot'", "allowed are system"),
    ),
    "a question last": (
        "a.jsonl",
        '{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}',
        ("a.jsonl:1", "from the user", "must be the assistant's", "data.unanswered=drop"),
    ),
    "too few rows": (
        "a.jsonl",
        '{"prompt": "q", "answer": "a"}',
        ("task 'a'", "1 distinct prompts are too few", "data.split.test"),
    ),
    "a key twice": ("a.jsonl", '{"prompt": "q", "answer": "a", "answer": "b"}', ("a.jsonl:1", "'answer' stands twice")),
    "a file of another kind": ("a.json", '{"train": []}', ("a.json", "expected a list of rows")),
}


@pytest.mark.parametrize("mistake", ROWS)
def test_rows(mistake: str, refused: Refused, tmp_path: Path) -> None:
    name, content, says = ROWS[mistake]
    (tmp_path / name).write_text(content, encoding="utf-8")
    refused("run", name, says=list(says))


COMMANDS: dict[str, tuple[str, ...]] = {
    "run none.yaml": ("none.yaml", "no such configuration file"),
    "run jan.csv": ("jan.csv", "no such file"),
    "run my.txt": ("my.txt", "no such configuration file"),
    "resume nothing": ("nothing", "not a run folder"),
    "add nothing feb.csv": ("nothing", "not a run folder"),
    "connect nothing": ("nothing", "not a run folder"),
    "compare nothing": ("nothing",),
    "data check nothing": ("nothing",),
    "promote nothing": ("nothing", "not a run folder"),
    "list method": ("'method'", "methods"),
}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str, refused: Refused) -> None:
    refused(*line.split(), says=list(COMMANDS[line]))
