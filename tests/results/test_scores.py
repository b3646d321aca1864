"""Standard errors beside the scores, and perplexity before and after."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilora import run
from ilora.check.audit import check_config
from ilora.data.task import Phase, Task
from ilora.errors import InputError
from ilora.results import scores
from ilora.results.matrix import standard_error
from ilora.results.scores import BASE, prediction_file, read_records
from tests.helpers import MakeConfig, write_task


def test_the_standard_error_is_that_of_many_resamples() -> None:
    draw = random.Random(0)
    for drawn in ([draw.random() for _ in range(40)], [float(draw.random() < 0.3) for _ in range(100)]):
        resampled = np.random.default_rng(0).choice(drawn, size=(20_000, len(drawn))).mean(axis=1)
        assert standard_error(drawn) == pytest.approx(resampled.std(), rel=0.03)
    assert standard_error([1.0, 1.0]) == 0
    assert standard_error([0.0, 1.0]) == pytest.approx(0.5)
    assert standard_error([1.0]) is None


def write_scores(run: Path, phase: str, variant: str, task: Task, records: list[dict[str, float]]) -> None:
    file = prediction_file(run, phase, variant, task, answering="slow")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_a_matrix_reads_each_file_once_and_sees_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [Task("one", {}), Task("two", {})]
    phases = [Phase(number, task.name, (task,)) for number, task in enumerate(tasks, 1)]
    for task in tasks:
        write_scores(tmp_path, BASE, "slow", task, [{"score": 0.0}, {"score": 0.5}])
        for variant in ("slow", "fast"):
            write_scores(tmp_path, phases[0].label, variant, task, [{"score": 1.0, "routed_right": 0.5}] * 4)
    opened: list[Path] = []

    def counting(path: Path) -> list[dict[str, Any]]:
        opened.append(path)
        return read_records(path)

    monkeypatch.setattr(scores, "read_records", counting)
    found = scores.score_matrix(tmp_path, phases, tasks, variants=["slow", "fast"])
    assert len(opened) == len(set(opened)) == 6
    assert found["slow"] == found["fast"]
    slow = found["slow"]
    assert (slow["zero_shot"], slow["zero_shot_se"]) == ([0.25, 0.25], [0.25, 0.25])
    assert (slow["R"], slow["se"], slow["n"]) == ([[1.0, 1.0]], [[0.0, 0.0]], [[4, 4]])  # the second phase is to come
    assert slow["routed_right"] == [[0.5, 0.5]]
    assert slow["summary"]["OP"] == 1.0
    write_scores(tmp_path, phases[0].label, "fast", tasks[0], [{"score": 0.0}])
    again = scores.score_matrix(tmp_path, phases, tasks, variants=["slow", "fast"])
    assert (again["fast"]["R"], again["fast"]["se"], again["fast"]["n"]) == ([[0.0, 1.0]], [[None, 0.0]], [[1, 4]])


@pytest.mark.usefixtures("report")
def test_errors_and_perplexity_of_a_run(make_config: MakeConfig, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("one 1 small red : cat two 2 old blue : dog " * 6, encoding="utf-8")
    config = make_config("data.tasks=[one, two]", "training.epochs=1", f"evaluation.perplexity_file={text}")
    results = run(config, tmp_path / "run", quiet=True).results
    for variant in results["variants"].values():
        for row, errors in zip(variant["R"], variant["se"], strict=True):
            assert [score is None for score in row] == [error is None for error in errors]
            assert all(0 <= error <= 0.5 for error in errors if error is not None)
    measured = results["perplexity"]
    assert measured["before"] > 1
    assert set(measured["after"]) == {"slow", "fast"}
    assert measured["after"]["fast"] != measured["before"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "What the base model could do and still can" in page
    assert "general.txt" in page
    assert "±" in page
    stored = json.loads((tmp_path / "run" / "predictions" / "after-00-base" / "perplexity.json").read_text())
    assert stored["base"]["perplexity"] == measured["before"]


def test_what_was_left_out_and_cut_stands_in_the_results(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_task(tmp_path, "one")
    rows = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps([*rows, *rows[:5]]))
    long = [{"prompt": f"{number} " + "red " * number + ":", "answer": "cat"} for number in range(4, 24)]
    (folder / "test.json").write_text(json.dumps(long))
    sections = {"data": {"path": str(tmp_path), "deduplicate": True, "max_length": 16, "template": "none"}}
    config = make_config("training.epochs=1", "evaluation.max_new_tokens=8", "evaluation.zero_shot=false", **sections)
    (task,) = run(config, tmp_path / "run").results["tasks"]
    assert task["dropped"]["train"] >= 5
    said = f"one: repeated rows left out (data.deduplicate): {task['dropped']['train']} train"
    assert said in "".join(capsys.readouterr())
    (report,) = check_config(config, near=False)
    assert len(long) > task["truncated"]["test"] == report["tokens"]["cut"]["test"] > 0


def test_a_text_that_cannot_be_read(make_config: MakeConfig, tmp_path: Path) -> None:
    for content, problem in ((None, "No such file"), (b"\xff", "not UTF-8"), (b"", "fewer than 2 tokens")):
        text = tmp_path / "general.txt"
        if content is not None:
            text.write_bytes(content)
        config = make_config("data.tasks=[one]", f"evaluation.perplexity_file={text}")
        with pytest.raises(InputError, match=rf"evaluation.perplexity_file: .*{problem}"):
            run(config, tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()
