"""The scripts by which a stream is made and judged: mixed tasks, which of them are learnt, and how two streams rank."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau, spearmanr

from ilora.comparison.evidence import write_evidence
from ilora.comparison.gather import gather
from tests.comparison.fake_runs import Method, write_run, write_sweep

BENCH = Path(__file__).parents[1] / "bench"
Call = Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a script and gives back what it printed."""
    monkeypatch.syspath_prepend(str(BENCH))

    def made(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(BENCH / script), run_name="__main__")
        return capsys.readouterr().out

    return made


# -- mixed.py ------------------------------------------------------------------------------------------------------

SOURCES = {
    "classic/sst2": ("Sentiment?\nText: number {n}.\nAnswer:", "Good"),
    "classic/agnews": ("Topic?\nTitle: Head {n}\nText: Body {n} of it\nAnswer:", "World"),
    "classic/amazon": ("Sentiment?\nTitle: Head {n}\nText: Body {n} of it\nAnswer:", "positive"),
    "classic/boolqa": ("True or false?\nquestion: is it {n}\npassage: Thing {n} -- It is {n}.\nAnswer:", "True"),
    "eight/NumGLUE-cm": ("Solve.\nQuestion:\nWhat is {n} + 0?\nAnswer:", "{n}"),
    "eight/ScienceQA": ("Choose.\n\nQuestion:\nWhich {n}?\n\nChoices:\nA. a\nB. b\n\nAnswer:", "A\nFact {n}. More."),
    "eight/MeetingBank": ("Sum up.\nMeeting transcripts:\nWe met {n}.\nSummary:", "AN ORDINANCE of {n}"),
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Thirty rows of every source, one of them twice."""
    for source, texts in SOURCES.items():
        folder = tmp_path / "data" / source
        folder.mkdir(parents=True)
        numbers = {"train": range(20), "eval": range(19, 25), "test": range(25, 30)}
        for split, found in numbers.items():
            rows = [dict(zip(("prompt", "answer"), (text.format(n=n) for text in texts), strict=True)) for n in found]
            (folder / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path / "data"


def rows_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    """By task, in the order of the splits."""
    return {
        task.name: [
            row for split in ("train", "eval", "test") for row in json.loads((task / f"{split}.json").read_text())
        ]
        for task in folder.iterdir()
    }


def test_no_row_serves_two_splits_or_two_tasks(sources: Path, call: Call) -> None:
    printed = call("mixed.py", sources, sources / "out")
    made = rows_of(sources / "out")
    assert set(made) == set(re.findall(r"^(\w+):", printed, re.MULTILINE))
    for name, rows in made.items():
        assert len({row["prompt"] for row in rows}) == len(rows), name

    def numbers(task: str) -> set[str]:
        return {re.findall(r"\d+", row["prompt"])[-1] for row in made[task]}

    for one, other in (("agnews", "headline"), ("subject", "question")):
        assert len(numbers(one)) == len(numbers(other)) > 10
        assert not numbers(one) & numbers(other)
    assert sum(len(rows) for name, rows in made.items() if name == "sst2") == 28  # of 30, each split rounded down


def test_answers_are_parts_of_the_source(sources: Path, call: Call) -> None:
    call("mixed.py", sources, sources / "out")
    made = rows_of(sources / "out")
    answers = {"headline": "Head {n}", "subject": "Thing {n}", "question": "is it {n}", "fact": "Fact {n}.",
               "summary": "AN ORDINANCE of {n}", "numbers": "{n}"}  # fmt: skip
    for task, answer in answers.items():
        for row in made[task]:
            number = re.findall(r"\d+", row["prompt"])[0]
            assert row["answer"] == answer.format(n=number)
            if task in ("headline", "subject", "question"):
                assert row["answer"] not in row["prompt"]


def test_the_seed_decides(sources: Path, call: Call) -> None:
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        call("mixed.py", sources, sources / out, "--seed", seed)
    assert rows_of(sources / "a") == rows_of(sources / "b") != rows_of(sources / "c")


def test_a_missing_source_is_named(sources: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    gone = sources / "eight/ScienceQA/eval.json"
    gone.unlink()
    with pytest.raises(SystemExit, match="2"):
        call("mixed.py", sources, sources / "out")
    assert str(gone) in capsys.readouterr().err


# -- learnt.py -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "verdict"), [(0.95, "yes"), (0.3, "no")])
def test_a_task_is_learnt_above_the_commonest_answer(tmp_path: Path, call: Call, level: float, verdict: str) -> None:
    run = write_run(tmp_path / "run", "sequential", Method(level=level), order=["one"], items=100)
    rows = tmp_path / "one"
    rows.mkdir()
    for split in ("train", "test"):
        entries = [{"prompt": f"Which?\nText: {split} {n}", "answer": "AB"[n % 3 == 0]} for n in range(9)]
        (rows / f"{split}.json").write_text(json.dumps(entries), encoding="utf-8")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["data"]["tasks"] = [{"name": "one", "path": str(rows), "metric": "exact"}]
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    _, _, line = call("learnt.py", run).splitlines()
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    # The references of the fake run are all A, which is also the commonest training answer: nothing is above it.
    assert cells[:3] == ["one", "exact", "100.0"]
    assert cells[8] == "no"
    config["data"]["tasks"][0]["path"] = str(answered_b(rows))
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    cells = [cell.strip() for cell in call("learnt.py", run).splitlines()[2].strip("| ").split("|")]
    assert cells[2] == "0.0"
    assert cells[8] == verdict


def answered_b(rows: Path) -> Path:
    """The same rows, of which most are answered with B."""
    for file in rows.iterdir():
        entries = json.loads(file.read_text(encoding="utf-8"))
        swapped = [{**entry, "answer": "B" if entry["answer"] == "A" else "A"} for entry in entries]
        file.write_text(json.dumps(swapped), encoding="utf-8")
    return rows


# -- ranks.py ------------------------------------------------------------------------------------------------------

LEVELS = {"a": 0.9, "b": 0.75, "c": 0.6, "d": 0.45}


def evidence(folder: Path, levels: dict[str, float], **more: Any) -> Path:
    """A sweep's evidence file."""
    methods = {name: Method(level=level, loss=0.0) for name, level in levels.items()}
    file = folder.with_suffix(".json")
    write_evidence(file, gather([write_sweep(folder, methods, seeds=(0, 1), items=60, **more)]).runs)
    return file


def correlations(printed: str) -> dict[str, list[float]]:
    """The value and its interval, by name."""
    lines = re.findall(r"^(Spearman|Kendall): (.*)$", printed, re.MULTILINE)
    return {name: [float(x) for x in re.findall(r"-?\d\.\d\d", text.replace("−", "-"))] for name, text in lines}


def test_streams_that_rank_alike_and_against_each_other(tmp_path: Path, call: Call) -> None:
    one = evidence(tmp_path / "one", LEVELS)
    against = evidence(tmp_path / "against", dict(zip(LEVELS, reversed(LEVELS.values()), strict=True)))
    alike = evidence(tmp_path / "alike", {name: level - 0.1 for name, level in LEVELS.items()}, orders=[["x", "y"]])
    assert correlations(call("ranks.py", one, alike)) == {"Spearman": [1, 1, 1], "Kendall": [1, 1, 1]}
    assert correlations(call("ranks.py", one, against)) == {"Spearman": [-1, -1, -1], "Kendall": [-1, -1, -1]}
    swapped = evidence(tmp_path / "swapped", {"a": 0.9, "b": 0.6, "c": 0.75, "d": 0.45})
    found = correlations(call("ranks.py", one, swapped))
    assert [found["Spearman"][0], found["Kendall"][0]] == [0.8, 0.67]  # 1 − 6·2 / (4·15); (5 − 1) / 6
    assert len(correlations(call("ranks.py", one, alike, "--without", "a"))) == 2


def test_equal_methods_leave_the_correlation_open(tmp_path: Path, call: Call) -> None:
    orders = [["p", "q", "r"], ["r", "p", "q"]]  # with its own noise
    files = [evidence(tmp_path / "one", dict.fromkeys(LEVELS, 0.6))]
    files.append(evidence(tmp_path / "other", dict.fromkeys(LEVELS, 0.6), orders=orders))
    for value, low, high in correlations(call("ranks.py", *files, "--repeats", 500)).values():
        assert low <= value <= high
        assert high - low > 0.5


def test_the_correlations_are_those_of_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    source = np.random.default_rng(0)
    one, other = source.integers(6, size=(2, 20, 7)).astype(float)  # with ties
    found = runpy.run_path(str(BENCH / "ranks.py"))["correlations"](one, other)
    for row in range(20):
        assert found[:, row] == pytest.approx(
            [spearmanr(one[row], other[row]).statistic, kendalltau(one[row], other[row]).statistic]
        )


def test_too_few_rows_are_refused(tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    one = evidence(tmp_path / "one", {"a": 0.9, "b": 0.6})
    with pytest.raises(SystemExit, match="2"):
        call("ranks.py", one, one)
    assert "2 rows in common (a, b)" in capsys.readouterr().err
