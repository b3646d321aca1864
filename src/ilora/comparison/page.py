"""comparison/index.html: one self-contained page. Its script only sorts and filters."""

from __future__ import annotations

from typing import Any

from ilora.comparison.differences import NOT_TRAINED, NOTHING_TO_BEAT, TOO_FEW
from ilora.comparison.pictures import pictures
from ilora.comparison.tables import Comparison, few_pairs, grids, notes, scope, too_little_learnt
from ilora.present.figures import as_svg
from ilora.present.page import own_drawing, render_page


def page(comparison: Comparison) -> str:
    """The whole page as text."""
    return render_page(
        "ilora.comparison",
        "page.html.jinja",
        script="page.js",
        comparison=comparison,
        headline=headline(comparison),
        scope=scope(comparison),
        notes=notes(comparison),
        grids={grid.key: grid for grid in grids(comparison)},
        pictures={
            name: (picture.title, picture.text, own_drawing(as_svg(f"cmp-{name}", picture.draw)))
            for name, picture in pictures(comparison).items()
        },
        heats=_heats(comparison),
    )


def headline(comparison: Comparison) -> tuple[str, str]:
    """The result in plain words: the first sentence and the rest."""
    base, rows = comparison["baseline"], comparison["rows"]
    found = [(row["name"], row["difference"]["OP"]) for row in rows if row["difference"] and "OP" in row["difference"]]
    if not found:
        return f"Nothing to compare with {base}.", "There is no other run of the same order and seed."
    by = {
        verdict: [name for name, op in found if (op["holds_after_holm"] and op["verdict"] == verdict)]
        for verdict in ("better", "worse")
    }
    few = sum(op["verdict"] == TOO_FEW for _, op in found)
    if few == len(found):
        return f"Too few pairs of runs for a verdict against {base}.", few_pairs(comparison)
    untrained = sum(op["verdict"] in (NOT_TRAINED, NOTHING_TO_BEAT) for _, op in found)
    if untrained == len(found):
        return f"No verdict against {base}.", too_little_learnt(comparison)
    unclear = len(found) - len(by["better"]) - len(by["worse"]) - few - untrained
    parts = [f"{len(by['better'])} above {base}", f"{len(by['worse'])} below", f"{unclear} not distinguishable"]
    parts += [f"{few} with too few pairs"] if few else []
    parts += [f"{untrained} not trained"] if untrained else []
    sentence = "Final score (OP), paired by order, seed and test item, with Holm's adjustment over the rows. "
    for verdict, words in (("better", "Above"), ("worse", "Below")):
        if by[verdict]:
            sentence += f"{words}: {_listed(by[verdict])}. "
    return f"{', '.join(parts)}.", sentence.strip()


def _listed(names: list[str], most: int = 8) -> str:
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")


def _heats(comparison: Comparison) -> list[dict[str, Any]]:
    """R of every row and order as a table of tinted cells: `shade` 0..1, `own` just after the task's training."""
    names = {task["label"]: task["name"] for task in comparison["tasks"]}
    made = []
    for place, row in enumerate(comparison["rows"]):
        for table in row["R"]:
            joint = len(table["phases"]) < len(names)
            labels = ["zero-shot", *(f"{i} {phase}" for i, phase in enumerate(table["phases"], 1))]
            rows = [
                (labels[stage], [_heat(score, own=stage == (1 if joint else i + 1)) for i, score in enumerate(scores)])
                for stage, scores in enumerate(table["rows"])
                if any(score is not None for score in scores)
            ]
            made.append({
                "place": place,
                "name": row["name"],
                "order": table["order"],
                "seeds": table["seeds"],
                "tasks": [names[label] for label in comparison["orders"][table["order"] - 1]],
                "rows": rows,
            })  # fmt: skip
    return made


def _heat(score: float | None, *, own: bool) -> dict[str, Any]:
    return {"score": score, "shade": 0 if score is None else round(min(1.0, max(0.0, score)), 3), "own": own}
