"""What changed, row by row: counts that can be checked by hand, sides by name, rows that differ are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ilora.diffs.groups import groups
from ilora.diffs.rows import changes
from ilora.diffs.sides import both_sides
from ilora.errors import InputError
from ilora.releases.manifest import write_manifest
from ilora.releases.store import point_to
from ilora.report.html import write_report
from tests.command import Command
from tests.report.fake_run import results, write_run

Records = list[dict[str, Any]]
# By phase (0: the base model) the scores of eight rows of the task `notes`, and of two of `law`.
NOTES = {0: [0] * 8, 1: [1, 1, 1, 1, 1, 1, 0, 0], 2: [0, 0, 0, 1, 1, 1, 1, 0]}
LAW = {1: [0.4, 0.9], 2: [0.9, 0.4]}


def records(task: str, scores: list[float]) -> Records:
    return [
        {
            "id": f"{task}/test/{n}",
            "prompt": f"Sort this note: {'invoice' if n < 3 else 'letter'} {'word ' * n}number {n}",
            "prediction": f"<b>{score}</b>\x1b[2J",
            "parsed": None,
            "reference": "bill" if n < 3 else "mail",
            "score": float(score),
        }
        for n, score in enumerate(scores)
    ]


def write(run: Path, phase: str, task: str, content: Records) -> None:
    folder = run / "predictions" / f"after-{phase}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two phases."""
    content = results(["notes", "law"], {"slow": [[0.75, 0.65], [0.5, 0.65]]})
    folder = write_run(tmp_path / "run", content, metrics=False, predictions=False)
    for phase, label in enumerate(("00-base", "01-notes", "02-law")):
        write(folder, label, "notes", records("notes", NOTES[phase]))
        if phase:
            write(folder, label, "law", records("law", LAW[phase]))
    return folder


@pytest.fixture
def ilora(typed: Command) -> Command:
    return partial(typed, "diff")


def numbers(rows: list[Any]) -> list[int]:
    return [int(row.id.rpartition("/")[2]) for row in rows]


def test_lost_and_gained(run: Path) -> None:
    found = changes(*both_sides(run, []), threshold=0.5)
    assert found.titles == ("01-notes", "02-law")
    notes, law = found.tasks
    assert (numbers(notes.lost), numbers(notes.gained)) == ([0, 1, 2], [6])
    assert (numbers(law.lost), numbers(law.gained)) == ([1], [0])
    assert (law.lost[0].before, law.lost[0].score_before, law.lost[0].score_after) == ("<b>0.9</b>\x1b[2J", 0.9, 0.4)
    stricter = changes(*both_sides(run, []), threshold=0.51)
    assert (len(stricter.tasks[0].lost), len(stricter.tasks[1].lost)) == (3, 0)
    only = changes(*both_sides(run, []), threshold=0.5, only=["law"])
    assert [task.name for task in only.tasks] == ["law"]


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        ([], ("01-notes", "02-law")),
        (["1", "2"], ("01-notes", "02-law")),
        (["2", "1"], ("02-law", "01-notes")),
        (["base"], ("00-base", "02-law")),
        (["0", "01-notes"], ("00-base", "01-notes")),
        (["notes"], ("01-notes", "02-law")),
    ],
)
def test_sides_by_name(names: list[str], titles: tuple[str, str], run: Path) -> None:
    assert changes(*both_sides(run, names), threshold=0.5).titles == titles


def test_a_task_without_predictions_on_one_side_is_named(run: Path) -> None:
    found = changes(*both_sides(run, ["base", "1"]), threshold=0.5)
    assert [task.name for task in found.tasks] == ["notes"]
    assert "law" in found.skipped[0]
    assert "after-00-base" in found.skipped[0]
    assert len(found.tasks[0].gained) == 6


@pytest.mark.parametrize(
    ("names", "says"),
    [(["3"], "01-notes, 02-law"), (["1", "1"], "both sides"), (["2"], "both sides"), (["nowhere"], "'nowhere'")],
)
def test_other_sides_are_refused(names: list[str], says: str, run: Path) -> None:
    with pytest.raises(InputError, match=says):
        both_sides(run, names)


def test_two_runs(run: Path, tmp_path: Path, ilora: Command) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    write(other, "02-law", "notes", records("notes", [1] * 8))
    found = changes(*both_sides(run, [str(other)]), threshold=0.5)
    assert found.titles == ("run/02-law", "other/02-law")
    assert (numbers(found.tasks[0].lost), numbers(found.tasks[0].gained)) == ([], [0, 1, 2, 7])
    code, out, err = ilora(run, other)
    assert code == 0, err
    (page,) = (run / "diffs").iterdir()
    assert page.name.startswith("02-law..other-")
    assert str(page) in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[2].update(prompt="another"), ["notes/test/2", "another prompt"]),
        (lambda rows: rows[2].update(reference="another"), ["notes/test/2", "another reference"]),
        (lambda rows: rows.pop(), ["notes/test/7", "8 rows", "7"]),
        (lambda rows: rows[1].update(id="notes/test/0"), ["record 2", "stands twice"]),
        (lambda rows: rows[0].pop("score"), ["record 1", "score: is missing"]),
        (lambda rows: rows[0].update(prediction=3), ["record 1", "prediction: must be a"]),
    ],
)
def test_other_rows_are_refused(
    change: Callable[[Records], object], says: list[str], run: Path, ilora: Command
) -> None:
    rows = records("notes", [0] * 8)
    change(rows)
    write(run, "02-law", "notes", rows)
    code, _, err = ilora(run)
    assert code == 2
    assert all(part in err for part in [*says, str(run / "predictions" / "after-02-law" / "notes.jsonl")]), err
    assert not (run / "diffs").exists()
    assert ilora(run, "--task", "law")[0] == 0


def test_where_it_was_lost(run: Path) -> None:
    (notes, _) = changes(*both_sides(run, []), threshold=0.5).tasks
    found = {(group.kind, group.name): group for group in groups(notes, threshold=0.5)}
    bill = found["reference answer", "bill"]
    assert (bill.rows, bill.lost, bill.rate, bill.of_task) == (3, 3, 1.0, 0.5)  # 3 of the 6 that were right were lost
    assert ("reference answer", "mail") not in found  # nothing was lost there
    starts = [name for kind, name in found if kind == "beginning of the prompt"]
    assert starts == []  # behind what all begin with, no three rows have the same words
    assert all(group.rows >= 3 for group in found.values())


def test_the_command(run: Path, ilora: Command, tmp_path: Path) -> None:
    code, out, err = ilora(run, "--jsonl", tmp_path / "rows.jsonl")
    assert code == 0, err
    assert ["notes", "8", "3", "1", "-2", "75.0", "50.0"] in [line.split() for line in out.splitlines()]
    assert ["all", "10", "4", "2", "-2", "70.0", "57.5"] in [line.split() for line in out.splitlines()]
    assert "\x1b" not in out
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(line["task"], line["change"], line["id"]) for line in lines] == [
        ("notes", "lost", "notes/test/0"),
        ("notes", "lost", "notes/test/1"),
        ("notes", "lost", "notes/test/2"),
        ("law", "lost", "law/test/1"),
        ("notes", "gained", "notes/test/6"),
        ("law", "gained", "law/test/0"),
    ]
    assert lines[0]["reference"] == "bill"
    page = (run / "diffs" / "01-notes..02-law.html").read_text()
    assert "<b>0" not in page
    assert page.count("<script") == 3  # the index, a part of rows, and the script itself
    assert ilora(run, "--threshold", "0")[0] == 2
    assert ilora(run, "--task", "laws")[0] == 2
    assert ilora(run, "1", "2", "3")[0] == 2


def test_the_report_leads_to_the_page(run: Path, ilora: Command) -> None:
    assert "ilora diff" in write_report(run).read_text()
    ilora(run, "-q")
    assert 'href="diffs/01-notes..02-law.html"' in write_report(run).read_text()


def test_the_current_release_is_what_the_last_phase_is_compared_with(run: Path) -> None:
    for number, phase in ((1, "00-base"), (2, "01-notes")):
        folder = run / "releases" / str(number)
        folder.mkdir(parents=True)
        content = {
            "number": number,
            "previous": None,
            "phase": phase,
            "phases": ["notes"],
            "tasks": ["notes"],
            "run": [],
        }
        empty = dict.fromkeys(("adapter", "base", "tokenizer_sha256", "template"))
        told = {"method": "ilora", "answers_with": "slow", "steps": 1, "created": "now", "ilora": "0"}
        write_manifest(folder, content | empty | told)
    for number, label in ((1, "00-base"), (2, "01-notes")):
        point_to(run, number)
        assert [side.label for side in both_sides(run, [])] == [label, "02-law"]
        assert both_sides(run, [f"release:{number}"])[0].label == label
    with pytest.raises(InputError):
        both_sides(run, ["release:3"])
