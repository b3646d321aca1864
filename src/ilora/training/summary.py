"""The content of results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilora.changes import values
from ilora.config import Config
from ilora.data.task import Task
from ilora.data.tokens import cut_rows
from ilora.model.identity import tokenizer_sha256
from ilora.results.schema import SCHEMA
from ilora.results.scores import read_perplexity, score_matrix
from ilora.training.encoded import EncodedStream
from ilora.training.peak import peak_memory
from ilora.training.processes import agreed
from ilora.training.state import State


def summarise_run(config: Config, path: Path, stream: EncodedStream, state: State, *, complete: bool) -> dict[str, Any]:
    """The outcome of a run: settings, tasks, scores, cost. The same in every process.

    path: the run folder, whose prediction files the scores are read from.
    """
    method, variants = state.method, state.method.variants
    last, tasks = stream.phases[state.progress.finished - 1], enumerate(stream.tasks, 1)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "name": config.name,
        "method": config.method.name,
        "title": method.title or config.method.name,
        "method_config": config.method.model_dump(mode="json"),
        "model": config.model.name,
        "base_model": state.base["name"] if state.base else config.model.name,
        "base": state.base,
        "tokenizer_sha256": tokenizer_sha256(stream.encoder.tokenizer),
        "start": state.start,
        "seed": config.seed,
        "template": stream.encoder.config.template,
        "stream": config.stream,
        "complete": complete,
        "tasks": [
            (state.forgotten[task.name] if task.forgotten else _task(task, stream))
            | {"settings": _settings(config, number)}
            for number, task in tasks
        ],
        "phases": [phase.name for phase in stream.phases],
        "answers_with": variants[0],
        "variants": {},
        "perplexity": None,
        "notes": method.notes(),
        "phase_steps": state.counters.phase_steps,
        "cost": _cost(state),
        "adapter": f"adapters/{last.label}/{variants[0]}" if method.one_adapter_answers else None,
    }
    if method.engine.accelerator.is_main_process:
        results["variants"] = score_matrix(path, stream.phases, stream.tasks, variants=variants)
        results["perplexity"] = read_perplexity(path, stream.phases[-1].label)
    return agreed(method.engine.accelerator, results)


def _task(task: Task, stream: EncodedStream) -> dict[str, Any]:
    scored = stream.scored[task.name]
    return {
        "name": task.name,
        "label": task.label,
        "metric": task.metric,
        "scoring": task.scoring,
        "template": stream.encoder.of(task).config.template,
        **{split: len(rows) for split, rows in task.rows.items()},
        "truncated": {
            "train": cut_rows(stream.train[task.name]),
            scored.split: scored.cut,
        },
        "dropped": dict(task.dropped),
        "too_long": dict(task.too_long),
        "read_as": task.read_as,
        "split_off": dict(task.split_off),
        "train_sha256": stream.digests[task.name],
        "chance": stream.chances[task.name],
        "max_new_tokens": scored.max_new_tokens,
        "unreachable": scored.unreachable,
        "source": task.source,
        "replaces": task.replaces or None,
    }


def _settings(config: Config, number: int) -> dict[str, Any]:
    """What changes with the task of this number (from 1), for it and those after it."""
    sections, now = config.data.tasks or [], config.at(number)
    return values(sections[number - 1], now.training, now.method) if sections else {}


def _cost(state: State) -> dict[str, Any]:
    method, counters = state.method, state.counters
    state.count_passes()
    counters.peak_memory_bytes = max(counters.peak_memory_bytes, peak_memory(method.engine.device))
    return {
        "steps": counters.steps,
        "trained_tokens": counters.trained_tokens,
        "forward_rows": counters.passes["forward"],
        "backward_rows": counters.passes["backward"],
        "train_seconds": round(counters.train_seconds, 1),
        "evaluation_seconds": round(counters.evaluation_seconds, 1),
        "peak_memory_bytes": counters.peak_memory_bytes,
        "trainable_parameters": sum(p.numel() for p in method.trainable) if method.trains else 0,
        "stored_bytes": {"memory": method.memory.stored_bytes(), **method.stored()},
    }
