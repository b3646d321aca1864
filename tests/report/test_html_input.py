from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ilora.errors import InputError
from ilora.report import write_report
from tests.report.fake_run import three_tasks, write_demo, write_run

pytestmark = pytest.mark.usefixtures("sketched")


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    run = write_demo(tmp_path / "demo")
    write_report(run).write_text("old", encoding="utf-8")
    (run / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError):
        write_report(run)
    assert (run / "report.html").read_text(encoding="utf-8") == "old"
    assert not list(run.glob(".report*"))


@pytest.mark.parametrize("name", ["results.json", "config.yaml"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    run = write_demo(tmp_path / "demo")
    (run / name).unlink()
    with pytest.raises(InputError, match=re.escape(str(run / name))):
        write_report(run)


@pytest.mark.parametrize("name", ["results.json", "config.yaml", "metrics.jsonl", "contrast/sequential/results.json"])
@pytest.mark.parametrize("content", [b"{]\n", b"[1]\n", b"\xff\xfe\n"])
def test_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run = write_demo(tmp_path / "demo")
    (run / name).write_bytes(content)
    if name == "config.yaml" and content != b"\xff\xfe\n":
        write_report(run)  # its text is shown as it is
        return
    with pytest.raises(InputError, match=re.escape(str(run / name))):
        write_report(run)


def test_damaged_prediction_is_named_with_its_line(tmp_path: Path) -> None:
    run = write_demo(tmp_path / "demo")
    path = run / "predictions" / "after-01-stance" / "stance.jsonl"
    path.write_text('{"id": "a"}\nnonsense\n', encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(f"{path}, line 2")):
        write_report(run)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"schema": 2}, "schema: must be 1"),
        ({"tasks": []}, "tasks: "),
        ({"tasks": ["stance"]}, "tasks.0: must be an object, found 'stance'"),
        ({"answers_with": "medium"}, "answers_with: must name one of the variants, slow, fast"),
        ({"variants": {"slow": {"R": [[0.1]]}}}, "variants.slow.R: must have 3 scores in each row"),
        ({"variants": {"slow": {"R": [[0.1, 1.5, None]]}}}, "variants.slow.R.0.1: must be less than or equal to 1"),
        ({"variants": {"slow": {"R": [], "zero_shot": [1]}}}, "variants.slow.zero_shot: must be null or have 3"),
        ({"cost": [1]}, "cost: must be an object"),
    ],
)
def test_results_of_another_form_are_refused(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    run = write_demo(tmp_path / "demo")
    edit(run / "results.json", **changes)
    with pytest.raises(InputError, match=rf"results\.json: {re.escape(place)}"):
        write_report(run)


def test_label_that_leaves_the_run_folder_is_refused(tmp_path: Path) -> None:
    main, _ = three_tasks()
    main["tasks"][0]["label"] = "../../secret"
    with pytest.raises(InputError, match="label"):
        write_report(write_run(tmp_path / "demo", main, predictions=False))
