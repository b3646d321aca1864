"""Releases: what is in one, going back to one, what is refused, and the table of months."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ilora import InputError, add, resume, run
from ilora.data.task import Task
from ilora.gates.evidence import Evidence
from ilora.model.identity import BaseModel
from ilora.model.load import load_tokenizer
from ilora.releases import change
from ilora.releases.history import history
from ilora.releases.journal import events, line
from ilora.releases.store import Release, current, list_releases, numbers, read_release
from ilora.settings import ModelConfig
from tests.command import Refused
from tests.helpers import FEW_SCORES, MakeConfig, task_rows, weights
from tests.releases.conftest import no_report

pytestmark = pytest.mark.xdist_group("releases")


def tree(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file below a folder with its content, but for some of its entries."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink() and file.name != ".lock")
    named = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    return {name: content for name, content in named.items() if name.split("/")[0] not in without}


def promote(folder: Path, **more: Any) -> Release:
    return change.promote(folder, report=no_report, **more)


def rollback(folder: Path, **more: Any) -> Release:
    return change.rollback(folder, report=no_report, **more)


# -- what a release holds ----------------------------------------------------------------------------------------------


def test_a_release_holds_what_the_run_had(second: Path) -> None:
    release = read_release(second)
    assert (current(second), release.number, [found.number for found in list_releases(second)]) == (2, 2, [1, 2])
    assert (second / "current").readlink() == Path("releases/2")  # it goes with the run, wherever that is moved
    manifest = release.manifest
    assert (manifest.phase, manifest.tasks, manifest.previous) == ("03-three", ["one", "two", "three"], 1)
    assert (manifest.gate, manifest.note, manifest.answers_with) == ({"outcome": "passed"}, "spring", "slow")
    results = json.loads((second / "results.json").read_text())
    assert release.scores() == results
    assert manifest.base == results["base"]
    assert release.adapter is not None
    assert tree(release.adapter) == tree(second / "adapters/03-three/slow")
    assert release.config.read_bytes() == (second / "config.yaml").read_bytes()
    assert [task["rows"]["train"] for task in release.data()] == [24, 24, 16]
    assert len({task["fingerprint"] for task in release.data()}) == 3
    for place in (".", "contrast/er"):
        newest = max((second / place / "checkpoints").glob("0*"))
        assert tree(release.folder / place / "state") == tree(newest)
    assert (newest / "state.json").stat().st_nlink > 1  # no second copy on the disk
    card = (release.folder / "card.md").read_text()
    assert results["base"]["weights_sha256"] in card
    scores = [results["variants"]["slow"]["R"][2][number] for number in range(3)]
    for task, score in zip(manifest.tasks, scores, strict=True):
        assert re.search(rf"\| {task} \|.*\| {100 * score:.1f} \|", card)
    assert set(manifest.files) == set(tree(release.folder)) - {"manifest.json"}


def test_a_method_without_one_adapter_that_answers(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("data.tasks=[one]", "training.epochs=1", *FEW_SCORES, method={"name": "individual"})
    folder = run(config, tmp_path / "run", quiet=True).path
    promote(folder)
    release = read_release(folder)
    assert release.adapter is None
    assert tree(release.folder / "adapters") == tree(folder / "adapters/01-one")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda folder: (folder / "scores.json").write_text("{}"), "scores.json"),
    "one bit": (lambda folder: flip(folder / "adapter/adapter_model.safetensors"), "adapter_model.safetensors"),
    "missing": (lambda folder: next((folder / "state").glob("method*")).unlink(), "state/method"),
    "extra": (lambda folder: (folder / "adapter/more.txt").write_text(""), "adapter/more.txt"),
    "link": (lambda folder: (folder / "more").symlink_to("/etc/passwd"), "more"),
    "manifest": (lambda folder: flip(folder / "manifest.json", b'"three"', b'"threw"'), "manifest.json"),
    "half a manifest": (lambda folder: (folder / "manifest.json").write_text('{"format": 1'), "manifest.json"),
    "newer": (lambda folder: flip(folder / "manifest.json", b'"format": 1', b'"format": 9'), "newer ilora"),
}


def flip(file: Path, old: bytes = b"", new: bytes = b"") -> None:
    """Replace a text of a file, or flip its last bit. A new file: the old one has another name in the run."""
    content = file.read_bytes()
    changed = content.replace(old, new) if old else content[:-1] + bytes([content[-1] ^ 1])
    assert changed != content
    file.unlink()
    file.write_bytes(changed)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_release_that_is_not_as_it_was_is_refused(damage: str, two_releases: Path) -> None:
    spoil, says = DAMAGE[damage]
    spoil(two_releases / "releases/2")
    with pytest.raises(InputError, match=says):
        read_release(two_releases)
    assert read_release(two_releases, 1).number == 1


def test_the_way_out_of_a_damaged_release_is_named_and_works(two_releases: Path) -> None:
    (two_releases / "releases/2/manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"ilora promote .* anew, and `ilora rollback .* --to N` .*\(1\)"):
        read_release(two_releases)
    shown = history(two_releases)
    assert ["release 2" in line for line in shown["damaged"]] == [True]
    assert line(two_releases) == [1, 2]  # as the history tells it
    assert promote(two_releases).number == 3
    assert line(two_releases) == [1, 2, 3]
    assert Evidence(two_releases).release() == (1, "02-two")
    with pytest.raises(InputError, match=r"releases/2/manifest.json.* move the folder away; releases 1, 3 can be used"):
        read_release(two_releases, 2)
    shutil.rmtree(two_releases / "releases/2")
    assert history(two_releases)["damaged"] == []
    assert rollback(two_releases, to=1).number == 1
    assert numbers(two_releases) == [1, 3]


def test_back_from_a_damaged_release(two_releases: Path) -> None:
    flip(two_releases / "releases/2/scores.json")
    assert rollback(two_releases).number == 1
    assert read_release(two_releases).number == 1


def test_a_damaged_line_of_the_history_may_be_deleted(two_releases: Path) -> None:
    file = two_releases / "releases/history.jsonl"
    first, second = file.read_text().splitlines(keepends=True)
    file.write_text(first[:40] + "\n" + second)
    with pytest.raises(InputError, match=r"history.jsonl:1: .*delete it"):
        rollback(two_releases)
    assert read_release(two_releases).number == 2
    file.write_text(second)
    rollback(two_releases)
    assert [(event.id, event.event) for event in events(two_releases)] == [(2, "promote"), (3, "rollback")]
    (two_releases / "releases/1/manifest.json").write_text("{")
    with pytest.raises(
        InputError, match=r"releases/1/manifest.json"
    ):  # nothing tells the line any more: it is not guessed
        line(two_releases)


def test_another_base_or_tokenizer_is_refused(second: Path, tiny_model: Path) -> None:
    release = read_release(second)
    assert release.manifest.base is not None
    base, tokenizer = BaseModel(**release.manifest.base), load_tokenizer(ModelConfig(name=str(tiny_model)))
    release.refuse_other_model(base, tokenizer)
    with pytest.raises(InputError, match="other weights"):
        release.refuse_other_model(replace(base, weights_sha256="0" * 64))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    with pytest.raises(InputError, match="another tokenizer"):
        release.refuse_other_model(base, tokenizer)


# -- going back --------------------------------------------------------------------------------------------------------


def test_add_after_a_rollback_gives_the_bits_of_an_add_at_that_release(
    one_release: Path, second: Path, data: Path, tmp_path: Path
) -> None:
    back = Path(shutil.copytree(second, tmp_path / "back", symlinks=True))
    released = tree(back / "releases", without=("history.jsonl",))
    later = tree(back, without=("releases",))
    rollback(back)
    assert current(back) == 1
    aside = tree(back / "releases/withdrawn/1")
    assert {name: later[name] for name in aside} == aside  # what came later is kept, at the place that it had
    assert released.items() <= tree(back / "releases").items()
    without = ("releases", "checkpoints", "contrast")
    assert tree(back, without=without) == tree(one_release, without=without)

    for folder in (one_release, back):
        add(folder, [str(data / "three")], quiet=True)
    for place in (".", "contrast/er"):
        here, there = weights(one_release / place), weights(back / place)
        assert here.keys() == there.keys()
        assert all(here[name].equal(there[name]) for name in here)
        for name in ("predictions", "trajectory"):
            assert tree(one_release / place / name) == tree(back / place / name)
        states = [max((run / place / "checkpoints").glob("0*")) for run in (one_release, back)]
        tensors = [{name: file for name, file in tree(state).items() if name != "state.json"} for state in states]
        assert tensors[0] == tensors[1]
        memories = [json.loads((state / "state.json").read_text())["values"]["memory"] for state in states]
        assert memories[0] == memories[1]
    promote(back)
    assert [current(back), read_release(back).manifest.previous] == [3, 1]  # the number 2 is not given again
    with pytest.raises(InputError, match="release 2 was left behind"):
        rollback(back, to=2)


def test_back_to_the_current_release_from_a_phase_that_was_not_promoted(one_release: Path) -> None:
    before = tree(one_release, without=("releases", "checkpoints", "contrast"))
    rows: Any = {split: task_rows("three", 8, seed=1) for split in ("train", "test")}
    add(one_release, [Task("three", rows)], quiet=True)
    assert (one_release / "data/three/train.jsonl").is_file()
    for measured in ("connectivity/index.html", "general.json"):
        (one_release / measured).parent.mkdir(exist_ok=True)
        (one_release / measured).write_text("{}")
    with pytest.raises(InputError, match="--to 1"):
        rollback(one_release)
    rollback(one_release, to=1, note="the third task was a mistake")
    assert tree(one_release, without=("releases", "checkpoints", "contrast")) == before
    assert (one_release / "releases/withdrawn/1/connectivity/index.html").is_file()
    assert (one_release / "releases/withdrawn/1/data/three/train.jsonl").is_file()
    assert [(event.event, event.note) for event in events(one_release)][1:] == [
        ("rollback", "the third task was a mistake")
    ]
    now, then = resume(one_release, quiet=True).results, read_release(one_release).scores()
    assert now | {"cost": None} == {**then, "cost": None}  # a resume measures the peak memory anew


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_promoted_or_gone_back_to(one_release: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    for what, says in (
        (lambda: promote(one_release), "02-two is release 1 already"),
        (lambda: promote(tmp_path / "nowhere"), "not a run folder"),
        (lambda: promote(one_release / "contrast/er"), "part of"),
        (lambda: rollback(one_release, to=7), "no release 7; there are 1"),
        (lambda: rollback(one_release, to=1), "release 1 is the current one"),
        (lambda: rollback(one_release), "none before it"),
        (lambda: read_release(one_release, 2), "no release 2"),
    ):
        with pytest.raises(InputError, match=says):
            what()
    assert tree(tmp_path) == before


def test_a_run_that_is_not_finished_makes_no_release(one_release: Path) -> None:
    shutil.rmtree(one_release / "releases")
    (one_release / "current").unlink()
    with pytest.raises(InputError, match="no release yet"):
        read_release(one_release)
    with pytest.raises(InputError, match="no release to go back to"):
        rollback(one_release)
    for name, old, new in (
        ("results.json", b'"complete": true', b'"complete": false'),
        ("contrast/er/results.json", b'"complete": true', b'"complete": false'),
        ("config.yaml", b"tasks:\n", b"tasks:\n  - {name: four}\n"),  # an `add` that was killed before its first step
    ):
        whole = (one_release / name).read_bytes()
        flip(one_release / name, old, new)
        with pytest.raises(InputError, match="not finished"):
            promote(one_release)
        (one_release / name).write_bytes(whole)
    adapter = one_release / "adapters/02-two/slow/adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"slow/adapter_model.safetensors: damaged"):
        promote(one_release)
    for state in one_release.glob("checkpoints/*/state.json"):
        state.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        promote(one_release)
    assert not list((one_release / "releases").glob("*"))


def test_a_link_that_is_no_link(two_releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = two_releases / "current"
    link.unlink()
    with pytest.raises(InputError, match=r"current is missing.*ln -s releases/2"):
        current(two_releases)
    link.symlink_to("../elsewhere")
    with pytest.raises(InputError, match="no release of this run"):
        current(two_releases)
    link.unlink()
    link.symlink_to("releases/2")

    def no_links(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", no_links)
    with pytest.raises(InputError, match="no symbolic links"):
        rollback(two_releases)
    assert current(two_releases) == 2


def test_contrast_runs_that_the_configuration_does_not_name(one_release: Path) -> None:
    shutil.rmtree(one_release / "releases")
    (one_release / "current").unlink()
    shutil.copytree(one_release / "contrast/er", one_release / "contrast/before")
    flip(one_release / "contrast/before/results.json", b'"complete": true', b'"complete": false')
    promote(one_release)
    assert [path.name for path in (one_release / "releases/1/contrast").iterdir()] == ["er"]
    (one_release / "contrast/before").rename(one_release / "contrast/after")
    shutil.rmtree(one_release / "checkpoints")  # a rollback brings them back
    rollback(one_release, to=1)
    assert [path.name for path in (one_release / "contrast").iterdir()] == ["er"]
    assert (one_release / "releases/withdrawn/1/contrast/after/results.json").is_file()
    assert tree(one_release / "checkpoints/000001") == tree(one_release / "releases/1/state")


def test_without_hard_links_files_are_copied(two_releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    rollback(two_releases)
    state, release = two_releases / "checkpoints/000001/state.json", read_release(two_releases)
    assert state.read_bytes() == (release.state / "state.json").read_bytes()
    assert not state.samefile(release.state / "state.json")
    assert not list(two_releases.rglob(".*-writing"))


# -- the table of months -----------------------------------------------------------------------------------------------


def test_the_months_of_a_line(two_releases: Path) -> None:
    results = json.loads((two_releases / "results.json").read_text())
    slow = results["variants"]["slow"]
    found = history(two_releases)
    assert [(month["phase"], month["release"], month["state"]) for month in found["phases"]] == [
        ("01-one", None, "earlier"),
        ("02-two", 1, "released"),
        ("03-three", 2, "current"),
    ]
    last = found["phases"][-1]
    assert last["score"] == slow["R"][2][2]
    assert last["mean"] == pytest.approx(slow["summary"]["OP"])
    assert last["forgotten"] == pytest.approx(slow["summary"]["forgetting"])
    assert (last["tasks"], last["gate"], last["note"]) == (["three"], {"outcome": "passed"}, "spring")
    assert found["phases"][1]["mean"] == pytest.approx(sum(slow["R"][1][:2]) / 2)
    rollback(two_releases)
    found = history(two_releases)
    assert [(month["phase"], month["release"], month["state"]) for month in found["phases"]] == [
        ("01-one", None, "earlier"),
        ("02-two", 1, "current"),
        ("03-three", 2, "withdrawn"),
    ]
    assert [(event["event"], event["release"]) for event in found["events"]] == [
        ("promote", 1),
        ("promote", 2),
        ("rollback", 1),
    ]
    assert found["phases"][-1]["score"] == slow["R"][2][2]


def test_a_run_without_releases_shows_its_candidate(one_release: Path) -> None:
    shutil.rmtree(one_release / "releases")
    (one_release / "current").unlink()
    found = history(one_release)
    assert [(month["phase"], month["state"]) for month in found["phases"]] == [
        ("01-one", "earlier"),
        ("02-two", "candidate"),
    ]
    assert found["current"] is None
    assert found["events"] == []


def test_predictions_that_were_compressed_since_stay_at_a_rollback(two_releases: Path) -> None:
    kept = [path for path in list_releases(two_releases)[0].run if path.startswith("predictions/after-02-two/")]
    assert kept
    for file in (two_releases / "predictions").rglob("*.jsonl"):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    change.rollback(two_releases, to=1, report=no_report)
    assert all((two_releases / f"{path}.gz").is_file() for path in kept)
    assert not list((two_releases / "predictions").glob("after-03-*"))


def test_only_plain_numbers_are_releases(two_releases: Path) -> None:
    for name in ("1²", "007", "x"):
        (two_releases / "releases" / name).mkdir()
    assert [manifest.number for manifest in list_releases(two_releases)] == [1, 2]


def test_a_release_is_no_run_that_could_be_gone_on_with(one_release: Path, refused: Refused) -> None:
    (one_release / "releases/withdrawn/1").mkdir(parents=True)
    for place in ("current", "releases/1", "releases/withdrawn/1"):
        for command in ("resume", "history", "promote"):
            refused(command, one_release / place, says=[f"releases of {one_release}"])
    refused("forget", one_release / "current", "one", "--yes", says=[f"releases of {one_release}"])
    refused("run", one_release / "config.yaml", "--out", one_release / "releases/7", says=["--out"])
