"""Every pair of adjacent minima of many runs: what is measured, what goes on after a kill, and the tables by hand."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from ilora import run
from ilora.connectivity.landscape import Landscape
from tests.helpers import MakeConfig

BENCH = Path(__file__).parents[1] / "bench"
Call = Callable[..., str]
Json = dict[str, Any]
POINTS = ("--points", 3, "--rows", 8)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the script and gives back what it printed; 2: as code, with what it said."""
    monkeypatch.syspath_prepend(str(BENCH))

    def made(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["minima.py", *map(str, arguments)])
        if code:
            with pytest.raises(SystemExit, match=str(code)):
                runpy.run_path(str(BENCH / "minima.py"), run_name="__main__")
            return capsys.readouterr().err
        runpy.run_path(str(BENCH / "minima.py"), run_name="__main__")
        return "".join(capsys.readouterr())

    return made


# -- measuring -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def place(finished: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two finished runs: I-LoRA over two tasks, sequential training over three, and one that only began."""
    folder = tmp_path_factory.mktemp("minima") / "runs"
    shutil.copytree(finished, folder / "ilora" / "1-0")
    config = make_config("evaluation.zero_shot=false", "training.learning_rate=0.02", method={"name": "sequential"})
    run(config, folder / "sequential" / "1-0", quiet=True)
    (folder / "er").mkdir()
    shutil.copyfile(finished / "config.yaml", folder / "er" / "config.yaml")
    return folder


@pytest.fixture(scope="session")
def measured(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pairs of the two runs, with scores."""
    out = tmp_path_factory.mktemp("measured") / "minima.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        patch.setattr(sys, "argv", ["minima.py", str(place), *map(str, POINTS), "--scores", "--out", str(out)])
        runpy.run_path(str(BENCH / "minima.py"), run_name="__main__")
    return out


def lines_of(file: Path) -> list[Json]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_adjacent_pair_of_every_run_has_a_line(measured: Path, place: Path) -> None:
    found = [(line["run"], *line["pair"], *line["losses"]["delta"]) for line in lines_of(measured)]
    assert found == [
        ("runs/ilora/1-0", "01-one/slow", "02-two/slow", "one", "two"),
        ("runs/sequential/1-0", "01-one/fast", "02-two/fast", "one", "two"),
        ("runs/sequential/1-0", "02-two/fast", "03-three/fast", "one", "two", "three"),
    ]
    for line in lines_of(measured):
        assert 0 < line["cka"] <= 1
        assert line["distance"] > 0
        for key in ("losses", "scores"):
            assert np.shape(list(line[key]["factors"].values())) == (len(line["losses"]["delta"]), 3, 8)
        one, other = (np.array(list(line["losses"][where].values())) for where in ("factors", "delta"))
        assert (one[:, [0, -1]] == other[:, [0, -1]]).all()
        assert (one[:, 1] != other[:, 1]).any()


def test_the_ends_score_as_the_run_did(measured: Path, place: Path) -> None:
    for line in lines_of(measured):
        results = json.loads((place.parent / line["run"] / "results.json").read_text(encoding="utf-8"))
        matrix = results["variants"][results["answers_with"]]["R"]
        names = [task["label"] for task in results["tasks"]]
        for end, label in zip((0, -1), line["pair"], strict=True):
            for task, points in line["scores"]["delta"].items():
                score = matrix[int(label[:2]) - 1][names.index(task)]
                assert score is None or np.mean(points[end]) == pytest.approx(score, abs=1e-3)


def test_a_call_that_was_killed_goes_on(
    measured: Path, place: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "minima.jsonl"
    out.write_bytes(measured.read_bytes()[:-100])  # in the middle of the last line
    assert f"{out}, line 3" in call("--table", out)
    said = call(place, *POINTS, "--scores", "--out", out)
    assert f"{out}, line 3" in said
    assert "er: left out" in said
    kept, again = lines_of(measured), lines_of(out)
    assert [line | {"seconds": 0} for line in again] == [line | {"seconds": 0} for line in kept]
    monkeypatch.setattr(Landscape, "evaluate", None)  # nothing is left to be measured
    call(place, *POINTS, "--scores", "--out", out)
    assert lines_of(out) == again
    assert "--rows" in call(place, "--points", 3, "--out", out, code=2)  # not measured with these


def test_of_the_previous_task_alone_and_without_scores(measured: Path, place: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "minima.jsonl"
    call(place, *POINTS, "--old", "previous", "--only", "sequential/*", "--out", out)
    last, whole = lines_of(out)[-1], lines_of(measured)[-1]
    assert "scores" not in last
    assert list(last["losses"]["factors"]) == ["two", "three"]
    for task, points in last["losses"]["factors"].items():
        assert np.array(points) == pytest.approx(np.array(whole["losses"]["factors"][task]), abs=2e-4)


@pytest.mark.parametrize("lost", ["adapters/01-one", "adapters/02-two/slow"])
def test_a_run_that_has_not_kept_its_minima_is_refused(place: Path, tmp_path: Path, call: Call, lost: str) -> None:
    folder = Path(shutil.copytree(place / "ilora" / "1-0", tmp_path / "run"))
    shutil.rmtree(folder / lost)
    said = call(folder, *POINTS, "--out", tmp_path / "minima.jsonl", code=2)
    assert str(folder) in said
    assert lost.split("/")[1] in said
    assert not (tmp_path / "minima.jsonl").exists()


# -- tables ----------------------------------------------------------------------------------------------------------


def line(run: str, *, middle: Any, ends: tuple[float, float] = (1.0, 1.0), delta: Any = None, **more: Any) -> Json:
    """A pair with one task of four rows at three points: losses of the ends, and of the rows in the middle."""
    ways = {"factors": middle, "delta": middle if delta is None else delta}
    losses = {
        where: {"x": [[ends[0]] * 4, list(np.broadcast_to(value, 4)), [ends[1]] * 4]} for where, value in ways.items()
    }
    settings = {"points": 3, "rows": 4, "old": "all", "scores": False}
    made = {"schema": 1, "run": run, "method": "er", "pair": ["01-x/fast", "02-y/fast"], "settings": settings}
    return made | {"made_from": run, "losses": losses, "cka": 0.9, "distance": 1.0} | more


def written(folder: Path, *lines: Json) -> Path:
    file = folder / "minima.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return file


def cells(printed: str, first: str) -> list[list[str]]:
    """The lines of all tables that begin so."""
    rows = [row.strip("| ").split(" | ") for row in printed.splitlines() if row.startswith(f"| {first} |")]
    return [[cell.replace("−", "-") for cell in row] for row in rows]


def test_the_counts_by_hand(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """er: gains of 0.1 in one run, 0.2 and 0.4 in another, 0 (a barrier of 0.3) in a third; means 0.1, 0.3, 0."""
    monkeypatch.syspath_prepend(str(BENCH))
    first, second = runpy.run_path(str(BENCH / "minima_tables.py"))["halves"]("x", 4)
    noisy = np.empty(4)
    noisy[first] = noisy[second] = [0.7, 1.1]  # gains 0.3 and -0.1: in each half 0.1 with an error of 0.2
    nearer = np.empty(4)
    nearer[first], nearer[second] = [1.1, 0.7], [1.2, 1.2]  # chosen on the first half only, and worse on the second
    lines = [
        line("a", middle=noisy),
        line("b", middle=0.8),
        line("b", middle=1.1, ends=(1.5, 1.7), pair=["02-y/fast", "03-z/fast"]),
        line("c", middle=1.3, delta=1.0),
        line("d", middle=nearer, method="ilora"),
    ]
    printed = call("--table", written(tmp_path, *lines))
    (factors, delta, paired), (own, *_), (every, *_) = (cells(printed, name) for name in ("er", "ilora", "all"))
    # t(2) = 4.303 at 95 %; the runs' means have a standard error of 0.1528 / √3 = 0.0882
    assert factors[:8] == ["er", "factors", "3", "4", "3", "2", "3", "0"]
    assert factors[8:] == ["0.1333 (-0.2461 to 0.5128)", "1", "0.1000 (-0.3303 to 0.5303)"]
    assert delta[3:8] == ["4", "3", "2", "3", "0"]
    assert delta[9] == "0"
    # An end and a point inside: half the difference of -0.2 on the second half counts.
    assert own == ["ilora", "factors", "1", "1", "0", "0", "0", "0", "-0.1000", "0", "0.0500"]
    assert every[2:4] == ["4", "5"]
    assert paired[:5] == ["er", "4", "0.0000 (0.0000 to 0.0000)", "0", "0"]
    assert paired[5:] == ["0.1000 (-0.3303 to 0.5303)", "1", "0"]


def test_scores_decide_before_losses(tmp_path: Path, call: Call) -> None:
    settings = {"points": 3, "rows": 4, "old": "previous", "scores": True}
    scores = {where: {"x": [[0.5] * 4, [0.75] * 4, [0.25] * 4]} for where in ("factors", "delta")}
    printed = call("--table", written(tmp_path, line("a", middle=1.5, settings=settings, scores=scores)))
    by_loss, by_score = (row for row in cells(printed, "er") if row[1] == "delta")
    assert by_loss[4:] == ["0", "0", "0", "0", "0.0000", "1", "0.5000"]
    assert by_score[4:] == ["1", "1", "1", "0", "25.00", "0", "0.00"]


def test_the_correlations_by_hand(tmp_path: Path, call: Call) -> None:
    """Four runs of a pair each: distance orders the gains but for two neighbours, the gap against them, CKA not."""
    runs = [("a", 0.9, 1, 0.4), ("b", 0.8, 3, 0.3), ("c", 0.7, 2, 0.2), ("d", 0.6, 4, 0.1)]
    lines = [line(name, middle=middle, distance=far, ends=(1.0, 1.0 + gap)) for name, middle, far, gap in runs]
    printed = call("--table", written(tmp_path, *lines))
    (distance, _), (gap, _), (cka, _) = (cells(printed, name) for name in ("weight distance", "gap", "CKA"))
    assert distance[2:6] == ["4", "4", "0.80", "0.333"]  # 4 of the 24 orders of the runs reach 0.8, both ways
    assert gap[4:6] == ["-1.00", "0.083"]
    assert distance[6:] == cka[4:6] == ["–", "–"]  # no barrier anywhere; one CKA


def test_whole_runs_are_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    spearman = runpy.run_path(str(BENCH / "minima_tables.py"))["spearman"]
    source = np.random.default_rng(0)
    runs = [tuple(source.integers(9, size=(2, length)).astype(float)) for length in (3, 2, 3, 2, 4)]
    rho, p = spearman(runs)
    one, other = (np.concatenate([run[side] for run in runs]) for side in (0, 1))
    assert rho == pytest.approx(spearmanr(one, other).statistic)
    # Runs of one length exchange places: 2 · 2 · 1 different orders, so that p is a multiple of ¼, twice the tail.
    assert p * 2 == pytest.approx(round(p * 2))
    assert spearman(runs[:1])[1] is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema": 9}, "schema 9"),
        ({"cka": "x", "losses": {"factors": {"x": [[1.0] * 4] * 2}}}, "line 2"),
        ({"losses": {"factors": {"x": [[1.0] * 3] * 3}}}, "4 rows"),
        ({"settings": {"points": 3, "rows": 9, "old": "all", "scores": False}}, "first line"),
        ({"run": "a"}, "twice"),
    ],
)
def test_lines_that_do_not_fit_are_named(tmp_path: Path, call: Call, change: Json, named: str) -> None:
    file = written(tmp_path, line("a", middle=1.0), line("b", middle=1.0) | change, line("c", middle=1.0))
    said = call("--table", file, code=2)
    assert f"{file}, line 2" in said
    assert re.search(named, said)
