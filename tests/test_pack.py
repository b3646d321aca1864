"""The pack of sweeps for one card, and the arithmetic of docs/reproduce.md."""

from __future__ import annotations

import json
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilora.commands import sweep as command
from ilora.comparison.evidence import read_evidence
from ilora.sweeps.book import Entry
from ilora.sweeps.plan import expand, read_sweep
from tests.helpers import FEW_SCORES, MakeConfig
from tests.sweeps.test_sweep import Here, use

ROOT = Path(__file__).parents[1]
Slice = Callable[..., int]


class Interrupted(Here):
    """An executor in whose `at`-th run the slice's time is over, or the process is killed."""

    def __init__(self, at: int, end: Callable[[], None]) -> None:
        super().__init__()
        self.at, self.end = at, end

    def start(self, entry: Entry) -> None:
        if len(self.started) == self.at:
            self.end()
        super().start(entry)


@pytest.fixture
def slice_of(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> tuple[Slice, dict[str, Any]]:
    """One slice over two methods and two seeds; and the script's names."""
    short = ("training.epochs=1", "data.limit={train: 8, eval: 2, test: 2}")
    config = make_config("data.tasks=[one, two]", *short, *FEW_SCORES).dump()
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump({"config": config, "methods": ["sequential", "er"], "seeds": 2}), encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy").symlink_to(data)
    script = runpy.run_path(str(ROOT / "bench" / "gpu_pack.py"))

    def call(*options: str) -> int:
        words = ["gpu_pack.py", str(tmp_path / "data"), "--sweeps", str(file), "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", words)
        return int(script["main"]())

    return call, script


def evidence(tmp_path: Path) -> list[str]:
    return sorted("/".join(run.name.split("/")[-2:]) for run in read_evidence(tmp_path / "out" / "toy.json"))


@pytest.mark.usefixtures("sketched")
def test_slices_that_are_cut_off_end_as_the_whole_sweep(
    slice_of: tuple[Slice, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, script = slice_of

    def time_up() -> None:
        raise script["TimeUp"]

    def killed() -> None:
        raise SystemExit(137)

    use(monkeypatch, Interrupted(1, time_up))
    assert call("--drop") == script["MORE_TO_DO"]
    assert evidence(tmp_path) == ["sequential/1-0"]
    runs = tmp_path / "out" / "toy" / "runs"
    assert not (runs / "sequential" / "1-0").exists()
    use(monkeypatch, Interrupted(1, killed))
    with pytest.raises(SystemExit):
        call("--drop")
    assert evidence(tmp_path) == ["sequential/1-0"]
    assert (runs / "er" / "1-0" / "results.json").is_file()
    last = use(monkeypatch, Here())
    assert call("--drop") == 0
    assert last.started == ["sequential 1-1", "er 1-1"]
    assert evidence(tmp_path) == ["er/1-0", "er/1-1", "sequential/1-0", "sequential/1-1"]
    assert not list(runs.glob("*/*/results.json"))
    nothing = use(monkeypatch, Here())
    assert call("--drop") == 0
    assert nothing.started == []


def test_a_slice_whose_time_is_over_stops_its_runs(
    slice_of: tuple[Slice, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, script = slice_of
    stuck = Here()
    stopped: list[bool] = []
    monkeypatch.setattr(stuck, "start", lambda _entry: None)
    monkeypatch.setattr(stuck, "stop", lambda: stopped.append(True))
    monkeypatch.setattr(command, "executor", lambda *_: stuck)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
    try:
        assert call("--minutes", "0.03", "--spare", "0") == script["MORE_TO_DO"]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped == [True]
    assert not (tmp_path / "out" / "toy.json").exists()


@pytest.mark.usefixtures("sketched")
def test_a_failed_run_does_not_keep_the_others_from_the_evidence(
    slice_of: tuple[Slice, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, _ = slice_of
    use(monkeypatch, Here(lambda entry: entry.job.title == "er 1-0"))
    assert call("--only", "*/1-0") == 1
    assert evidence(tmp_path) == ["sequential/1-0"]


@pytest.mark.parametrize("name", ["gpu/mixed", "gpu/eight", "paper-llama2-7b"])
def test_the_sweeps_can_be_planned(name: str, tmp_path: Path) -> None:
    file = ROOT / "configs" / "sweeps" / f"{name}.yaml"
    base = yaml.safe_load((file.parent / yaml.safe_load(file.read_text(encoding="utf-8"))["base"]).read_text())
    sheet = base["data"].get("tasks") or ["C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "20Minuten"]
    sheet = [*sheet, *([] if base["data"].get("tasks") else ["MedMCQA", "JEC-QA"])]
    for task in sheet:
        folder = tmp_path / (task["name"] if isinstance(task, dict) else task)
        folder.mkdir()
        for number, split in enumerate(("train", "eval", "test")):
            rows = [{"prompt": f"{number} {row}", "answer": "ABC"[row % 3]} for row in range(3)]
            rows = [row | {"answer": "1"} for row in rows] if folder.name in ("NumGLUE-cm", "sums", "numbers") else rows
            (folder / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    jobs = expand(read_sweep(file, [f"data.path={tmp_path}", f"model.name={tmp_path}"]), file)
    assert {job.label for job in jobs} >= {"sequential", "joint", "er", "ilora", "individual"}
    assert all(len(job.config.data.tasks or ()) == len(sheet) for job in jobs)


@pytest.fixture(scope="module")
def reproduce() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "bench" / "reproduce.py"))


def test_the_counted_rows_of_finished_runs_are_those_of_the_arithmetic(reproduce: dict[str, Any]) -> None:
    runs = read_evidence(ROOT / "docs" / "evidence" / "classic.json")
    trained, seen = 3 * 160 * 2, set()  # tasks, rows, epochs
    for run in runs:
        if run.own_label in reproduce["PASSES"]:
            cost = run.results["cost"]
            counted = (cost["forward_rows"] / trained, cost["backward_rows"] / trained)
            assert counted == pytest.approx(reproduce["PASSES"][run.own_label](2 / 3, 2)), run.name
            seen.add(run.own_label)
    assert seen == set(reproduce["PASSES"])


def test_the_page_has_the_table_of_the_command(reproduce: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for line in reproduce["table"](cards=8, price=2.5, tokens=512, decode_ms=10):
        assert line in page
