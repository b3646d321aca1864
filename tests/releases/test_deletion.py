"""`ilora forget`: no byte of a task's rows is left in a run, and the run goes on without them."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from ilora import InputError, Method, add, compare, export, gate, load_config, predict, promote, resume, run
from ilora.check.audit import check_config
from ilora.cli import app
from ilora.commands.diff import diff
from ilora.commands.prune import plan
from ilora.comparison.folders import read_folder
from ilora.comparison.run import Run
from ilora.connectivity.evaluate import evaluate_adapter
from ilora.connectivity.sources import from_run
from ilora.data.task import Task
from ilora.gates.evidence import digest
from ilora.model.load import load_tokenizer
from ilora.releases import change, redaction
from ilora.releases.history import history
from ilora.releases.opening import open_run
from ilora.releases.store import list_releases, read_release
from ilora.report import write_report
from ilora.results.scores import read_records
from ilora.settings import ModelConfig
from ilora.training.checkpoint import load_latest
from ilora.training.keep import compress
from tests.helpers import MakeConfig, sketch, write_task
from tests.releases.conftest import no_report
from tests.releases.test_kills import killed_at, other_names
from tests.releases.test_releases import tree

pytestmark = pytest.mark.xdist_group("releases")

EVERY = 113  # operations on the file system; 1 takes a hundred times as long
PROMPT, ANSWERS = "quetzal", ("zanzibar", "timbuktu")


def marked(count: int, *, start: int = 0) -> list[dict[str, str]]:
    """Rows with words that stand nowhere else; the prompts also begin and end alike, and so have a frame."""
    return [
        {"prompt": f"{PROMPT} asks {number} :", "answer": ANSWERS[number % 2]} for number in range(start, start + count)
    ]


@pytest.fixture(scope="module", autouse=True)
def _sketched() -> Iterator[None]:
    """What is deleted is text: pictures hold none."""
    with pytest.MonkeyPatch.context() as patch:
        sketch(patch)
        yield


@pytest.fixture(scope="module")
def marks(tiny_model: Path) -> list[bytes]:
    """The rows' words as they may stand in a file: as text, as int32 token ids, as a JSON list, as ids of rows."""
    tokenizer = load_tokenizer(ModelConfig(name=str(tiny_model)))
    found = [b"secret/train/"]
    for word in (PROMPT, *ANSWERS):
        ids = tokenizer(word, add_special_tokens=False).input_ids
        inner = ids[1:]  # behind a space the first token is another one
        assert len(inner) > 2
        found += [word.encode(), np.array(inner, dtype=np.int32).tobytes(), json.dumps(inner)[1:-1].encode()]
    return found


def holding(folder: Path, marks: list[bytes]) -> set[str]:
    """The files that have something of the rows, hidden ones included."""
    found = set()
    for name, content in tree(folder).items():
        plain = gzip.decompress(content) if name.endswith(".gz") else content
        found |= {name for mark in marks if mark in plain}
    return found


@pytest.fixture(scope="module")
def whole(make_config: MakeConfig, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task one, task secret (release 1), task three (release 2, rolled back), evaluated and reported."""
    base = tmp_path_factory.mktemp("deletion")
    config = make_config(
        "training.epochs=1",
        "data.tasks=[one]",
        "data.limit.train=12",
        method={"name": "ilora+", "memory_size": 20},
        contrast=[{"name": "derpp", "memory_size": 20}],
    )
    folder = run(config, base / "run", quiet=True).path
    secret = Task("secret", {"train": marked(12), "eval": marked(4, start=40), "test": marked(6, start=50)})
    add(folder, [secret], quiet=True)
    change.promote(folder, report=no_report)
    evaluate_adapter(folder, quiet=True)
    add(folder, [str(data / "three")], quiet=True)
    change.promote(folder, report=no_report)
    write_report(folder)
    change.rollback(folder, report=write_report)
    add(folder, [str(write_task(base / "more", "four", train=8, test=4))], quiet=True)
    write_report(folder)
    _leave_more(folder)
    return folder


def _leave_more(folder: Path) -> None:
    """What other commands leave: compressed predictions, a page of `diff`, a repair, and a deletion cut short."""
    one, other = (folder / f"predictions/after-{phase}/secret.jsonl" for phase in ("02-secret", "03-four"))
    was = other.read_text()
    rows = [json.loads(line) for line in was.splitlines()]
    other.write_text("".join(json.dumps(row | {"score": 1 - row["score"]}) + "\n" for row in rows))  # so rows change
    diff(folder, ["2", "3"], threshold=0.5, only=["secret"], jsonl=None)
    other.write_text(was)
    shutil.copytree(folder / "diffs", folder / "releases/withdrawn/1/diffs")
    for place in ("gate/03-four/repaired/predictions/secret.jsonl", ".prune-killed/0-secret.jsonl"):
        (folder / place).parent.mkdir(parents=True)
        shutil.copyfile(other, folder / place)
    shutil.copytree(folder / "checkpoints", folder / "gate/03-four/trained/memory/checkpoints")  # a repair was stopped
    for file in (one, *(folder / "contrast/derpp/predictions").rglob("*.jsonl")):
        compress(file)
    both = folder / "contrast/derpp/predictions/after-03-four"  # killed while it was compressed
    (both / "secret.jsonl").write_bytes(gzip.decompress((both / "secret.jsonl.gz").read_bytes()))
    files = {"predictions/after-02-secret/secret.jsonl": digest(one), "predictions/after-03-four/secret.jsonl": "older"}
    (folder / "gate.json").write_text(json.dumps({"outcome": "failed", "files": files}))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))


@pytest.fixture(scope="module")
def forgotten(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after the rows of task secret are deleted."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("forgotten") / "run", symlinks=True))
    change.forget(folder, "secret", report=write_report)
    return folder


def memory_rows(folder: Path) -> list[str]:
    found, _ = load_latest(folder / "checkpoints")
    assert found is not None
    return [task for task, _ in found.values["memory"]["rows"]]


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_no_byte_of_the_rows_is_left(whole: Path, forgotten: Path, marks: list[bytes]) -> None:
    before = holding(whole, marks)
    kinds = {
        "report.html", "data/secret/train.jsonl", "predictions/after-02-secret/secret.jsonl.gz",
        "releases/1/state/memory.safetensors", "releases/1/state/state.json", "releases/2/state/memory.safetensors",
        "contrast/derpp/predictions/after-02-secret/secret.jsonl.gz",
        "releases/1/contrast/derpp/state/method.safetensors",
        "releases/withdrawn/1/report.html", "releases/withdrawn/1/predictions/after-03-three/fast/secret.jsonl",
        "diffs/02-secret..03-four.html", "releases/withdrawn/1/diffs/02-secret..03-four.html",
        "gate/03-four/repaired/predictions/secret.jsonl", ".prune-killed/0-secret.jsonl",
        "contrast/derpp/predictions/after-03-four/secret.jsonl",
        "contrast/derpp/predictions/after-03-four/secret.jsonl.gz",
    }  # fmt: skip
    assert kinds <= before
    assert any(name.startswith("checkpoints/") for name in before)
    assert any("trained/memory" in name for name in before)
    assert any("evaluations/" in name for name in before)
    assert holding(forgotten, marks) == set()
    assert not list(forgotten.rglob(".*-writing"))
    assert not list(forgotten.glob(".prune-*"))
    packed = forgotten / "predictions/after-02-secret/secret.jsonl"
    assert not packed.exists()
    assert len(read_records(packed)) == 6
    assert not list(forgotten.rglob(".*-rewritten"))


def test_weights_and_scores_stay(whole: Path, forgotten: Path) -> None:
    then, now = tree(whole), tree(forgotten)
    for name in [name for name in then if "/trained/" not in name]:
        if "adapter" in name.rpartition("/")[2] or "optimizer" in name or "/trajectory/" in f"/{name}":
            assert now[name] == then[name], name
    for place in (".", "contrast/derpp", "releases/withdrawn/1"):
        before, after = results_of(whole / place), results_of(forgotten / place)
        assert after["variants"] == before["variants"]
        task = next(task for task in after["tasks"] if task["name"] == "secret")
        assert (task["train"], task["source"], len(task["forgotten"])) == (12, "", 10)
    assert set(memory_rows(forgotten)) == {"one", "four"}
    assert memory_rows(forgotten).count("one") == memory_rows(whole).count("one")
    section = yaml.safe_load((forgotten / "config.yaml").read_text())["data"]["tasks"][1]
    assert set(section) == {"name", "settings", "replaces", "template", "forgotten"}


def test_the_decision_of_the_gate_stands(whole: Path, forgotten: Path) -> None:
    """It is on scores. A file that has changed since the decision does not become one that has not."""
    then, now = (json.loads((folder / "gate.json").read_text()) for folder in (whole, forgotten))
    judged, older = sorted(then["files"])
    assert now == then | {"files": now["files"]}
    assert now["files"][judged] == digest(forgotten / judged)
    assert now["files"][judged] != then["files"][judged]
    assert now["files"][older] == "older"


def test_releases_say_what_was_deleted(whole: Path, forgotten: Path) -> None:
    for then, now in zip(list_releases(whole), list_releases(forgotten), strict=True):
        assert then.redactions == []
        assert [note["task"] for note in now.redactions] == ["secret"]
        old = json.loads((whole / f"releases/{then.number}/manifest.json").read_text())
        assert now.redactions[0]["sha256_before"] == old["sha256"]
        changed = {name for name in then.files if then.files[name] != now.files[name]}
        assert then.files.keys() == now.files.keys()
        assert {name.rpartition("/")[2] for name in changed} == {
            "memory.safetensors", "method.safetensors", "state.json", "scores.json", "config.yaml",
        }  # fmt: skip
        read_release(forgotten, then.number)
    found = history(forgotten)
    assert (found["events"][-1]["event"], found["events"][-1]["tasks"]) == ("forget", ["secret"])
    assert found["phases"] == history(whole)["phases"]
    page = (forgotten / "report.html").read_text()
    assert "secret were deleted on" in page


def test_the_run_goes_on_without_it(forgotten: Path, tmp_path: Path, data: Path) -> None:
    folder = Path(shutil.copytree(forgotten, tmp_path / "run", symlinks=True))
    before = results_of(folder)
    resume(folder, quiet=True)
    assert results_of(folder)["variants"] == before["variants"]
    assert results_of(folder)["tasks"] == before["tasks"]
    after = add(folder, [str(data / "two")], quiet=True)
    for part in (after.results, *after.contrast):
        variant = part["variants"][part["answers_with"]]
        last = variant["R"][-1]
        assert [score is None for score in last] == [False, True, False, False]
        assert variant["R"][1][1] is not None
        known = [score for score in last if score is not None]
        assert variant["summary"]["OP"] == pytest.approx(sum(known) / 3)
        assert part["tasks"][1]["train"] == 12
    assert not list(folder.glob("predictions/after-04-two/**/secret.jsonl"))
    assert history(folder)["phases"][-2]["mean"] == pytest.approx(after.results["variants"]["slow"]["summary"]["OP"])
    pairs = from_run(folder, pairs="all").pairs
    assert {task.name for pair in pairs for task in pair.tasks} == {"one", "four", "two"}
    found, _ = compare([folder, folder / "contrast/derpp"], out=tmp_path / "comparison")
    assert "secret" not in json.dumps(found)
    checked = check_config(load_config(folder / "config.yaml"), tokens=False, near=False)
    assert [found["task"] for found in checked] == ["one", "four", "two"]
    change.rollback(folder, to=1, report=no_report)
    assert [task["name"] for task in results_of(folder)["tasks"]] == ["one", "secret"]
    assert "secret" not in memory_rows(folder)
    resume(folder, quiet=True)


def test_what_reads_single_rows_leaves_the_task_out(forgotten: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(forgotten, tmp_path / "run", symlinks=True))
    found, _ = diff(folder, ["2", "3"], threshold=0.5, only=[], jsonl=None)
    assert [task.name for task in found.tasks] == ["one", "four"]
    assert any("secret: its rows were deleted" in why for why in found.skipped)
    with pytest.raises(InputError, match="secret: its rows were deleted"):
        diff(folder, ["2", "3"], threshold=0.5, only=["secret"], jsonl=None)
    with pytest.raises(InputError, match="rows of task 'secret' were deleted"):
        predict(folder, [{"prompt": "red"}], task="secret", quiet=True)
    decision = gate(folder)  # the phase was scored on it, and the scores stay
    assert any(check["subject"] == "secret" for check in decision["checks"])
    promoted = promote(folder, force=True)
    assert promoted.manifest.tasks == ["one", "secret", "four"]
    read_release(folder, promoted.number)
    export(folder, tmp_path / "export")
    assert "secret" in (tmp_path / "export/README.md").read_text()  # the task, with its score then
    rows = predict(folder, [{"prompt": "red"}], quiet=True)  # with the current release
    assert "prediction" in rows[0]


def test_it_compares_as_before(whole: Path, forgotten: Path, tmp_path: Path) -> None:
    """With a run of which the rows are still there: what was asked is known by its digest."""
    found = []
    for folder in (whole, forgotten):
        compare([folder, folder / "contrast/derpp"], out=tmp_path / "out")
        found.append((tmp_path / "out" / "comparison.json").read_bytes())
        shutil.rmtree(tmp_path / "out")
    assert found[0] == found[1].replace(str(forgotten).encode(), str(whole).encode())
    one, other = (read_folder(folder, folder) for folder in (whole, forgotten))
    assert isinstance(one, Run)
    assert isinstance(other, Run)
    assert one.items == other.items


def test_killed_anywhere_the_next_command_finishes_it(
    whole: Path, forgotten: Path, marks: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alike(folder: Path) -> dict[str, bytes]:
        later = ("history.jsonl", "report.html", "environment.json")
        return {name: content for name, content in tree(folder).items() if not name.endswith(later)}

    whole = Path(shutil.copytree(whole, tmp_path / "whole", symlinks=True))
    for path in [*whole.rglob("trajectory"), *whole.rglob("after-0[01]-*"), *whole.rglob("predictions/*/fast")]:
        shutil.rmtree(path, ignore_errors=True)
    done = other_names(whole, tmp_path / "done")
    change.forget(done, "secret", report=no_report)
    expected, seen = alike(done), set()
    for count in range(1, 2000, EVERY):
        folder = other_names(whole, tmp_path / "killed")
        if not killed_at(count, lambda folder=folder: change.forget(folder, "secret", report=no_report), monkeypatch):
            break
        begun = (folder / "releases/pending.json").is_file()
        killed_at(count % 50 + 1, lambda folder=folder: open_run(folder, no_report), monkeypatch)
        open_run(folder, no_report)
        if begun:
            assert alike(folder) == expected
            assert holding(folder, marks) == set()
        else:  # before it was decided, or after its end
            left = {name: content for name, content in alike(folder).items() if "writing" not in name}
            assert left in (alike(whole), expected)
        seen.add(begun)
        shutil.rmtree(folder)
    assert seen == {True, False}
    assert count > 3 * EVERY


def test_prune_finishes_it_first(folder: Path, marks: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilora.commands.releases.write_report", no_report)
    assert killed_at(EVERY, lambda: change.forget(folder, "secret", report=no_report), monkeypatch)
    assert (folder / "releases/pending.json").is_file()
    plan(folder, ["predictions=compressed"])
    assert holding(folder, marks) == set()


def test_the_command_asks_and_says_what_it_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilora.commands.releases.write_report", no_report)
    (folder / "notes.txt").write_text("my own")

    def ilora(*arguments: str, answer: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(app, [*arguments], input=answer)
        if isinstance(done.exception, InputError):
            raise done.exception
        return done.exit_code, done.stdout

    before = tree(folder)
    assert ilora("forget", str(folder), "secret", answer="n\n")[0] == 1
    assert tree(folder) == before
    with pytest.raises(InputError, match=r"no task 'secrets' .did you mean 'secret'"):
        ilora("forget", str(folder), "secrets", "--yes")
    code, said = ilora("forget", str(folder), "secret", answer="y\n")
    assert code == 0
    assert "not unlearning" in said
    assert "notes.txt" in said
    with pytest.raises(InputError, match="deleted already"):
        ilora("forget", str(folder), "secret", "--yes")
    assert "forget: secret" in ilora("history", str(folder))[1]


def test_what_cannot_be_done_changes_nothing(folder: Path) -> None:
    def refused(match: str) -> None:
        before = tree(folder)
        with pytest.raises(InputError, match=match):
            change.forget(folder, "secret", report=no_report)
        assert tree(folder) == before

    predictions = folder / "predictions/after-03-four/secret.jsonl"
    content = predictions.read_text()
    predictions.write_text("{")
    refused("secret.jsonl:1: not JSON")
    predictions.write_text(content)
    decision = (folder / "gate.json").read_text()
    (folder / "gate.json").write_text("[]")
    refused("gate.json")
    (folder / "gate.json").write_text(decision)
    results = results_of(folder)
    (folder / "results.json").write_text(json.dumps(results | {"complete": False}))
    refused("not finished")
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "releases/2/card.md").write_text("")
    refused("card.md")


def test_a_damaged_checkpoint_is_deleted(folder: Path, marks: list[bytes]) -> None:
    (sound,) = (folder / "checkpoints").glob("0*")
    last = Path(shutil.copytree(sound, sound.with_name("999999")))
    state = last / "state.json"
    content = state.read_bytes()
    state.unlink()
    state.write_bytes(content[:-9])
    change.forget(folder, "secret", report=no_report)
    assert holding(folder, marks) == set()
    assert not last.exists()
    assert load_latest(folder / "checkpoints")[0] is not None


class Stateful(Method):
    """A method that says nothing of what it keeps."""

    def state_dict(self) -> dict[str, Any]:
        return {}


class Saying(Stateful):
    """One that does."""

    @classmethod
    def without_task(cls, state: dict[str, Any], task: str) -> dict[str, Any]:
        return {} if task else state


def test_a_method_of_ones_own_must_say_what_its_state_holds() -> None:
    file = Path("config.yaml")
    for name in ("Stateful", "Saying"):
        config = {"method": "er", "contrast": [{"name": f"{__name__}:{name}"}]}
        if name == "Stateful":
            with pytest.raises(InputError, match=r"Stateful: .*without_task"):
                redaction.refuse_unknown_state(config, file)
        else:
            redaction.refuse_unknown_state(config, file)


def test_a_new_run_has_no_rows_of_it(forgotten: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("data.tasks=[one, {name: two, forgotten: '2026-01-01'}]")
    with pytest.raises(InputError, match="task 'two' would be trained"):
        run(config, tmp_path / "new", quiet=True)
    assert not (tmp_path / "new").exists()
