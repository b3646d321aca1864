"""Evidence files: the same comparison without the data, collected over time, and refused where damaged."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ilora import InputError
from ilora.cli import app
from ilora.commands.compare import compare
from ilora.comparison.comparison import compare_runs
from ilora.comparison.gather import gather
from ilora.comparison.items import measures
from ilora.config import load_config
from tests.comparison.fake_runs import Method, write_run, write_sweep

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.xdist_group("evidence")]  # one worker makes `whole`

DOCS = Path(__file__).parents[2] / "docs"

Json = dict[str, Any]
METHODS = {
    "sequential": Method(level=0.7, loss=0.25),
    "two": Method(level=0.7, loss=0.05, variants={"slow": 0.0, "fast": 0.1}),
}
SHORT = ("one", "two")


def without_places(comparison: Json) -> str:
    """All of a comparison's text but where its runs are."""
    rows = [row | {"runs": [{**run, "folder": ""} for run in row["runs"]]} for row in comparison["rows"]]
    return json.dumps(comparison | {"rows": rows, "left_out": []})


def partly_right(folder: Path) -> None:
    """Scores of a run that are not 0 or 1, in its results too."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for stage, phase in enumerate(("00-base", *(f"{n:02d}-{name}" for n, name in enumerate(results["phases"], 1)))):
        for place, task in enumerate(results["tasks"]):
            file = folder / "predictions" / f"after-{phase}" / f"{task['label']}.jsonl"
            if file.is_file():
                lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                scores = [(line["score"] + n / len(lines)) / 3 for n, line in enumerate(lines)]
                made = [json.dumps(line | {"score": score}) for line, score in zip(lines, scores, strict=True)]
                file.write_text("\n".join(made) + "\n", encoding="utf-8")
                variant = results["variants"]["fast"]
                (variant["R"][stage - 1] if stage else variant["zero_shot"])[place] = sum(scores) / len(scores)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with two variants, two orders and two seeds, and beside it a joint run and one with partial scores."""
    folder = tmp_path_factory.mktemp("evidence") / "all"
    write_sweep(folder / "sweep", METHODS, seeds=(0, 1), items=30)
    for seed in (0, 1):
        write_run(folder / f"joint{seed}", "sequential", Method(level=0.9), seed=seed, items=30, joint=True)
        partly_right(write_run(folder / f"part{seed}", "partial", Method(), seed=seed, items=30))
    return folder


@pytest.fixture(scope="module")
def whole(many: Path) -> tuple[Json, Path]:
    """The comparison of all folders, and the evidence of it."""
    file = many.parent / "all.json"
    return compare([many], save=file)[0], file


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small runs."""
    folder = tmp_path_factory.mktemp("small") / "runs"
    for seed in (0, 1):
        write_run(folder / f"{seed}", "er", Method(), seed=seed, order=SHORT, items=6)
    compare([folder], save=folder / "small.json")
    return folder


@pytest.fixture
def small(pair: Path, tmp_path: Path) -> Path:
    """Their evidence, to be changed."""
    return Path(shutil.copy(pair / "small.json", tmp_path))


def test_a_file_gives_the_same_comparison_as_the_folders(whole: tuple[Json, Path]) -> None:
    found, file = whole
    again, folder = compare([file])
    assert without_places(again) == without_places(found)
    assert folder == file.parent / "all-comparison"
    assert {row["name"] for row in again["rows"]} >= {"two (slow)", "two (fast)", "joint", "partial"}
    assert again["rows"][0]["runs"][0]["folder"] == f"{file}: all/sweep/runs/sequential/1-0"


def test_a_saved_file_saved_again_is_the_same(whole: tuple[Json, Path], tmp_path: Path) -> None:
    compare([whole[1]], save=tmp_path / "again.json", out=tmp_path / "out")
    assert (tmp_path / "again.json").read_bytes() == whole[1].read_bytes()


def test_every_run_has_a_line_and_scores_of_0_and_1_are_digits(whole: tuple[Json, Path]) -> None:
    lines = whole[1].read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line.removesuffix(",")) for line in lines if line.startswith('{"name"')]
    assert len(runs) == 12
    scores = {run["label"]: run["scores"] for run in runs}
    assert re.fullmatch("[01]{30}", scores["two"]["slow"][3][0])
    assert re.fullmatch("[01]{30}", scores["joint"]["fast"][1][2])
    assert scores["partial"]["fast"][1][2] is None  # not evaluated so early
    assert len(json.dumps(scores["partial"]["fast"][1][0])) < 30 * len("0.123456, ") + 2
    tasks = json.loads("\n".join(lines))["tasks"]
    assert tasks["one"] == {"digest": tasks["one"]["digest"], "ids": "one/test/", "rows": 30}


def test_files_and_folders_mix_and_merge(many: Path, whole: tuple[Json, Path], tmp_path: Path) -> None:
    old, parts = tmp_path / "old.json", [many / "sweep" / "runs" / "sequential", many / "sweep" / "runs" / "two"]
    rest = [many / name for name in ("joint0", "joint1", "part0", "part1")]
    compare(rest[:2], save=old, out=tmp_path / "out")
    compare([old, *rest[2:]], save=old, out=tmp_path / "out")
    assert len(gather([old]).runs) == 4
    compare(parts, save=tmp_path / "sweep.json", out=tmp_path / "out")
    merged, _ = compare([tmp_path / "sweep.json", old, old], save=old, out=tmp_path / "out")
    assert len(gather([old]).runs) == 12
    ordered, _ = compare([*parts, *rest], out=tmp_path / "out")
    assert without_places(merged) == without_places(ordered)
    mixed, _ = compare([tmp_path / "sweep.json", *rest])
    assert without_places(mixed) == without_places(ordered)


def test_labels_get_their_settings_anew_with_every_merge(tmp_path: Path) -> None:
    for size in (10, 20, 30):
        write_run(tmp_path / f"{size}", "er", Method(settings={"memory_size": size}), order=SHORT)
    file, out = tmp_path / "e.json", tmp_path / "out"
    compare([tmp_path / "10", tmp_path / "20"], save=file, out=out)
    compare([file, tmp_path / "30"], save=file, out=out)
    assert [run.label for run in gather([file]).runs] == [f"er memory_size={size}" for size in (10, 20, 30)]


def test_runs_of_folders_with_one_name_stay_apart(tmp_path: Path) -> None:
    for seed, above in enumerate(("x", "y", "z")):
        write_run(tmp_path / above / "run", "er", Method(), seed=seed, order=SHORT)
    file = tmp_path / "e.json"
    compare([tmp_path / above / "run" for above in ("x", "y", "z")], save=file)
    assert [run.name for run in gather([file]).runs] == ["run", "run-2", "run-3"]


def test_rows_in_another_order_and_ids_of_another_form(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(20)
    for seed in (0, 1):
        folder = write_run(tmp_path / f"{seed}", "er", Method(), seed=seed, order=SHORT, items=20)
        for file in folder.rglob("*.jsonl"):
            lines = file.read_text(encoding="utf-8").replace("/test/", "/test-").splitlines()
            file.write_text("\n".join(lines[n] for n in order) + "\n" if seed else "\n".join(lines), encoding="utf-8")
    found, _ = compare([tmp_path / "0", tmp_path / "1"], out=tmp_path / "out")
    for folders in (["0"], ["1"]):
        compare([tmp_path / name for name in folders], save=tmp_path / f"{folders[0]}.json", out=tmp_path / "out")
    tasks = json.loads((tmp_path / "1.json").read_text(encoding="utf-8"))["tasks"]
    assert tasks["one"]["ids"] == [f"one/test-{n}" for n in order]
    for places in (["0.json", "1.json"], ["0", "1.json"], ["0.json", "1"]):
        again, _ = compare([tmp_path / name for name in places], out=tmp_path / "out")
        assert without_places(again) == without_places(found)


def test_nothing_of_the_data_and_no_place_of_this_machine_is_in_it(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "SECRET-ABOVE" / "run",
        "er",
        Method(settings={"cache": "/SECRET/own/cache", "list": ["/SECRET/list/x"]}),
        order=SHORT,
        model="/SECRET/models/tiny",
        base_model="/SECRET/base",
        name="SECRET-NAME",
    )
    for file in folder.rglob("*.jsonl"):
        text = file.read_text(encoding="utf-8")
        text = text.replace("Which one", "SECRET prompt").replace('"A"', '"SECRET-A"').replace('"B"', '"SECRET-B"')
        file.write_text(text, encoding="utf-8")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["tasks"][0]["source"] = "/SECRET/source"
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["model"]["name"] = "/SECRET/models/tiny"
    config["data"] |= {"path": "/SECRET/data", "benchmark": None}
    config["data"]["tasks"][0] |= {"path": "/SECRET/task", "train": "/SECRET/train", "choices": ["SECRET-A"]}
    config["evaluation"]["perplexity_file"] = "/SECRET/text"
    config["contrast"] = [{"name": "ilora", "cache": "/SECRET/contrast"}]
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    found, _ = compare([folder], save=tmp_path / "e.json", out=tmp_path / "out")
    text = (tmp_path / "e.json").read_text(encoding="utf-8")
    assert "SECRET" not in text
    assert str(tmp_path) not in text
    assert re.findall(r'"/[^"]*', text) == []
    assert '"method.cache":"cache (' in text
    assert re.fullmatch(r"tiny \([0-9a-f]{8}\)", found["model"])
    assert without_places(compare([tmp_path / "e.json"])[0]) == without_places(found)


def test_what_cannot_be_compared_is_refused_between_files_and_folders(small: Path, pair: Path, tmp_path: Path) -> None:
    first = f"{small}: runs/0"
    more = {"order": SHORT, "items": 6}
    for name, other, message in [
        ("rows", {"items": 5}, "different test rows of task 'one': 6 rows / 5 rows"),
        ("tasks", {"order": ("one",)}, "different tasks: one, two / one"),
        ("model", {"model": "big"}, "different models: tiny / big"),
    ]:
        folder = write_run(tmp_path / name, "der", Method(), **(more | other))  # type: ignore[arg-type]
        file = tmp_path / f"{name}.json"
        compare([folder], save=file, out=tmp_path / "out")
        for place, named in ((folder, str(folder)), (file, f"{file}: {name}")):
            with pytest.raises(InputError, match=re.escape(f"{first} and {named} cannot be compared: ")):
                compare([small, place], out=tmp_path / "out")
            with pytest.raises(InputError, match=message):
                compare([small, place], out=tmp_path / "out")
    with pytest.raises(InputError, match=re.escape(f"{first} and {pair / '0'}: both are 'er'")):
        compare([small, pair], out=tmp_path / "out")


def test_save_replaces_nothing_but_evidence(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.json"
    other.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.json: exists and is not evidence; --save names a new file"):
        compare([small], save=other)
    with pytest.raises(InputError, match="a folder; --save names a file"):
        compare([small], save=tmp_path)
    other.write_text("", encoding="utf-8")
    compare([small], save=other)
    compare([small], save=other)
    assert other.read_bytes() == small.read_bytes()


def test_the_folders_must_give_the_scores_that_are_saved(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "er", Method(), items=9)
    next(folder.glob("predictions/after-02-*/one.jsonl")).unlink()
    with pytest.raises(InputError, match="file not found"):
        compare([folder], save=tmp_path / "e.json")
    assert not (tmp_path / "e.json").exists()


Change = Callable[[Json], object]


def run_of(content: Json) -> Any:
    return content["runs"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(kind="comparison"), "kind: must be 'ilora evidence'; `ilora compare RUN... --save FILE`"),
        (lambda c: c.pop("kind"), "kind: must be 'ilora evidence'"),
        (lambda c: c.update(schema=2), "schema: must be 1, the only version that this ilora reads (a newer ilora"),
        (lambda c: c.update(schema="1"), "schema: must be 1, the only version that this ilora reads (the file is dam"),
        (lambda c: c.update(tasks=[]), "tasks: must be an object, found []"),
        (lambda c: c.update(runs=[]), "runs: List must have at least 1 item"),
        (lambda c: c["tasks"].update(one=3), "tasks.one: must be an object, found 3"),
        (lambda c: c["tasks"]["one"].update(digest="12"), "tasks.one.digest: String must match pattern"),
        (lambda c: c["tasks"]["one"].update(rows=10**12), "tasks.one.rows: must be the number of test rows; a file of"),
        (lambda c: c["tasks"]["one"].pop("rows"), "tasks.one.ids: needs 'rows' beside it"),
        (lambda c: c["tasks"]["one"].update(ids=["a", "a"]), "tasks.one.ids: must be a text, or a list of different"),
        (lambda c: c["tasks"].pop("two"), "runs.0.results.tasks: must be among the file's tasks, one"),
        (lambda c: c["runs"].append(7), "runs.2: must be an object, found 7"),
        (lambda c: run_of(c).update(name="../b"), "runs.1.name: must be a relative path without '..', found '../b'"),
        (lambda c: run_of(c).update(name="/b"), "runs.1.name: must be a relative path without '..', found '/b'"),
        (lambda c: run_of(c).update(name="runs/0"), "runs: must have different names"),
        (lambda c: run_of(c).update(label=None), "runs.1.label: must be a text, found None"),
        (lambda c: run_of(c).update(label=" "), "runs.1.label: must not be blank, found ' '"),
        (lambda c: run_of(c).update(settings=[]), "runs.1.settings: must be an object, found []"),
        (lambda c: run_of(c).pop("results"), "runs.1.results: is missing"),
        (lambda c: run_of(c)["results"].update(seed=None), "runs.1.results.seed: must be a valid integer, found None"),
        (lambda c: run_of(c)["results"].update(phases=["one"]), "runs.1.results.phases: must name 2, one for each row"),
        (
            lambda c: run_of(c)["results"]["variants"]["fast"]["R"][0].__setitem__(0, 1.5),
            "runs.1.results.variants.fast.R.0.0: must be less than or equal to 1, found 1.5",
        ),
        (
            lambda c: run_of(c)["results"]["variants"]["fast"]["R"][1].__setitem__(0, None),
            "runs.1.results.variants.fast.R.1: must have a score for each task after the last phase",
        ),
        (
            lambda c: run_of(c)["results"]["variants"].update({"../x": run_of(c)["results"]["variants"]["fast"]}),
            "runs.1.results.variants.../x.[key]: must be a file name",
        ),
        (
            lambda c: run_of(c)["results"]["tasks"][0].update(label=".."),
            "runs.1.results.tasks.0: must have a label that can be a file name",
        ),
        (lambda c: run_of(c)["results"]["tasks"][0].update(label="two"), "results.tasks: must have different labels"),
        (lambda c: run_of(c).update(scores={}), "runs.1.scores: must have the variants fast"),
        (lambda c: run_of(c)["scores"]["fast"].pop(), "runs.1.scores.fast: must have 3 rows of 2 cells"),
        (lambda c: run_of(c)["scores"]["fast"].append("01"), "runs.1.scores.fast.3: must be a list, found '01'"),
        (lambda c: run_of(c)["scores"]["fast"][2].pop(), "runs.1.scores.fast: must have 3 rows of 2 cells"),
        *(
            (
                lambda c, cell=cell: run_of(c)["scores"]["fast"][2].__setitem__(1, cell),
                "runs.1.scores.fast.2.1: must have 6 scores: a text of 0 and 1, or a list of numbers from 0 to 1",
            )
            for cell in ("01", [0.5] * 5, None)
        ),
        *(
            (
                lambda c, cell=cell: run_of(c)["scores"]["fast"][2].__setitem__(1, cell),
                "runs.1.scores.fast.2.1: must be a text of 0 and 1, a list of numbers from 0 to 1, or null, found",
            )
            for cell in ("012345", [0.5] * 5 + [1.1], [0.5] * 5 + ["1"], {}, 6)
        ),
        (
            lambda c: run_of(c)["scores"]["fast"][2].__setitem__(1, [0.123456] * 6),
            "runs/1: scores.fast.2.1: its mean score is 0.123456, but the results of",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(small: Path, change: Change, message: str) -> None:
    content = json.loads(small.read_text(encoding="utf-8"))
    change(content)
    small.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=f"^{re.escape(str(small))}.*{re.escape(message)}"):
        compare([small])


@pytest.mark.parametrize("content", [b"", b'{"kind"', b"\xff\xfe", b"[" * 100_000, b'{"kind": 1' + b"0" * 5000 + b"}"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "e.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"e\.json: cannot be read: "):
        compare([file])


def test_a_score_where_the_results_have_none_is_refused(small: Path, tmp_path: Path) -> None:
    content = json.loads(small.read_text(encoding="utf-8"))
    for run in content["runs"]:
        run["results"]["variants"]["fast"]["zero_shot"] = None
    small.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"scores\.fast\.0\.0: must be null, as the results have no score there"):
        compare([small])


def test_a_large_sweep_stays_small(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {"er": Method()}, seeds=range(6), orders=(SHORT, SHORT[::-1]), items=200)
    values = {"data": {"path": "data", "tasks": list(SHORT)}, "evaluation": {"max_new_tokens": 4}}
    for number, file in enumerate(sorted(folder.rglob("config.yaml"))):
        config = load_config(values, [f"seed={number % 6}", "method=ilora"]).dump()
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
    compare([folder], save=tmp_path / "e.json")  # 12 runs of 6 cells of 200 rows; a sweep of 120 has ten times that
    assert (tmp_path / "e.json").stat().st_size < 50_000


def test_the_command(small: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    new = tmp_path / "new.json"
    found = CliRunner().invoke(app, ["compare", str(small), "--save", str(new)])
    assert found.exit_code == 0, found.output
    assert f"evidence: {new}" in found.output
    assert new.read_bytes() == small.read_bytes()


def test_only_some_of_the_runs(many: Path, whole: tuple[Json, Path], tmp_path: Path) -> None:
    _, file = whole
    names = [run.name for run in gather([many]).runs]
    label, end = names[0].split("/")[-2:]
    for place in (many, file):
        assert [run.name for run in gather([place], [f"{label}/{end}"]).runs] == names[:1]
        left = [run.name for run in gather([place], [f"*/{end}", "joint?"]).runs]
        assert left == [name for name in names if name.endswith((f"/{end}", "/joint0", "/joint1"))]
        assert 1 < len(left) < len(names)
    with pytest.raises(InputError, match=r"--only nothing/9: fits none of the \d+ runs; the first is "):
        compare([file], out=tmp_path / "out", only=["nothing/9"])
    with pytest.raises(InputError, match="--only : fits none"):
        compare([file], out=tmp_path / "out", only=[""])
    before = file.read_bytes()
    with pytest.raises(InputError, match="would lose the runs"):
        compare([file], out=tmp_path / "out", only=["joint0"], save=file)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("place", "files", "pairs"),
    [
        (0, ["classic.json"], "*"),
        (1, ["classic.json"], "1-*"),
        (2, ["classic.json"], "2-*"),
        (4, ["classic.json", "ablation.json"], "1-*"),
        (5, ["classic.json", "ablation.json"], "1-1"),
    ],
    ids=["both orders", "order 1", "order 2", "parts", "ablation"],
)
def test_a_table_of_the_docs_is_that_of_the_evidence(place: int, files: list[str], pairs: str) -> None:
    """In docs/results.md: mean OP, mean BWT, and how many runs. (The fourth table is that of the tasks.)"""
    found: dict[str, list[dict[str, float | None]]] = {}
    runs = gather([DOCS / "evidence" / file for file in files], only=[f"*/{pairs}"]).runs
    several = {run.label for run in runs if len(run.variants) > 1}
    for run in runs:
        for variant in run.variants:
            name = f"{run.label} ({variant})" if run.label in several else run.label
            found.setdefault(name, []).append(measures(run, variant))
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    table = text.split("| method | OP | BWT |")[1 + place].partition("\n\n")[0]
    mean = r"([−\d.]+)(?: \[[^]]*\])?"
    told = re.findall(rf"^\| ([\w+. ()-]+) \| {mean} \| (?:{mean})? \|.*\| (\d) \|$", table, flags=re.MULTILINE)
    assert len(told) == table.count("\n") - 1
    for name, op, bwt, count in told:
        shown = [float(value.replace("−", "-")) if value else None for value in (op, bwt)]
        made = [None if None in (row := [run[key] for run in found[name]]) else 100 * np.mean(row)
                for key in ("OP", "BWT")]  # fmt: skip
        assert shown == [None if value is None else pytest.approx(value, abs=0.0501) for value in made], name
        assert int(count) == len(found[name])
    if place < 4:
        assert len(told) == len(found)


def test_the_share_of_the_way_is_that_of_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench/evidence.py --aim`: over the runs that a row, sequential and joint training all have."""
    monkeypatch.syspath_prepend(str(DOCS.parent / "bench"))
    aimed = importlib.import_module("evidence").aimed
    runs = [run for run in gather([DOCS / "evidence" / "classic.json"]).runs if run.label != "ewc" or run.seed == 2]
    op: dict[str, dict[Any, float]] = {}
    for run in runs:
        op.setdefault(run.label, {})[run.order, run.seed] = float(measures(run, run.results["answers_with"])["OP"] or 0)
    shares = {}
    for label in ("er", "ewc"):
        start, end, own = (sum(op[name][pair] for pair in op[label]) for name in ("sequential", "joint", label))
        shares[label] = (own - start) / (end - start)
    lines = {name: rest for name, *rest in aimed(runs, 0.8)}
    assert {label: lines[label][0].replace("−", "-") for label in shares} == {
        label: f"{share:.0%}" for label, share in shares.items()
    }
    assert [lines["er"][2], lines["ewc"][2]] == ["6", "2"]
    assert {"ilora (slow)", "ilora (fast)"} < lines.keys()
    assert not {"sequential", "joint"} & lines.keys()
    again = {name: rest for name, *rest in aimed(runs, shares["er"])}
    assert again["er"][1].startswith("+0.0 ")  # where it is, it is not away from


def test_the_distance_from_no_share_of_the_way_is_that_from_sequential(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an aim of 0, mean and interval of `compare`, but for rounding."""
    monkeypatch.syspath_prepend(str(DOCS.parent / "bench"))
    gathered = gather([DOCS / "evidence" / "classic.json"], only=["er/*", "sequential/*", "joint/*"])
    ((_, _, text, _),) = importlib.import_module("evidence").aimed(gathered.runs, 0.0)
    found = [float(value.replace("−", "-")) for value in re.findall(r"[+−][\d.]+", text)]
    row = next(row for row in compare_runs(gathered, "sequential")["rows"] if row["name"] == "er")
    wanted = [100 * row["difference"]["OP"][key] for key in ("mean", "low", "high")]
    assert found == pytest.approx(wanted, abs=0.0501)
    with pytest.raises(SystemExit, match="sequential and of joint are needed"):
        importlib.import_module("evidence").aimed([run for run in gathered.runs if run.label != "joint"], 0.8)


@pytest.mark.parametrize("file", sorted((DOCS / "evidence").glob("*.json")), ids=lambda file: file.name)
def test_published_evidence_is_read(file: Path) -> None:
    assert gather([file]).runs
