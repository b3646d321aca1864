"""`ilora compare` on run folders with known effects: what it finds, what it says, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ilora import InputError, run
from ilora.commands.compare import compare
from ilora.comparison.comparison import compare_runs
from ilora.comparison.gather import gather
from ilora.comparison.page import headline
from ilora.comparison.tables import notes
from tests.comparison.fake_runs import Method, write_run, write_sweep
from tests.helpers import MakeConfig

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.xdist_group("compare")]  # one worker makes `found`

FORMS = {"comparison.json", "comparison.csv", "comparison.md", "comparison.tex", "index.html"}
METHODS = {
    "sequential": Method(level=0.7, loss=0.25),
    "same": Method(level=0.7, loss=0.25),
    "keeps": Method(level=0.8, loss=0.0, cost={"forward_rows": 1800}),
    "two": Method(level=0.7, loss=0.05, variants={"slow": 0.0, "fast": 0.1}),
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("many") / "sweep", METHODS, items=80)


@pytest.fixture(scope="module")
def found(sweep: Path) -> dict[str, Any]:
    return compare([sweep])[0]


def row(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in found["rows"] if row["name"] == name)


def test_rows_are_labels_and_their_variants_the_baseline_first(found: dict[str, Any]) -> None:
    assert found["baseline"] == "sequential"
    assert [row["name"] for row in found["rows"]] == ["sequential", "keeps", "same", "two (slow)", "two (fast)"]
    assert all(len(row["runs"]) == 6 for row in found["rows"])
    assert (found["seeds"], len(found["orders"])) == ([0, 1, 2], 2)


def test_means_are_those_of_the_runs_own_results(sweep: Path, found: dict[str, Any]) -> None:
    files = sorted((sweep / "runs" / "keeps").glob("*/results.json"))
    own = [json.loads(file.read_text(encoding="utf-8"))["variants"]["fast"] for file in files]
    ops = [np.mean(variant["R"][-1]) for variant in own]
    here = row(found, "keeps")["measures"]["OP"]
    assert (here["n"], here["mean"]) == (6, pytest.approx(np.mean(ops)))
    assert here["low"] < here["mean"] < here["high"]


def test_a_known_effect_is_found_and_a_missing_one_is_not_claimed(found: dict[str, Any]) -> None:
    keeps, same = row(found, "keeps"), row(found, "same")
    assert keeps["difference"]["OP"]["verdict"] == "better"
    assert keeps["difference"]["OP"]["holds_after_holm"]
    assert keeps["difference"]["forgetting"]["verdict"] == "better"  # less of it
    assert keeps["difference"]["forgetting"]["mean"] < 0
    assert same["difference"]["OP"]["verdict"] == "not distinguishable"
    assert set(same["letters"]) & set(row(found, "sequential")["letters"])
    assert not set(keeps["letters"]) & set(row(found, "sequential")["letters"])
    assert keeps["budget"] == ["2x rows forward"]
    assert same["budget"] == []


def test_another_baseline_and_one_that_is_not_there(sweep: Path, tmp_path: Path) -> None:
    other, _ = compare([sweep], baseline="two", out=tmp_path)
    assert other["baseline"] == "two (slow)"
    message = (
        r"--baseline tow \(slow\): no such row \(did you mean 'two \(slow\)'\?\); there are keeps, same, sequential"
    )
    with pytest.raises(InputError, match=message):
        compare([sweep], baseline="tow (slow)", out=tmp_path)


@pytest.mark.usefixtures("drawn")
def test_every_form_has_every_row_and_says_what_is_not_distinguishable(sweep: Path) -> None:
    _, folder = compare([sweep])
    assert {path.name for path in folder.iterdir()} == FORMS
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    for text in texts.values():
        assert all(name in text for name in ("sequential", "keeps", "two (slow)"))
    for name in ("comparison.md", "index.html"):
        assert "not distinguishable" in texts[name]
    lines = list(csv.DictReader(io.StringIO(texts["comparison.csv"])))
    assert len({len(line) for line in lines}) == 1
    assert texts["comparison.tex"].count(r"\begin{tabular}") == texts["comparison.tex"].count(r"\end{tabular}") > 0


@pytest.mark.usefixtures("drawn")
def test_untrusted_names_are_escaped_everywhere(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>_%&$#{}|"
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", name, Method(), seed=seed)
    _, folder = compare([tmp_path], out=tmp_path / "out")
    assert "<img" not in (folder / "index.html").read_text(encoding="utf-8")
    assert r"\_\%\&\$\#\{\}" in (folder / "comparison.tex").read_text(encoding="utf-8")
    rows = [line for line in (folder / "comparison.md").read_text(encoding="utf-8").splitlines() if "onerror" in line]
    assert rows
    assert all("<img" not in line.replace(r"\<", "") for line in rows)


def test_one_run_has_no_interval_over_runs(tmp_path: Path) -> None:
    for name, chances in {"a": Method(level=0.9), "b": Method(level=0.4)}.items():
        write_run(tmp_path / name, name, chances, items=200)
    found, _ = compare([tmp_path])
    assert row(found, "a")["measures"]["OP"]["low"] is None
    difference = row(found, "b")["difference"]["OP"]
    assert (difference["pairs"], difference["verdict"], difference["p"]) == (1, "too few pairs", None)
    assert difference["high"] < 0  # over test rows alone


def test_settings_that_differ_within_a_method_are_in_its_label(tmp_path: Path) -> None:
    for size in (10, 20):
        write_run(tmp_path / f"{size}", "er", Method(settings={"memory_size": size}))
    assert {run.label for run in gather([tmp_path]).runs} == {"er memory_size=10", "er memory_size=20"}


def test_settings_that_change_along_the_stream_are_in_its_label(tmp_path: Path) -> None:
    write_run(tmp_path / "changed", "er", Method())
    config = (tmp_path / "changed" / "config.yaml").read_text()
    assert "- name: three\n" in config
    changed = config.replace("- name: three\n", "- name: three\n    settings: {training.epochs: 5}\n")
    (tmp_path / "changed" / "config.yaml").write_text(changed)
    write_run(tmp_path / "plain", "er", Method())
    assert {run.label for run in gather([tmp_path]).runs} == {
        "er epochs from three=5",
        "er epochs from three=unset",
    }


def test_joint_training_stands_beside_streams(tmp_path: Path) -> None:
    write_run(tmp_path / "s", "sequential", Method())
    write_run(tmp_path / "j", "sequential", Method(level=0.9), joint=True)
    found, _ = compare([tmp_path])
    joint = row(found, "joint")
    assert joint["measures"]["OP"] is not None
    assert joint["measures"]["BWT"] is None
    assert joint["difference"].keys() == {"OP", "plasticity"} or "OP" in joint["difference"]


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", "er", Method())
    for other, message in {
        write_run(tmp_path / "rows", "er", Method(), items=30): "different test rows of task 'one': 40 rows / 30 rows",
        write_run(
            tmp_path / "tasks", "er", Method(), order=("one", "two")
        ): "different tasks: one, three, two / one, two",
        write_run(tmp_path / "model", "er", Method(), model="big"): "different models: tiny / big",
    }.items():
        with pytest.raises(InputError, match=f"{first} and {other} cannot be compared: {message}"):
            compare([first, other], out=tmp_path / "out")
    twin = write_run(tmp_path / "twin", "er", Method())
    with pytest.raises(InputError, match="with the same order and seed 0; leave one of them out"):
        compare([first, twin], out=tmp_path / "out")


def test_places_without_runs_and_unfinished_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        compare([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no run folder in it"):
        compare([tmp_path / "empty"])
    write_run(tmp_path / "a", "er", Method())
    broken = write_run(tmp_path / "b", "er", Method(), seed=1, complete=False)
    found, _ = compare([tmp_path])
    assert found["left_out"] == [{"folder": str(broken), "reason": "not finished: 3 of 3 tasks"}]


def test_predictions_that_do_not_give_the_score_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "er", Method())
    file = sorted(folder.glob("predictions/after-03-*/*.jsonl"))[0]
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(line | {"score": 1.0}) + "\n" for line in lines), encoding="utf-8")
    write_run(tmp_path / "b", "sequential", Method())
    with pytest.raises(InputError, match="one of them is not this run's"):
        compare([tmp_path])


def test_real_runs(make_config: MakeConfig, tmp_path: Path) -> None:
    for seed in (0, 1):
        config = make_config(f"seed={seed}", "contrast=[sequential]", "training.epochs=1", "data.tasks=[one, two]")
        run(config, tmp_path / "runs" / str(seed), quiet=True)
    found, folder = compare([tmp_path / "runs"])
    assert [line["name"] for line in found["rows"]] == ["sequential", "ilora (slow)", "ilora (fast)"]
    assert folder == tmp_path / "runs" / "comparison"
    assert compare([tmp_path / "runs"])[0] == found  # its own folder is no run


@pytest.mark.usefixtures("drawn")
def test_a_large_comparison_takes_seconds(tmp_path: Path) -> None:
    tasks = ["a", "b", "c", "d", "e", "f"]
    methods = {f"m{n:02d}": Method(level=0.5 + 0.02 * n) for n in range(7)}
    folder = write_sweep(tmp_path / "s", methods, orders=(tasks, tasks[::-1]), items=60)
    began = time.perf_counter()
    compare([folder])
    assert time.perf_counter() - began < 30


def test_runs_that_learnt_from_other_rows_are_refused(tmp_path: Path) -> None:
    first, other = (write_run(tmp_path / name, "er", Method(), seed=seed) for seed, name in enumerate("ab"))
    for folder, rows in ((first, 24), (other, 15)):
        file = folder / "results.json"
        results = json.loads(file.read_text(encoding="utf-8"))
        results["tasks"] = [task | {"train": rows} for task in results["tasks"]]
        file.write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(InputError, match="different training rows of task 'one': 24 rows / 15 rows"):
        compare([tmp_path], out=tmp_path / "out")


def test_runs_of_one_limit_that_learnt_from_other_rows_are_refused_whatever_stands_before_them(tmp_path: Path) -> None:
    for seed, (name, limit, rows) in enumerate((("a", None, 24), ("b", 15, 15), ("c", 15, 14))):
        folder = write_run(tmp_path / name, "er", Method(), seed=seed)
        file, config = folder / "results.json", folder / "config.yaml"
        results = json.loads(file.read_text(encoding="utf-8"))
        results["tasks"] = [task | {"train": rows} for task in results["tasks"]]
        file.write_text(json.dumps(results), encoding="utf-8")
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        settings["data"]["limit"] = {"train": limit}
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(InputError, match="different training rows of task 'one': 15 rows / 14 rows"):
        compare([tmp_path], out=tmp_path / "out")


def test_intransigence_is_what_an_adapter_of_its_own_learns_more(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"i{seed}", "individual", Method(level=0.9, loss=0.0), seed=seed, items=200)
        write_run(tmp_path / f"n{seed}", "er", Method(level=0.3, loss=0.0), seed=seed, items=200)
    found, folder = compare([tmp_path], out=tmp_path / "out")
    own = [row(found, name)["measures"]["plasticity"]["mean"] for name in ("individual", "er")]
    assert row(found, "individual")["intransigence"]["mean"] == 0
    assert row(found, "er")["intransigence"]["mean"] == pytest.approx(own[0] - own[1])
    assert "intransigence" in (folder / "index.html").read_text(encoding="utf-8")


def test_a_row_that_learnt_too_little_has_no_verdict_and_no_group(tmp_path: Path) -> None:
    methods = {
        "sequential": Method(level=0.7, loss=0.2),
        "individual": Method(level=0.7, loss=0.0),
        "gem": Method(level=0.4, loss=0.0),
        "er": Method(level=0.7, loss=0.0, variants={"slow": 0.0, "fast": -0.3}),
        "joint": Method(level=0.9),
    }
    for name, chances in methods.items():
        for seed in range(3):
            joint = name == "joint"
            write_run(
                tmp_path / f"{name}{seed}", "sequential" if joint else name, chances, seed=seed, items=200, joint=joint
            )
    gathered = gather([tmp_path])
    found = compare_runs(gathered)
    assert {row["name"] for row in found["rows"] if row["not_trained"]} == {"gem", "er (fast)"}
    for name in ("gem", "er (fast)"):
        here = row(found, name)
        learnt = [row(found, one)["measures"]["plasticity"]["mean"] for one in (name, "individual")]
        assert here["learnt_share"] == pytest.approx(learnt[0] / learnt[1])
        assert (here["letters"], here["difference"]["OP"]["verdict"]) == ("", "not trained")
        assert here["difference"]["OP"]["p"] is here["difference"]["OP"]["p_holm"] is None
    assert row(found, "joint")["learnt_share"] is None
    assert {row(found, name)["difference"]["OP"]["verdict"] for name in ("joint", "er (slow)")} == {"better"}
    assert not any({"gem", "er (fast)"} & set(pair["rows"]) for pair in found["pairs"])
    (said,) = (line for line in notes(found) if line.startswith("Not trained: "))
    assert "gem (" in said
    assert "er (fast) (" in said
    assert headline(found)[0].endswith("2 not trained.")

    without = compare_runs(replace(gathered, runs=[run for run in gathered.runs if run.own_label != "individual"]))
    assert not any(row["not_trained"] for row in without["rows"])  # nobody knows
    assert row(without, "gem")["difference"]["OP"]["verdict"] != "not trained"
    against = compare_runs(gathered, "gem")
    assert {row["difference"]["OP"]["verdict"] for row in against["rows"][1:]} == {
        "baseline not trained",
        "not trained",
    }
    assert headline(against)[0] == "No verdict against gem."
