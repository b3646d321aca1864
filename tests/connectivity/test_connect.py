"""The commands on a tiny run: files, exact ends, what is kept, what is refused, a killed plane that goes on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from peft import PeftModel
from transformers import LlamaForCausalLM

from ilora import run
from ilora.config import load_config
from ilora.connectivity import choose, connect, files, path_job, pictures, sources, space
from ilora.connectivity import evaluate as evaluation
from ilora.connectivity import landscape as landscapes
from ilora.connectivity.landscape import Landscape
from ilora.connectivity.sources import file_name
from ilora.errors import InputError
from ilora.present.figures import new_figure
from ilora.report.html import write_report
from ilora.results.scores import read_records
from ilora.stream import readers
from ilora.training.checkpoint import load_latest
from tests.command import Command
from tests.connectivity.conftest import random_adapter
from tests.helpers import MakeConfig, write_task


@pytest.fixture
def ilora(typed: Command) -> Command:
    """`ilora ...` in this process, wherever the tests were started."""
    return typed


@pytest.fixture
def tiny_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to write into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _no_report(sketched: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No report after each command; `report` is for the tests that look at it."""
    if "report" not in request.fixturenames:
        monkeypatch.setattr("ilora.commands.connect.write_report", lambda _run: None)


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of this test have no axes: to make these takes matplotlib longer than the tiny model to compute."""
    whole = pictures.drawings
    monkeypatch.setattr(pictures, "drawings", lambda result: dict.fromkeys(whole(result), Figure))


def load(folder: Path, pattern: str) -> dict[str, Any]:
    (found,) = folder.glob(pattern)
    return files.load(found)


def test_the_run_of_these_tests_tells_scores_apart(finished: Path) -> None:
    """Else a proof that scores are the same would prove nothing."""
    variants = json.loads((finished / "results.json").read_text())["variants"]
    scores = [score for variant in variants.values() for row in variant["R"] for score in row]
    assert all(0 < score < 1 for score in scores)
    assert len(set(scores)) >= 4


def test_the_ends_of_a_path_answer_as_the_run_did(
    tiny_run: Path, ilora: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer, not only the scores."""
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    place, judged = Landscape.use, landscapes.evaluate
    placed: list[str] = []

    def watched(data: Any, *others: Any, **named: Any) -> Any:
        answers[placed[-1], data.task.label] = judged(data, *others, **named)
        return answers[placed[-1], data.task.label]

    monkeypatch.setattr(Landscape, "use", lambda self, adapter: (placed.append(adapter.label), place(self, adapter)))
    monkeypatch.setattr(landscapes, "evaluate", watched)
    assert ilora("connect", tiny_run, "--points", 3, "--paths", "delta")[0] == 0
    assert {end for end, _ in answers} == {"01-one/slow", "01-one/fast", "02-two/slow", "02-two/fast"}
    for (end, task), records in answers.items():
        phase, variant = end.split("/")
        folder = tiny_run / "predictions" / f"after-{phase}"
        assert records == read_records((folder if variant == "slow" else folder / variant) / f"{task}.jsonl")
    for one, two in (("01-one/slow", "02-two/slow"), ("01-one/fast", "02-two/fast"), ("02-two/fast", "02-two/slow")):
        assert any(answers[one, task] != answers[two, task] for task in ("one", "two"))  # exchanged, they would show


@pytest.mark.usefixtures("blank")
def test_the_ends_of_a_path_score_as_the_run_did(tiny_run: Path, ilora: Command) -> None:
    code, out, err = ilora("connect", tiny_run, "--points", 3, "--paths", "factors,spherical,bezier:delta",
                           "--bend-steps", 3)  # fmt: skip
    assert code == 0, err
    results = json.loads((tiny_run / "results.json").read_text())
    labels = [task["label"] for task in results["tasks"]]
    names = {"fast-fast": ("01-one/fast", "02-two/fast"), "twins": ("02-two/fast", "02-two/slow")}
    for one, two in (*names.values(), ("01-one/slow", "02-two/slow")):
        for path in ("linear-factors", "spherical-factors", "bezier-delta"):
            found = load(tiny_run / "connectivity", f"path-{file_name(one)}--{file_name(two)}-{path}.json")
            assert [point["t"] for point in found["points"]] == [0.0, 0.5, 1.0]
            for point, end in zip((found["points"][0], found["points"][-1]), (one, two), strict=True):
                phase, variant = end.split("/")
                matrix = results["variants"][variant]["R"][int(phase[:2]) - 1]
                for label, score in zip(labels, matrix, strict=True):
                    if score is not None:
                        assert point["tasks"][label]["score"] == score
            assert found["groups"] == {"mean": ["one", "two"], "old": ["one"], "new": ["two"]}
            assert found["points"][1]["tasks"]["one"]["n"] == 8
            assert found["points"][1]["mean"]["n"] == 16
            assert found["profiles"]["mean"]["loss"]["barrier_se"] >= 0
            best = found["profiles"]["mean"]["score"]
            (there,) = [point for point in found["points"] if point["t"] == best["best_t"]]
            assert (best["best"], best["best_se"]) == (there["mean"]["score"], there["mean"]["score_se"])
            assert found["points"][1]["tasks"]["one"]["loss_se"] > 0
            assert found["profiles"]["mean"]["loss"]["barrier"] >= 0
    assert "best" in out
    assert "index.html" in out


@pytest.mark.usefixtures("drawn", "report")
def test_pictures_and_pages_are_written_and_hold_no_live_text(
    tiny_run: Path, ilora: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pictures.drawings

    def of_one_pair(result: dict[str, Any]) -> dict[str, Any]:
        """The other pairs' pictures are blank: three of a kind take three times as long."""
        found, first = whole(result), result["ends"][0]["label"]
        return found if first == "02-two/fast" else dict.fromkeys(found, lambda: new_figure(1, 1))

    monkeypatch.setattr(pictures, "drawings", of_one_pair)
    code, _, err = ilora("connect", tiny_run, "--points", 3, "--paths", "delta", "--similarity", "--quiet")
    assert code == 0, err
    folder = tiny_run / "connectivity"
    for picture in folder.glob("*.svg"):
        assert ElementTree.fromstring(picture.read_bytes()).tag.endswith("svg")
        assert picture.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(folder.glob("*.svg"))) == len(list(folder.glob("*.json"))) == 6
    page = (folder / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "script-src 'sha256-" in policy[1]
    assert page.count("<script") == 2
    report = (tiny_run / "report.html").read_text()
    assert "Between the minima" in report
    assert "<script" not in report
    similar = load(folder, "similarity-02-two-fast--02-two-slow.json")
    assert [row["layer"] for row in similar["cka"]] == [1, 2]
    assert similar["n"] == {"one": 8, "two": 8}
    assert set(similar["cka"][0]["tasks"]) == {"one", "two"}
    assert set(similar["distances"]) == {"factors", "delta"}
    slow = similar["along"]["slow"]
    assert slow["when"] == [1, 1.25, 1.5, 1.75, 2]  # keep.trajectory: last
    assert slow["label"][:2] == ["01-one/slow", "02-two/slow, step 45"]
    assert slow["factors"]["from_first"][0] == 0.0
    assert all(value > 0 for value in slow["delta"]["from_first"][1:])
    early = load(folder, "similarity-01-one-slow--02-two-slow.json")
    assert early["along"] == similar["along"]


@pytest.mark.usefixtures("report", "blank")
def test_what_is_there_is_kept_and_never_overwritten(
    tiny_run: Path, ilora: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("connect", tiny_run, "--points", 2, "--paths", "delta", "--quiet")
    assert ilora(*command)[0] == 0
    before = {path: path.read_bytes() for path in (tiny_run / "connectivity").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Landscape, "evaluate", lambda *_, **__: pytest.fail("computed again"))
        assert ilora(*command)[0] == 0
    assert {path: path.read_bytes() for path in (tiny_run / "connectivity").iterdir()} == before
    code, _, err = ilora("connect", tiny_run, "--points", 2, "--paths", "delta", "--rows", 3)
    assert code == 2
    assert "exists, made with other settings, tasks; --out names another folder" in err
    assert {path: path.read_bytes() for path in (tiny_run / "connectivity").iterdir()} == before
    # Other results beside it are no change of it.
    code, _, err = ilora(*command, "--paths", "delta,chain", "--bend-steps", 1, "--plane", "--grid", 2, "--space",
                         "delta")  # fmt: skip
    assert code == 0, err
    assert all(path.read_bytes() == content for path, content in before.items() if path.suffix == ".json")


@pytest.mark.parametrize(
    "change", ["data.max_length=16", "data.template=alpaca", "model.attention=eager", "evaluation.batch_size=5"]
)
def test_what_a_result_depends_on(change: str, finished: Path) -> None:
    source = sources.from_run(finished, pairs="last")
    tasks = source.pairs[0].tasks
    before = sources.Origins(source.config).of(source.pairs[0].ends, tasks, {})
    assert before == sources.Origins(source.config).of(source.pairs[0].ends, tasks, {})
    other = load_config(finished / "config.yaml", [change])
    assert sources.Origins(other).of(source.pairs[0].ends, tasks, {}) != before
    ends = tuple(reversed(source.pairs[0].ends))
    assert sources.Origins(source.config).of(ends[:1], tasks, {}) != before
    assert sources.Origins(source.config).of(source.pairs[0].ends, tasks[:1], {}) != before


@pytest.mark.usefixtures("blank")
def test_after_a_task_is_added_all_pairs_go_on(tiny_run: Path, ilora: Command, data: Path) -> None:
    command = ("connect", tiny_run, "--pairs", "all", "--points", 2, "--paths", "delta", "--similarity", "--quiet")
    assert ilora(*command)[0] == 0
    folder = tiny_run / "connectivity"
    before = {path: path.read_bytes() for path in folder.glob("*.json")}
    assert ilora("add", tiny_run, data / "three", "training.epochs=1", "--quiet")[0] == 0
    code, _, err = ilora(*command)
    assert code == 0, err
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(folder.glob("path-*.json"))) == 7  # 2 + 2 adjacent pairs, 3 of fast and slow
    late = load(folder, "similarity-03-three-fast--03-three-slow.json")
    assert late["along"]["slow"]["when"][-1] == 3


def test_a_killed_plane_goes_on(tiny_run: Path, ilora: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("connect", tiny_run, "--paths", "", "--plane", "--grid", 3, "--rows", 3, "--out")
    original, rows = Landscape.evaluate, []

    def killed(self: Landscape, points: Any, **named: Any) -> Any:
        if len(points) == 3 and not named.get("exact"):
            rows.append(len(rows))
            if len(rows) == 2:
                raise KeyboardInterrupt
        return original(self, points, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Landscape, "evaluate", killed)
        assert ilora(*command, tiny_run / "a")[0] == 130
    torn = load(tiny_run / "a", "plane-*.json")
    assert (torn["complete"], len(torn["grid"])) == (False, 1)
    assert ilora(*command, tiny_run / "a")[0] == 0
    assert ilora(*command, tiny_run / "b")[0] == 0
    one, two = (load(tiny_run / name, "plane-*.json") for name in "ab")
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert [len(row) for row in one["grid"]] == [3, 3, 3]
    assert [corner["label"] for corner in one["corners"]] == ["01-one/fast", "02-two/fast", "02-two/slow"]
    for corner in one["corners"]:
        (place,) = [place for place in one["trail"] if place["label"] == corner["label"]]
        assert (place["x"], place["y"]) == pytest.approx((corner["x"], corner["y"]), abs=1e-5)
        assert place["away"] == pytest.approx(0, abs=1e-3)
    # The way from the first corner on, one series a variant, and all of it that is near the plane within the picture.
    slow = [place for place in one["trail"] if place["variant"] == "slow"]
    assert [place["when"] for place in slow] == [1, 1.25, 1.5, 1.75, 2]
    assert any(place["near"] for place in slow[1:-1])
    for place in one["trail"]:
        inside = one["x"][0] <= place["x"] <= one["x"][-1] and one["y"][0] <= place["y"] <= one["y"][-1]
        assert inside or not place["near"]
    assert len(list((tiny_run / "a").glob("plane-*.png"))) == 2


def test_adapters_of_any_origin_and_rank(tiny_model: Path, data: Path, tmp_path: Path, ilora: Command) -> None:
    for name, seed, rank in (("a", 1, 4), ("b", 2, 6), ("c", 3, 2)):
        space.write(random_adapter(name, seed, rank=rank), tmp_path / name)
    places = [tmp_path / name for name in "abc"]
    config = tmp_path / "tasks.yaml"
    config.write_text(f"data: {{path: {data}, tasks: [one], max_length: 64}}")
    common = ("--data", config, "--model", tiny_model, "--points", 2, "--rows", 3, "--out", tmp_path / "out")
    code, _, err = ilora("connect", *places, "--paths", "delta", "--plane", "--space", "delta", "--grid", 2, *common)
    assert code == 0, err
    assert len(list((tmp_path / "out").glob("path-*.json"))) == 3
    assert load(tmp_path / "out", "plane-*.json")["trail"] == []  # three adapters are no way of a training
    found = load(tmp_path / "out", "path-a--b-linear-delta.json")
    assert found["groups"] == {"mean": ["one"]}
    code, _, err = ilora("connect", *places[:2], "--paths", "factors", *common)
    assert code == 2
    assert "a and b differ in layers, rank or scale" in err
    code, out, err = ilora("connect", *places[:2], *common[:-1], tmp_path / "default")
    assert code == 0, err
    assert "a--b: different layers, ranks or scales, so there is no path in factors" in out + err
    assert [path.name for path in (tmp_path / "default").glob("path-*.json")] == ["path-a--b-linear-delta.json"]


def test_a_run_whose_rank_grows_goes_in_delta(make_config: MakeConfig, tmp_path: Path, ilora: Command) -> None:
    """O-LoRA leaves the sum of all tasks' adapters: every end, and every stage of the trail, has a rank of its own."""
    place = run(make_config("training.epochs=1", method={"name": "olora"}), tmp_path / "run", quiet=True).path
    command = ("connect", place, "--points", 2, "--rows", 2, "--plane", "--grid", 2)
    code, _, err = ilora(*command)
    assert code == 2
    assert "differ in layers, rank or scale" in err
    assert not (place / "connectivity").exists()
    code, out, err = ilora(*command, "--space", "delta", "--pairs", "all")
    assert code == 0, err
    assert (out + err).count("so there is no path in factors") == 2
    names = sorted(path.name for path in (place / "connectivity").glob("path-*.json"))
    assert names == [
        "path-01-one-fast--02-two-fast-linear-delta.json",
        "path-02-two-fast--03-three-fast-linear-delta.json",
    ]
    code, _, err = ilora(*command[:-3], "--paths", "factors")
    assert code == 2
    assert "the space `delta` takes any two adapters" in err


def test_labels_that_look_alike_do_not_share_a_file(
    tiny_model: Path, data: Path, tmp_path: Path, ilora: Command
) -> None:
    names = ["a b", "a-b", "x" * 70, "x" * 69 + "y"]
    for seed, name in enumerate(names):
        space.write(random_adapter(name, seed), tmp_path / name)
    config = tmp_path / "tasks.yaml"
    config.write_text(f"data: {{path: {data}, tasks: [one], max_length: 64}}")
    for chosen in (names[:3], names[1:]):
        code, _, err = ilora("connect", *(tmp_path / name for name in chosen), "--paths", "delta", "--points", 2,
                             "--rows", 2, "--data", config, "--model", tiny_model,
                             "--out", tmp_path / "out")  # fmt: skip
        assert code == 0, err
    found = files.load_all(tmp_path / "out")
    ends = {tuple(end["label"] for end in result["ends"]) for result in found}
    assert len(found) == len(ends) == 5  # of 3 + 3 pairs one is the same


def test_labels_of_one_command_are_told_apart(tmp_path: Path) -> None:
    places = [tmp_path / "a-b" / "c", tmp_path / "a" / "b-c", tmp_path / "d" / "c"]
    assert sources.file_name("a-b/c") == sources.file_name("a/b-c")
    labels = sources.labels_of([places[0], places[2]])
    assert labels == ["a-b/c", "d/c"]
    many = sources.labels_of([tmp_path / "a-b" / "c", tmp_path / "a" / "b-c", tmp_path / "z" / "c"])
    assert len({sources.file_name(label) for label in many}) == 3


@pytest.mark.usefixtures("blank")
def test_a_bend_is_kept_and_its_path_can_be_evaluated(
    tiny_run: Path, ilora: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("connect", tiny_run, "--points", 3, "--paths", "bezier", "--bend-steps", 10)
    code, _, err = ilora("evaluate", tiny_run, "--at", 0.5, "--path", "bezier")
    assert code == 2
    assert "no trained bend between 01-one/slow and 02-two/slow; `ilora connect" in err
    with monkeypatch.context() as patch:  # killed between bend and path
        patch.setattr(Landscape, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert ilora(*command)[0] == 130
    folder = tiny_run / "connectivity"
    name = "01-one-slow--02-two-slow-bezier-factors"
    torn, bend = files.load(folder / f"path-{name}.json"), (folder / f"bend-{name}/adapter_model.safetensors")
    assert (torn["complete"], torn["bend"]["adapter"]) == (False, f"bend-{name}")
    before = bend.read_bytes()
    code, out, err = ilora(*command)
    assert code == 0, err
    assert bend.read_bytes() == before  # not trained again
    found = files.load(folder / f"path-{name}.json")
    assert found["bend"] == torn["bend"]
    losses = found["bend"]["loss"]
    assert losses["curve"] < losses["line"]
    assert f"over the curve {losses['curve']:.3f}, over the straight line {losses['line']:.3f}" in out
    code, _, err = ilora("evaluate", tiny_run, "--at", 0.5, "--path", "bezier")
    assert code == 0, err
    (scores,) = (tiny_run / "evaluations").glob(f"{name}-t0.5-*/scores.json")
    assert json.loads(scores.read_text())["tasks"]["one"]["score"] == found["points"][1]["tasks"]["one"]["score"]
    shutil.rmtree(folder)
    (folder / f"bend-{name}").mkdir(parents=True)
    code, _, err = ilora(*command)
    assert code == 2
    assert "exists without the path" in err


def test_similarity_on_a_given_text(tiny_run: Path, ilora: Command, tmp_path: Path) -> None:
    text = tmp_path / "some.txt"
    text.write_text("small red cat\n\nnew owl\nbig old dog one\na fox\ntwo\n")
    command = ("connect", tiny_run, "--paths", "", "--similarity", "--text", text, "--out", tmp_path / "out")
    code, _, err = ilora(*command)
    assert code == 0, err
    found = load(tmp_path / "out", "similarity-02-two-fast--02-two-slow-some.txt.json")
    assert found["n"] == {"some.txt": 5}
    assert all(0 < row["cka"] <= 1 for row in found["cka"])
    text.write_text("one\ntwo\n")
    code, _, err = ilora(*command)
    assert code == 2
    assert "some.txt: 2 lines; every line is a row" in err


BAD: dict[str, tuple[list[object], str]] = {
    "no run": (["connect", "nowhere"], "nowhere: not a run folder with results"),
    "a path": (["connect", "RUN", "--paths", "strait"], "path 'strait': allowed are factors, delta"),
    "a pair": (["connect", "RUN", "--pairs", "first"], "--pairs first: allowed are last, all"),
    "points": (["connect", "RUN", "--points", 1], "at least 2"),
    "a split": (["connect", "RUN", "--split", "dev"], "no dev split; there are"),
    "grid": (["connect", "RUN", "--plane", "--grid", 1], "at least 2 points a side"),
    "a space": (["connect", "RUN", "--plane", "--space", "weights"], "unknown space 'weights'"),
    "data of a run": (["connect", "RUN", "--data", "x"], "--data and --model are for adapter folders"),
    "one adapter": (["connect", "RUN/adapters/01-one/fast"], "one adapter; name two or three"),
    "four": (["connect", "a", "a", "a", "a"], "4 adapters: give a run folder"),
    "no adapter": (["connect", "nowhere", "RUN"], "not a PEFT adapter folder"),
    "no data": (["connect", "RUN/adapters/01-one/fast", "RUN/adapters/02-two/fast"], "give --data RUN"),
    "other data": (["connect", "RUN/adapters/01-one/fast", "RUN/adapters/02-two/fast", "--data", "x"], "x: no such"),
    "select adapters": (["connect", "RUN/adapters/01-one/fast", "RUN/adapters/02-two/fast", "--select"],
                        "--select needs a run folder"),
    "between": (["connect", "RUN", "--select", "--between", "us"], "allowed are adjacent, fast-slow"),
    "select nothing": (["connect", "RUN", "--select", "--paths", ""], "--select goes along one path; --paths names 0"),
    "select two": (["connect", "RUN", "--select", "--paths", "factors,delta"], "--paths names 2"),
    "select a bend": (["connect", "RUN", "--select", "--paths", "bezier"], "--select goes along factors, delta or"),
    "select a chain": (["connect", "RUN", "--select", "--paths", "chain:delta"], "the bend of a chain would be"),
    "select plane": (["connect", "RUN", "--select", "--plane"], "--plane: it has no part in --select"),
    "select similarity": (["connect", "RUN", "--select", "--similarity"], "--similarity: it has no part in"),
    "select data": (["connect", "RUN", "--select", "--data", "x"], "--data: it has no part in --select"),
    "select model": (["connect", "RUN", "--select", "--model", "x"], "--model: it has no part in --select"),
    "select split": (["connect", "RUN", "--select", "--split", "test"], "--split: it has no part in --select"),
    "between paths": (["connect", "RUN", "--between", "adjacent"], "--between: it is for --select"),
    "grid alone": (["connect", "RUN", "--grid", 3], "--grid: it is for --plane"),
    "bend alone": (["connect", "RUN", "--bend-steps", 3], "--bend-steps: it is for the paths bezier and chain"),
    "text alone": (["connect", "RUN", "--text", "x"], "--text: it is for --similarity"),
    "no text": (["connect", "RUN", "--similarity", "--text", "x"], "x: cannot be read as UTF-8 text"),
    "nothing": (["connect", "RUN", "--paths", ""], "nothing to compute"),
    "few rows": (["connect", "RUN", "--similarity", "--rows", 3], "task 'one' has 3 rows; CKA needs at least 4"),
    "evaluate path": (["evaluate", "RUN", "--path", "delta"], "--path: it is for --at"),
    "evaluate between": (["evaluate", "RUN", "--between", "adjacent"], "--between: it is for --at"),
    "t": (["evaluate", "RUN", "--at", 1.5], "t = 1.5: a path goes from 0"),
    "bend": (["evaluate", "RUN", "--at", 0.5, "--path", "bezier"], "no trained bend between 01-one/slow and"),
    "evaluate data": (["evaluate", "RUN", "--data", "x"], "x: no such file or folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_written(
    case: str, tiny_run: Path, ilora: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    before = sorted(tmp_path.rglob("*"))
    code, _, err = ilora(*(str(item).replace("RUN", str(tiny_run)) for item in arguments))
    assert code == 2, err
    assert err.startswith("ilora: ")
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("report")
def test_select_never_sees_test_rows_and_writes_an_adapter(
    tiny_run: Path, ilora: Command, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[str]]] = []
    original = Landscape.evaluate

    def spying(self: Landscape, points: Any, **named: Any) -> Any:
        seen.append((len(points), {data.split for data in named["sets"]}))
        return original(self, points, **named)

    monkeypatch.setattr(Landscape, "evaluate", spying)
    code, out, err = ilora("connect", tiny_run, "--select", "--points", 5)
    assert code == 0, err
    assert seen == [(5, {"memory", "eval"}), (3, {"test"})]
    found = load(tiny_run / "connectivity", "selection-*.json")
    assert found["chosen_on"]["one"]["split"] == "memory"
    assert found["chosen_on"]["two"] == {"split": "eval", "n": 6}
    best = max(found["choice"], key=lambda point: (point["score"], -point["loss"]))
    assert found["t"] == best["t"]
    folder = tiny_run / "connectivity" / found["adapter"]
    PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_model), folder)
    difference = found["test"]["selected"]["score"] - found["test"]["t=1"]["score"]
    assert found["gain"]["over_1"]["score"] == pytest.approx(difference)
    assert "chosen:   t = " in out
    report = (tiny_run / "report.html").read_text()
    assert f"Chosen on replay memory and the evaluation split: t = {found['t']:.2f}" in report
    # Again: what is there is shown, and an adapter that a kill kept from being written is written.
    weights = (folder / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(folder)
    code, again, err = ilora("connect", tiny_run, "--select", "--points", 5)
    assert (code, err) == (0, "")
    assert again[again.index("chosen:") :] == out[out.index("chosen:") :]
    assert len(seen) == 2
    assert (folder / "adapter_model.safetensors").read_bytes() == weights
    code, _, err = ilora("connect", tiny_run, "--select", "--points", 6)
    assert code == 2
    assert "made with other settings" in err


def test_a_killed_choice_leaves_nothing(tiny_run: Path, ilora: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = Landscape.evaluate

    def killed(self: Landscape, points: Any, **named: Any) -> Any:
        calls.append(len(points))
        if len(points) == 3:  # choosing is done, testing begins
            raise KeyboardInterrupt
        return original(self, points, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Landscape, "evaluate", killed)
        assert ilora("connect", tiny_run, "--select", "--points", 2)[0] == 130
    assert calls == [2, 3]
    assert not (tiny_run / "connectivity").exists()
    assert ilora("connect", tiny_run, "--select", "--points", 2)[0] == 0


def test_select_needs_a_memory(tiny_run: Path, ilora: Command) -> None:
    shutil.rmtree(tiny_run / "checkpoints")
    code, _, err = ilora("connect", tiny_run, "--select")
    assert code == 2
    assert "the replay memory holds no row of task 'one'" in err


def test_a_killed_evaluation_leaves_nothing_in_the_way(
    tiny_run: Path, ilora: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = evaluation.write_atomic

    def killed(path: Path, text: str) -> None:
        if path.name == "two.jsonl":
            raise KeyboardInterrupt
        original(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write_atomic", killed)
        assert ilora("evaluate", tiny_run)[0] == 130
    code, _, err = ilora("evaluate", tiny_run)
    assert code == 0, err
    assert [path.name for path in (tiny_run / "evaluations").iterdir()] == ["02-two-slow-test"]


def test_evaluate_repeats_the_run_and_goes_between(
    tiny_run: Path, ilora: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = ilora("evaluate", tiny_run)
    assert code == 0, err
    folder = tiny_run / "evaluations" / "02-two-slow-test"
    for task in ("one", "two"):
        assert read_records(folder / f"{task}.jsonl") == read_records(
            tiny_run / "predictions" / "after-02-two" / f"{task}.jsonl"
        )
    assert "02-two/slow, test split" in out
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "open_landscape", lambda *_, **__: pytest.fail("computed again"))
        shown = ilora("evaluate", tiny_run)[1]
    assert shown[shown.index("02-two/slow, ") :] == out[out.index("02-two/slow, ") :]
    code, _, err = ilora("evaluate", tiny_run, "--rows", 3)
    assert code == 2
    assert "exists already, made from something else; --out names another folder" in err
    for t, end in ((0, "after-01-one"), (1, "after-02-two")):
        assert ilora("evaluate", tiny_run, "--at", t, "--out", tiny_run / f"t{t}")[0] == 0
        theirs = tiny_run / "predictions" / end / "one.jsonl"
        assert read_records(tiny_run / f"t{t}" / "one.jsonl") == read_records(theirs)
    code, out, err = ilora("evaluate", tiny_run, "--at", 0.5, "--data", data / "three", "--between", "fast-slow",
                           "--path", "delta", "--rows", 4, "--split", "eval")  # fmt: skip
    assert code == 0, err
    (made,) = (tiny_run / "evaluations").glob("*t0.5*")
    assert json.loads((made / "scores.json").read_text())["tasks"]["three"]["n"] == 4


HEAD = '"schema": 2, "complete": true, "made_from": {}, "ends": []'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"name": "a package"}', "not a result of schema 2"),
        ('{"schema": 1, "kind": "path"}', "not a result of schema 2"),
        ('{"schema": 2, "kind": "path"}', "a damaged result (no complete, made_from, ends in it)"),
        (f'{{{HEAD}, "kind": "plane", "x": [], "y": []}}', "a damaged result (no space, grid, corners, trail in it)"),
    ],
)
def test_a_foreign_or_damaged_file_is_named_before_anything_is_computed(
    content: str, message: str, tiny_run: Path, ilora: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_run / "connectivity"
    folder.mkdir()
    (folder / "path-x.json").write_text(content)
    monkeypatch.setattr(connect, "open_landscape", lambda *_, **__: pytest.fail("computed"))
    code, _, err = ilora("connect", tiny_run, "--points", 2, "--paths", "delta", "--rows", 2)
    assert code == 2
    assert f"path-x.json: {message}" in err


def test_a_result_whose_inside_is_damaged_is_named(tiny_run: Path, ilora: Command) -> None:
    command = ("connect", tiny_run, "--points", 2, "--paths", "delta", "--rows", 2)
    assert ilora(*command)[0] == 0
    file = next((tiny_run / "connectivity").glob("path-*.json"))
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"points": [{}]}))
    for action in (lambda: ilora(*command), lambda: (2, "", str(_error(lambda: write_report(tiny_run))))):
        code, _, err = action()
        assert code == 2
        assert f"{file.name}: a damaged result (KeyError" in err


def _error(action: Callable[[], Any]) -> InputError:
    with pytest.raises(InputError) as found:
        action()
    return found.value


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_results_that_are_none_are_named(content: str, tiny_run: Path, ilora: Command) -> None:
    (tiny_run / "results.json").write_text(content)
    for command in (("connect", tiny_run), ("evaluate", tiny_run), ("connect", tiny_run, "--select")):
        code, _, err = ilora(*command)
        assert code == 2
        assert "results.json: not" in err


def test_labels_cannot_leave_the_folder_or_the_page(tmp_path: Path) -> None:
    assert file_name("01-one/slow") == "01-one-slow"
    for label, prefix in (("../../etc/passwd", "etc-passwd"), ("</script>", "script"), ("..", "adapter")):
        assert re.fullmatch(rf"{prefix}-[0-9a-f]{{6}}", file_name(label))
    from ilora.present.page import inert_json

    assert "<" not in inert_json({"title": "</script><script>alert(1)</script>"})


def test_interior_is_measured_against_both_ends() -> None:
    from ilora.connectivity.landscape import RowScores

    scores = [{"x": RowScores([1.0] * 4, values)} for values in ([1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0])]
    found = path_job.interior([0.0, 0.5, 1.0], scores, ["x"])
    assert found is not None
    assert found["t"] == 0.5
    assert found["over_0"]["score"] == 0.5
    assert found["over_1"] == {"score": 0.25, "score_se": 0.25}
    assert path_job.interior([0.0, 1.0], scores[:2], ["x"]) is None


def test_the_memory_of_a_run_that_left_rows_out_is_read_as_it_was_numbered(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Row 1 of the task has an answer that is too long: the rows behind it are numbered one less."""
    folder = write_task(tmp_path, "four")
    rows = json.loads((folder / "train.json").read_text())
    rows[1]["answer"] = "cat " * 300
    (folder / "train.json").write_text(json.dumps(rows))
    tasks = [{"name": "four", "path": str(folder)}, {"name": "five", "path": str(write_task(tmp_path, "five"))}]
    data = {"tasks": tasks, "max_length": 64, "template": "none", "too_long": "drop"}
    result = run(
        make_config("training.epochs=1", data=data, method={"name": "er", "memory_size": 24}),
        tmp_path / "r",
        quiet=True,
    )
    source = sources.from_run(result.path, pairs="last")
    (four,) = (task for task in source.pairs[0].tasks if task.name == "four")
    (kept,) = choose.remembered(result.path, choose.fitting(source, [four]))
    checkpoint, _ = load_latest(result.path / "checkpoints")
    numbers = sorted(int(key.rpartition("/")[2]) for name, key in checkpoint.values["memory"]["rows"] if name == "four")
    used = [row for number, row in enumerate(rows) if number != 1]
    assert [row.prompt for row in kept.rows[choose.MEMORY]] == [used[number]["prompt"] for number in numbers]


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_a_task_folder_is_known_by_any_of_its_forms(ending: str, tmp_path: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    for split in ("train", "eval", "test"):
        text = '[{"prompt": "a", "answer": "b"}]' if ending == "json" else "prompt,answer\na,b\n"
        (folder / f"{split}.{ending}").write_text(text)
    (name,) = dict(readers(sources.data_of(folder, "smollm2-135m").data))
    assert name == "task"
