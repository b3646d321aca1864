"""README.md, the model card: what the hub reads at its top, and what a person needs to use the adapter.

Task names and the like are other people's texts: in Markdown they are escaped, in code they are quoted.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ilora.data.notes import reading_words
from ilora.data.template import DATE
from ilora.handover.asking import Asking
from ilora.handover.source import Source, TaskScores
from ilora.present.numbers import count, markdown, markdown_text, plain, points
from ilora.results.reader import method_title

LIBRARIES = {"peft": "peft", "merged": "transformers", "gguf": "gguf"}
_QUANTIZED = {  # as `model/load.py` reads such a base
    "none": "",
    "8bit": "load_in_8bit=True",
    "4bit": 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
    "bnb_4bit_compute_dtype=torch.{dtype}",
}
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for


@dataclass(frozen=True)
class Wishes:
    """What only its owner can say of the adapter. name: the card's title; None for the run's name."""

    name: str | None = None
    licence: str | None = None
    languages: tuple[str, ...] = ()


def card(source: Source, asked: Asking, *, kind: str, wishes: Wishes) -> str:
    """README.md's text. kind: peft, merged or gguf."""
    name = plain(wishes.name or source.results.get("name") or "adapter", 80)
    return (
        _environment()
        .get_template("card.md.jinja")
        .render(
            metadata=metadata(source, kind=kind, name=name, wishes=wishes).to_yaml(line_break="\n").rstrip(),
            kind=kind,
            name=name,
            source=source,
            base=source.base,
            model=source.config.model,
            method=method_title(source.results, prose=True),
            asked=asked,
            date=DATE,
            scores=_scores(source.tasks),
            data=_data(source),
            reading=_reading(source.tasks),
            split_shares=_split_shares(source),
            settings=_settings(source),
            quantized=_QUANTIZED[source.config.model.quantization].format(dtype=source.config.model.dtype),
            rank=_rank(source.adapter) if kind == "peft" else None,
            version=version("ilora"),
        )
    )


def metadata(source: Source, *, kind: str, name: str, wishes: Wishes) -> ModelCardData:
    """What the hub indexes: base model, licence, language, tasks and scores."""
    base = source.base
    known: dict[str, Any] = {"base_model": base.name} if source.base_on_hub else {}
    if known:
        known["base_model_relation"] = "finetune" if kind == "merged" else "adapter"
    if wishes.licence:
        known["license"] = wishes.licence
    if wishes.languages:
        known["language"] = list(wishes.languages)
    if sets := list(dict.fromkeys(found["id"] for task in source.tasks if (found := _on_hub(source, task)))):
        known["datasets"] = sets
    results = [result for task in source.tasks if (result := _result(source, task)) is not None]
    if results:
        known |= {"model_name": name, "eval_results": results}
    return ModelCardData(
        library_name=LIBRARIES[kind],
        pipeline_tag="text-generation",
        tags=[
            "ilora",
            "continual-learning",
            *(["lora"] if kind != "merged" else []),
            *(["gguf"] if kind == "gguf" else []),
        ],
        **known,
    )


def _result(source: Source, task: TaskScores) -> EvalResult | None:
    """A task's entry of the model index; None where the task was not evaluated."""
    if task.score is None:
        return None
    metric, hub = str(task.task.get("metric")), _on_hub(source, task) or {}
    error = "" if task.error is None else f", standard error {task.error:.4f}"
    rows = "" if task.rows is None else f", {task.rows} rows"
    return EvalResult(
        task_type="text-generation",
        dataset_type=hub.get("id") or str(task.task.get("label") or task.task["name"]),
        dataset_name=plain(task.task["name"], 80),
        dataset_config=hub.get("subset"),
        dataset_revision=hub.get("revision"),
        dataset_split=hub.get("split") or source.config.evaluation.split,
        metric_type=metric,
        metric_value=round(task.score, 4),
        metric_name=f"{metric}{error}{rows}",
    )


def _on_hub(source: Source, task: TaskScores) -> dict[str, Any] | None:
    """Where on the hub a task's rows come from, if they do."""
    for section in source.config.data.tasks or ():
        if section.name == task.task["name"] and section.dataset and not Path(section.dataset).exists():
            split = section.splits[source.config.evaluation.split]
            return {"id": section.dataset, "subset": section.subset, "revision": section.revision, "split": split}
    return None


def _scores(tasks: Sequence[TaskScores]) -> str:
    head = [
        "task",
        "metric",
        "base model",
        "just after training",
        "this adapter",
        "standard error",
        "forgotten",
        "rows",
    ]
    lines = [
        [
            plain(task.task["name"], 60),
            str(task.task.get("metric")),
            points(task.before),
            points(task.learnt),
            points(task.score),
            points(task.error),
            points(task.forgotten),
            count(task.rows),
        ]
        for task in tasks
    ]
    return markdown([head, *lines]).rstrip()


def _data(source: Source) -> str:
    head = ["task", "training rows", "from", "answer tokens, at most", "SHA-256 of the training rows"]
    lines = []
    for task in source.tasks:
        hub = _on_hub(source, task)
        place = hub["id"] if hub else source.config.data.benchmark or "files"
        sizes = [count(task.task.get("train")), plain(place, 60), count(task.task.get("max_new_tokens"))]
        lines.append([plain(task.task["name"], 60), *sizes, str(task.task.get("train_sha256") or "–")])
    return markdown([head, *lines]).rstrip()


def _reading(tasks: Sequence[TaskScores]) -> list[tuple[str, str]]:
    """By task, how its rows were read, and which of them were taken out of train to be tested on."""
    found = []
    for task in (scores.task for scores in tasks):
        notes = reading_words(str(task.get("read_as") or ""), task.get("split_off") or {})
        found += [(str(task["name"]), "; ".join(text for _, text in notes))] if notes else []
    return found


def _split_shares(source: Source) -> str:
    """The share of the training rows that each split was made of; empty where none was made here."""
    split, made = source.config.data.split, [task.task.get("split_off") or {} for task in source.tasks]
    shares = {"test": split.test, "eval": split.test if split.eval is None else split.eval}
    return ", ".join(f"{share:.0%} for {name}" for name, share in shares.items() if any(one.get(name) for one in made))


def _settings(source: Source) -> str:
    """The settings that make the adapter what it is, as JSON."""
    config = source.config
    chosen = {
        "method": config.method.model_dump(mode="json"),
        "adapter": {"r": config.adapter.r, "alpha": config.adapter.alpha}
        | config.adapter.model_dump(mode="json", exclude_defaults=True),
        "training": config.training.model_dump(mode="json", exclude={"checkpoint_every", "trajectory"}),
        "model.dtype": config.model.dtype,
        "data.max_length": config.data.max_length,
        "seed": config.seed,
    }
    return json.dumps(chosen, ensure_ascii=True, indent=1)


def _rank(adapter: Path) -> int:
    """The smallest `--max-lora-rank` of vLLM that holds the adapter."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([int(settings.get("r") or 1), *map(int, (settings.get("rank_pattern") or {}).values())])
    return next((room for room in _RANKS if room >= rank), rank)


def _code(text: object) -> str:
    """A text as inline code, whatever it holds."""
    line = plain(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ilora.handover", "."),
        autoescape=False,  # it knows HTML alone; what comes from outside goes through the filters
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "text": lambda text: markdown_text(plain(text)),
        "code": _code,
        "quoted": lambda text: json.dumps(plain(text)),
        "shell": lambda text: shlex.quote(plain(text)),
    }
    return environment
