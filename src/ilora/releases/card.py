"""card.md: a release for people to read; everything in it is in the manifest and in scores.json, too."""

from __future__ import annotations

from typing import Any

from ilora.present.numbers import markdown, markdown_text, plain, points
from ilora.results.reader import SUMMARY, Results, learning_row, matrix, zero_shot_scores


def card(content: dict[str, Any], results: Results) -> str:
    """The card as Markdown. content: the manifest's fields; every text in it is escaped."""
    summary = results["variants"][results["answers_with"]].get("summary") or {}
    parts = [
        f"# {_text(results.get('name', 'run'))}, release {content['number']}\n",
        _facts(content),
        "\n## Scores\n\nIn points (0 to 100) on each task: before any training, just after its own, and now.\n\n",
        markdown([["task", "metric", "before", "just after", "now"], *_scores(results)]),
        "\n" + ", ".join(f"{name} {points(summary.get(name))}" for name in SUMMARY) + "\n",
    ]
    if content["adapter"] is not None:
        parts.append(
            "\n## Use\n\n`adapter/` is an ordinary PEFT folder: `PeftModel.from_pretrained(base, "
            f'"{content["adapter"]}")`. The prompts were written with the template `{content["template"]}`.\n'
        )
    return "".join(parts)


def _facts(content: dict[str, Any]) -> str:
    base = content["base"] or {}
    gate = content["gate"] or {}
    facts = {
        "base model": base.get("name", "not known"),
        "revision": base.get("revision"),
        "SHA-256 of its weights": base.get("weights_sha256"),
        "SHA-256 of the tokenizer": content["tokenizer_sha256"],
        "method": f"{content['method']}, answers with {content['answers_with']}",
        "tasks": ", ".join(content["tasks"]),
        "made": f"{content['created']} by ilora {content['ilora']}",
        "before it": f"release {content['previous']}" if content["previous"] else None,
        "repaired": content["repaired"] and ", ".join(f"{key} {value}" for key, value in content["repaired"].items()),
        "gate": gate.get("outcome"),
        "note": content["note"],
    }
    return "".join(f"\n* {name}: {_text(value)}" for name, value in facts.items() if value) + "\n"


def _scores(results: Results) -> list[list[str]]:
    """A line for each task."""
    variant = results["answers_with"]
    rows, before = matrix(results, variant), zero_shot_scores(results, variant)
    found = []
    for number, task in enumerate(results["tasks"]):
        learnt = learning_row(results, number)
        after = rows[learnt][number] if learnt < len(rows) else None
        now = rows[-1][number] if rows else None
        found.append(
            [plain(task["name"], 64), plain(task.get("metric", ""), 24), *map(points, (before[number], after, now))]
        )
    return found


def _text(value: object) -> str:
    return markdown_text(plain(value, 200))
