"""`ilora data check`: what is wrong with a stream's data, before anything is trained on it.

A report is a plain mapping (see `check_task`), shown as a table and written as JSON. An `error` among its problems
means that a run would be refused, or that its scores would not mean what they say: a test row stands in train.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, starmap
from pathlib import Path
from typing import Any

from ilora.benchmarks import BENCHMARKS, Stream
from ilora.benchmarks.sources import normal
from ilora.check.tokens import count_tokens, encoder_of, length_problems, refused, spread
from ilora.config import Config, load_config
from ilora.data.duplicates import PAIRS, Repeats, complaints, find_repeats, key, leaks
from ilora.data.encoding import Encoder, control_tokens
from ilora.data.formats import split_files
from ilora.data.near import THRESHOLD, near_duplicates
from ilora.data.stored import some
from ilora.data.task import SPLITS, Row, Task
from ilora.errors import InputError
from ilora.metrics.metrics import METRICS
from ilora.settings import TrainingConfig
from ilora.stream import prepared, readers, reading_notes

Report = dict[str, Any]
_ONE_SIDED = 0.9
_TEMPLATE = 0.9  # of the rows begin or end with it
_MOST_NEAR = 200_000


def check_task(
    task: Task,
    *,
    encoder: Encoder | None = None,
    near: bool = True,
    max_new_tokens: int | str = "auto",
) -> Report:
    """Everything about one task, as JSON types; counts are rows, shares are of 1.

    encoder: to count tokens with; None leaves them out. near: also look for near duplicates. max_new_tokens: of the
    answers, which decides how much room a prompt has in evaluation.
    """
    repeats = find_repeats(task)
    report: Report = {
        "task": task.name,
        "source": task.source,
        "metric": task.metric,
        "rows": {split: len(task.rows[split]) for split in SPLITS if split in task.rows},
        "repeated": dict(repeats.inside),
        "contradicting": dict(repeats.contradicting),
        "shared": {f"{first}/{second}": count for (first, second), count in repeats.across.items()},
        "same": [f"{first}/{second}" for first, second in repeats.equal],
        "near": _near(task) if near else None,
        "answers": _answers(task),
        "characters": {
            "prompt": spread([len(row.prompt) for row in _all_rows(task)]),
            "answer": spread([len(row.answer) for row in _all_rows(task)]),
        },
        "tokens": count_tokens(task, encoder.of(task), max_new_tokens) if encoder else None,
        "run": None,
    }
    report["problems"] = _problems(task, repeats, report)
    return report


def unread(name: str, error: InputError) -> Report:
    """The report of a task whose rows cannot be read, in the form of `check_task`."""
    spread = {"median": 0, "p95": 0, "max": 0}
    return {
        "task": name,
        "source": "",
        "metric": None,
        **{key: {} for key in ("rows", "repeated", "contradicting", "shared")},
        "same": [],
        "near": None,
        "answers": {"unreadable": {}, "examples": [], "labels": {}, "commonest": {}},
        "characters": {"prompt": spread, "answer": spread},
        "tokens": None,
        "run": None,
        "problems": [{"level": "error", "text": str(error)}],
    }


def failed(reports: Sequence[Report]) -> bool:
    """Whether a problem of any task is an error."""
    return any(problem["level"] == "error" for report in reports for problem in report["problems"])


def _all_rows(task: Task) -> Iterator[Row]:
    return chain.from_iterable(task.rows.values())


def _near(task: Task) -> dict[str, int]:
    """Distinct rows that nearly repeat an earlier one, by split, or by pair (`train/test`) if that is in another.

    Of a split with more rows than 200,000 a random part of that size is looked at.
    """
    seen: set[bytes] = set()
    rows: list[tuple[str, str]] = []
    for split in SPLITS:
        for row in some(task.rows.get(split, ()), _MOST_NEAR, key=f"near/{split}"):
            if (one := key(row)) not in seen:
                seen.add(one)
                rows.append((split, task.text(row)))
    found: set[tuple[str, int]] = set()
    for earlier, later in near_duplicates(_without_common_ends([text for _, text in rows])):
        first, second = rows[earlier][0], rows[later][0]
        found.add((first if first == second else f"{first}/{second}", later))
    counts = Counter(place for place, _ in found)
    return {place: counts[place] for place in (*SPLITS, *(f"{first}/{second}" for first, second in PAIRS))}


def _without_common_ends(texts: Sequence[str]) -> list[str]:
    """The texts without the beginning and end that nearly all of them share: a common template is no near duplicate."""
    head = _common_beginning(texts)
    turned = [text.removeprefix(head)[::-1] for text in texts]
    tail = _common_beginning(turned)
    return [text.removeprefix(tail)[::-1] for text in turned]


def _common_beginning(texts: Sequence[str]) -> str:
    """The longest beginning that `_TEMPLATE` of the texts share. Sorted, texts that share one are neighbours."""
    if len(texts) < 2:
        return ""
    ordered, most = sorted(texts), math.ceil(_TEMPLATE * len(texts))
    ends = zip(ordered, ordered[most - 1 :], strict=False)
    return max(starmap(_shared, ends), key=len)


def _shared(first: str, second: str) -> str:
    """The beginning that both share."""
    differ = (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return first[: next(differ, min(len(first), len(second)))]


def _answers(task: Task) -> Report:
    """unreadable: answers that the metric cannot judge, by split; labels: how often each choice is right, by split."""
    metric = METRICS[task.metric]
    unreadable: dict[str, list[str]] = {}
    labels: dict[str, dict[str, int]] = {}
    for split, rows in task.rows.items():
        counts = Counter(row.answer for row in rows)
        bad = [answer for answer in counts if metric.complaint(answer, task.choices)]
        if bad:
            unreadable[split] = [answer for answer in bad for _ in range(counts[answer])]
        if task.choices:
            read: Counter[str] = Counter()
            for answer, count in counts.items():
                read[metric.parse(answer, task.choices) or ""] += count
            labels[split] = {choice: read[choice] for choice in task.choices}
    return {
        "unreadable": {split: len(bad) for split, bad in unreadable.items()},
        "examples": [answer[:80] for answer in list(chain.from_iterable(unreadable.values()))[:3]],
        "labels": labels,
        "commonest": _commonest(task),
    }


def _commonest(task: Task) -> dict[str, float]:
    """The share of the commonest answer of each split: what always giving it would score."""
    shares = {}
    for split, rows in task.rows.items():
        counts = Counter(row.answer.split("\n")[0].strip() for row in rows)
        shares[split] = round(counts.most_common(1)[0][1] / len(rows), 4) if rows else 0.0
    return shares


def _problems(task: Task, repeats: Repeats, report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each with its level: error, warning or note."""
    texts = complaints(task, repeats)
    leak = leaks(repeats) > 0
    found = [("error" if leak and index == 0 else "warning", text) for index, text in enumerate(texts)]
    if bad := report["answers"]["unreadable"]:
        shown = ", ".join(map(repr, report["answers"]["examples"]))
        found.append(("error", f"answers that the metric {task.metric} cannot judge: {_listed(bad)}, such as {shown}"))
    if never := [choice for choice, count in report["answers"]["labels"].get("train", {}).items() if not count]:
        found.append(("note", f"never right in train: {', '.join(never)}"))
    if task.choices and (share := report["answers"]["commonest"]["train"]) > _ONE_SIDED:
        found.append(("warning", f"one answer has {share:.0%} of train"))
    if tokens := report["tokens"]:
        limit = tokens["length"]
        if any(tokens["answer_too_long"].values()):
            level, more = (
                ("note", "; data.too_long: drop leaves them out")
                if tokens["drops"]
                else ("error", "; raise it, or leave them out with data.too_long=drop")
            )
            text = f"answers that alone do not fit into {limit}: {_listed(tokens['answer_too_long'])}{more}"
            found.append((level, text))
        if any(tokens["cut"].values()):
            found.append(("note", f"prompts cut to {limit}: {_listed(tokens['cut'])}"))
    if any((report["near"] or {}).values()):
        level = "warning" if report["near"]["train/test"] else "note"
        found.append(
            (level, f"like an earlier row ({THRESHOLD:.0%} of words and word pairs): {_listed(report['near'])}")
        )
    return [{"level": level, "text": text} for level, text in found]


def _listed(counts: Mapping[str, int]) -> str:
    """`3 train, 2 test (like train)` for the places that have some."""
    parts = [(place.split("/"), count) for place, count in counts.items() if count]
    return ", ".join(
        f"{count:,} {where[-1]}{f' (like {where[0]})' if len(where) > 1 else ''}" for where, count in parts
    )


def check_config(config: Config, *, tokens: bool = True, near: bool = True) -> Iterator[Report]:
    """The reports of all tasks of a configuration, one by one: of all their rows, before any repair or limit.

    A task that cannot be read is an `error` of its own report. Raises InputError for a source that names no tasks.
    """
    named = readers(config.data, whole=True)
    encoder = encoder_of(config, len(named)) if tokens else None
    for name, read in named:
        try:
            task = read()
            if task.forgotten:
                continue
            used = prepared(task, config.data)
            longest = config.evaluation.max_new_tokens
            report = check_task(task, encoder=encoder, near=near, max_new_tokens=longest)
            report["problems"] += refused(used, config)
            if encoder:
                report["problems"] += length_problems(used, encoder.of(used), config)
        except InputError as error:
            yield unread(name, error)
            continue
        report["problems"] += [{"level": level, "text": text} for level, text in reading_notes(used)]
        for token, count in (control_tokens(encoder.tokenizer, task.rows["train"]) if encoder else {}).items():
            text = f"the control token {token} stands in the text of {count:,} training rows, and is read as one"
            report["problems"].append({"level": "warning", "text": text})
        report["run"] = {"rows": {split: len(rows) for split, rows in used.rows.items()}, "dropped": dict(used.dropped)}
        if some := {split: count for split, count in used.dropped.items() if count}:
            text = f"deduplicate would leave out {_listed(some)}; this report is of all rows"
            report["problems"].append({"level": "note", "text": text})
        yield report


def config_of(source: Path, overrides: Sequence[str]) -> Config:
    """What `ilora run` takes: a configuration, or rows. The folder of one task may be that of a benchmark's."""
    config = load_config(source, overrides)
    benchmark = BENCHMARKS[config.data.benchmark] if config.data.benchmark else None
    if not isinstance(benchmark, Stream) or not any(split_files(source, split) for split in SPLITS):
        return config
    name = source.resolve().name
    known = next((one for one in benchmark.known if normal(one) == normal(name)), name)
    return load_config({"data": {"tasks": [{"name": known, "path": str(source)}]}}, overrides)


def summarised(reports: Sequence[Report], config: Config, *, timed: bool = False) -> Report:
    """All reports, with the tokens to train on; timed: and how long that takes here, by plain fine-tuning."""
    counted = [report for report in reports if report["tokens"]]
    tokens = sum(_trained(report, config.training) for report in counted) if counted else None
    summary: Report = {
        "tasks": list(reports),
        "failed": failed(reports),
        "model": config.model.name,
        "epochs": config.training.epochs,
        "max_steps": config.training.max_steps,
        "train_tokens": tokens,
        "tokens_per_second": None,
        "seconds": None,
    }
    if timed and tokens:
        from ilora.training.speed import tokens_per_second

        limit, seconds = config.data.max_length, 0.0
        lengths = [min(max(report["tokens"]["median"], 2), limit) for report in counted]
        for report, speed in zip(counted, tokens_per_second(config, lengths), strict=True):
            seconds += _trained(report, config.training) / speed
        summary |= {"tokens_per_second": round(tokens / seconds, 1), "seconds": round(seconds)}
    return summary


def _trained(report: Report, training: TrainingConfig) -> int:
    """Tokens that a run would train on: of its rows, in all epochs, within `max_steps`."""
    rows: int = report["rows"]["train"]
    used: int = report["run"]["rows"]["train"] if report["run"] else rows
    passed = min(training.epochs * used, (training.max_steps or math.inf) * training.global_batch_size)
    return int(report["tokens"]["train"] * passed / max(1, rows))
