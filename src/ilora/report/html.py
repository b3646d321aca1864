"""The page of a run: one self-contained file, `RUN/report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ilora.data.notes import reading_words
from ilora.errors import InputError
from ilora.files import from_yaml, write_atomic
from ilora.present.numbers import clip, number, plain, points
from ilora.present.page import own_drawing, render_page
from ilora.report.connectivity import connectivity
from ilora.report.decision import decision, month_cells, months_svg
from ilora.report.general import harness_rows, perplexity_rows, text_name
from ilora.report.plots import bars_svg, curves_svg, heatmap_svg, loss_svg
from ilora.report.tables import CAPTION, row_values
from ilora.results.reader import (
    SUMMARY,
    Results,
    changes,
    ended_early,
    learning_row,
    matrix,
    method_title,
    near_chance,
    other_templates,
    prompt_template,
    read_results,
    read_text,
    retired,
    task_labels,
)
from ilora.results.scores import contrast_folder, is_written, read_predictions

EXAMPLES_OWN, EXAMPLES_CONTRAST, EXAMPLES_TOTAL = 3, 2, 80
PROMPT_CHARACTERS, ANSWER_CHARACTERS, CONFIG_CHARACTERS = 1200, 400, 40_000
LOST = 0.5  # a row counts as lost when its score fell by at least this much: for 0/1 metrics, right to wrong


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` from the files of the run and of its contrast runs; returns its path.

    Raises InputError that names the file when `results.json` or `config.yaml` is missing or one is damaged.
    Metrics, predictions, an adapter and contrast runs may be missing; the page says so.
    """
    run_dir = Path(run_dir)
    page = render_page("ilora.report", "report.html.jinja", **_content(run_dir))
    target = run_dir / "report.html"
    write_atomic(target, page.encode("utf-8", errors="replace"))
    return target


def headline(results: Results, contrast: Sequence[Results] = ()) -> tuple[str, str]:
    """What the run achieved, in plain words: the first sentence and the rest."""
    values = row_values(results, contrast)
    method = method_title(results, prose=True)
    total = len(values.tasks)
    tasks = f"{total} task{'' if total == 1 else 's'}"
    if not values.complete:
        opening = f"Not finished: {values.finished} of {tasks} learnt with {method}."
    elif results.get("stream") == "joint":
        opening = f"{tasks} learnt together ({method})."
    else:
        opening = f"{tasks} learnt with {method}."
    own = values.series[0].summary
    if own["OP"] is None:
        return opening, "There is no final score yet."
    sentence = f"It {'ends' if values.complete else 'stands'} at {points(own['OP'])} points on average"
    sentence += _forgotten(own["BWT"], ", {} points were forgotten (BWT)", ", earlier tasks gained {} (BWT)")
    beside = [s for s in values.series if s.run and s.answers and s.summary["OP"] is not None]
    for order, series in enumerate(beside):
        name = method_title(contrast[series.run - 1], prose=True)
        sentence += f"; {name}{'' if order else ' beside it'} ends at {points(series.summary['OP'])}"
        sentence += _forgotten(series.summary["BWT"], " and forgot {}", " and gained {}")
    return opening, f"{sentence}."


def _forgotten(bwt: float | None, lost: str, gained: str) -> str:
    return "" if bwt is None else (gained if bwt > 0 else lost).format(points(abs(bwt)))


def _content(run_dir: Path) -> dict[str, Any]:
    results, config = read_results(run_dir), read_text(run_dir / "config.yaml")
    found = _in_order([path for path in (run_dir / "contrast").glob("*") if path.is_dir()], config)
    folders = [path for path in found if (path / "results.json").is_file()]
    contrast = [read_results(path) for path in folders]
    values = row_values(results, contrast)
    metrics = _read_lines(run_dir / "metrics.jsonl", torn_end=True)
    titles = [s.title if s.run else method_title(results) for s in values.answers]
    told = decision(run_dir, results)
    return {
        "name": plain(results.get("name", run_dir.name)),
        "method": method_title(results),
        "model": plain(results.get("model", "?")),
        "seed": results.get("seed", "?"),
        "headline": headline(results, contrast),
        "decision": told,
        "months": [month_cells(month) for month in told["months"]],
        "values": values,
        "missing_contrast": [path.name for path in found if path not in folders],
        "caption": CAPTION,
        "summary_keys": SUMMARY,
        "results": results,
        "months_picture": own_drawing(svg) if (svg := months_svg(told["months"])) else None,
        "figures": _figures(results, contrast, metrics),
        "lost": _lost_answers([run_dir, *folders], [results, *contrast], titles),
        "prompt_template": prompt_template(results),  # a run of an older version does not say
        "base": results.get("base_model") or results.get("model", "?"),
        "adapter": (run_dir / str(results["adapter"])).as_posix() if results.get("adapter") else None,
        "titles": titles,
        **_notes([results, *contrast], titles),
        "unreadable": _unreadable([results, *contrast]),
        "perplexities": perplexity_rows([results, *contrast]),
        "perplexity_text": text_name(config),
        "harness": harness_rows([(run_dir, results), *zip(folders, contrast, strict=True)]),
        "costs": [run.get("cost") or {} for run in (results, *contrast)],
        "connectivity": connectivity(run_dir),
        "diffs": sorted(path.name for path in (run_dir / "diffs").glob("*.html")),
        "config": config[:CONFIG_CHARACTERS],
    }


def _notes(runs: Sequence[Results], titles: Sequence[str]) -> dict[str, list[str]]:
    """What is said below the scores, by kind."""
    named = list(zip(titles, runs, strict=True))
    return {
        "near_chance": [f"{title}, {note}" for title, run in named for note in near_chance(run).values()],
        "changes": changes(runs[0]),
        "ended_early": [f"{title}: {note}" for title, run in named for note in ended_early(run.get("phase_steps"))],
        "retired": list(retired(runs[0]).values()),
        "reading": _reading(runs[0]),
    }


def _reading(results: Results) -> list[str]:
    """How each task's rows were read, where that is not as they stood in its files or as those of the run."""
    others, found = other_templates(results), []
    for task in results["tasks"]:
        told = [text for _, text in reading_words(str(task.get("read_as") or ""), task.get("split_off") or {})]
        if own := others.get(str(task["name"])):
            told.append(f"its prompts stand in the template {own}")
        found += [f"{plain(task['name'])}: {plain('; '.join(told), 400)}"] if told else []
    return found


def _unreadable(runs: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """For every task with unreadable answers at the end, `3 of 100` for the answering variant of every run."""
    found = []
    for place, task in enumerate(runs[0]["tasks"]):
        counts = []
        for run in runs:
            variant = run["variants"][run["answers_with"]]
            rows = [variant.get(key) or [[]] for key in ("unreadable", "n")]
            counts.append([table[-1][place] if place < len(table[-1]) else None for table in rows])
        if any(count for count, _ in counts):
            cells = ["–" if count is None else f"{count:,} of {total:,}" for count, total in counts]
            found.append((plain(task["name"]), cells))
    return found


def _in_order(folders: list[Path], config: str) -> list[Path]:
    """Contrast runs in the order of the configuration; by name where it does not list them."""
    try:
        values = from_yaml(config)
    except yaml.YAMLError:
        values = None  # an edited file: the page shows its text as it is
    listed = values.get("contrast") or [] if isinstance(values, dict) else []
    if isinstance(values, dict) and "contrast" in values:
        known = {contrast_folder(Path(), method["name"]).name for method in listed}
        folders = [path for path in folders if path.name in known]  # the others are of an earlier configuration
    order = {contrast_folder(Path(), method["name"]).name: number for number, method in enumerate(listed)}
    return sorted(folders, key=lambda path: (order.get(path.name, len(order)), path.name))


def _read_lines(path: Path, *, torn_end: bool = False) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, none without a file. torn_end: a killed run may have cut off its last line."""
    if not is_written(path):
        return []
    lines, found = (read_text(path) if path.is_file() else read_predictions(path)).split("\n"), []
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if torn_end and place == len(lines):
                break
            raise InputError(f"{path}, line {place}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {place}: expected an object, found {type(row).__name__}")
        found.append(row)
    return found


def _figures(
    results: Results, contrast: Sequence[Results], metrics: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    values = row_values(results, contrast)
    if not values.finished:
        return []
    large = len(values.tasks) > 9
    text = "Filled: the score at the end. Hatched: how much higher it was just after training."
    drawn: list[tuple[str, str, str | None, bool]] = [("Learnt and kept", text, bars_svg(results, contrast), True)]
    if len(matrix(results, results["answers_with"])) > 1:
        svg, text = curves_svg(results, contrast), "A level line keeps what it learnt; a falling one forgets."
        drawn.append(("Every task over time", text, svg, True))
    runs = [results, *contrast]
    for order, series in enumerate(sorted(values.columns, key=lambda s: not s.answers)[:6]):
        svg = heatmap_svg(runs[series.run], series.variant, name=f"heat{order}")
        text = "Scores in points. Down a column: one task fading or staying. Framed: just after its training."
        drawn.append((series.label, text, svg, large))
    drawn.append(("Training loss", "Dotted: the next task begins.", loss_svg(metrics), True))
    return [
        {"title": title, "text": text, "svg": own_drawing(svg), "wide": wide}
        for title, text, svg, wide in drawn
        if svg is not None
    ]


def _predictions(run_dir: Path, row: int, label: str) -> list[dict[str, Any]]:
    folders = sorted((run_dir / "predictions").glob(f"after-{row + 1:02d}-*"))
    return _read_lines(folders[0] / f"{label}.jsonl") if folders else []


def _lost_answers(folders: Sequence[Path], runs: Sequence[Results], titles: Sequence[str]) -> list[dict[str, Any]]:
    left, found = EXAMPLES_TOTAL, []
    for order, (folder, results, title) in enumerate(zip(folders, runs, titles, strict=True)):
        last = len(matrix(results, results["answers_with"])) - 1
        tasks = []
        for i, label in enumerate(task_labels(results)):
            if learning_row(results, i) >= last or i in retired(results):
                continue
            then = _predictions(folder, learning_row(results, i), label)
            now = _predictions(folder, last, label)
            task = _compare(then, now, limit=min(left, EXAMPLES_CONTRAST if order else EXAMPLES_OWN))
            left -= len(task["examples"])
            tasks.append({"name": plain(results["tasks"][i]["name"]), **task})
        totals = {key: sum(task[key] for task in tasks) for key in ("lost", "gained", "compared")}
        if totals["compared"]:
            found.append({"title": title, "tasks": tasks, **totals})
    return found


def _compare(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], *, limit: int) -> dict[str, Any]:
    later = {str(row.get("id")): row for row in now}
    pairs = [(row, later[str(row.get("id"))]) for row in then if str(row.get("id")) in later]
    changes = [(number(b.get("score")) or 0.0) - (number(a.get("score")) or 0.0) for a, b in pairs]
    lost = [pair for pair, change in zip(pairs, changes, strict=True) if change <= -LOST]
    examples = [
        {
            "prompt": clip(before.get("prompt"), PROMPT_CHARACTERS),
            "reference": clip(before.get("reference"), ANSWER_CHARACTERS),
            "then": clip(before.get("prediction"), ANSWER_CHARACTERS),
            "now": clip(after.get("prediction"), ANSWER_CHARACTERS),
        }
        for before, after in lost[:limit]
    ]
    gained = sum(change >= LOST for change in changes)
    return {"lost": len(lost), "gained": gained, "compared": len(pairs), "examples": examples}
