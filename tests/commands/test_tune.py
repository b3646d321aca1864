"""`ilora tune`: with runs that only pretend to train, killed anywhere, and with real ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilora import InputError, run
from ilora.commands import tune as command
from ilora.commands.sweep import RunsFailed
from ilora.commands.tune import NothingFound, tune
from ilora.config import Config, load_config
from ilora.model.joint import JointDecoder, Part, Pass
from ilora.results.schema import SCHEMA
from ilora.sweeps.book import Entry
from ilora.sweeps.plan import expand, read_sweep
from ilora.training.divergence import SAID
from tests.command import Command
from tests.helpers import FEW_SCORES, MakeConfig, difference, weights

Learnt = Callable[[Config], float]


def best_at(rate: float) -> Learnt:
    """A task's score right after its training, the higher the nearer the learning rate is to this one."""

    def learnt(config: Config) -> float:
        own = config.method.learning_rate or config.training.learning_rate
        return 0.8 / max(own / rate, rate / own)

    return learnt


class Pretended:
    """An executor whose runs are done when they start: each forgets a tenth of what it learnt.

    most: how many it starts before Ctrl-C.
    """

    def __init__(self, learnt: Learnt, most: int = 1000, says: str = "") -> None:
        self.learnt, self.most, self.says = learnt, most, says
        self.started: list[str] = []
        self.done: list[tuple[Entry, int]] = []

    def has_room(self, _: Entry) -> bool:
        return True

    def start(self, entry: Entry) -> None:
        if len(self.started) == self.most:
            raise KeyboardInterrupt
        self.started.append(entry.job.title)
        config = entry.job.config
        assert (config.evaluation.split, config.evaluation.unseen) == ("eval", "none")
        score = self.learnt(config)
        if score < 0:
            entry.log.write_text(f"ilora: {self.says}\nno checkpoint was written yet\n", encoding="utf-8")
        else:
            write_results(entry.path, config, score)
        self.done.append((entry, int(score < 0)))

    def ended(self) -> list[tuple[Entry, int]]:
        done, self.done = self.done, []
        return done

    def stop(self) -> None:
        self.done = []


def write_results(folder: Path, config: Config, score: float) -> None:
    names = [task.name for task in config.data.tasks or ()]
    order = len(names) if config.stream != "joint" else 1
    rows = [[score if i == k else 0.9 * score for i in range(len(names))] for k in range(order)]
    content = {
        "schema": SCHEMA,
        "stream": config.stream,
        "complete": True,
        "tasks": [{"name": name} for name in names],
        "phases": names if order > 1 else ["joint"],
        "answers_with": "fast",
        "variants": {"fast": {"R": rows}},
        "cost": {"train_seconds": 1.0, "evaluation_seconds": 1.0},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def write(make_config: MakeConfig, tmp_path: Path) -> Callable[..., Path]:
    """A sweep file on the tiny model, which reports two orders and two seeds."""

    def make(**content: Any) -> Path:
        config = make_config("training.learning_rate=0.01", *FEW_SCORES)
        values = config.model_dump(mode="json", exclude_defaults=True)
        basis = {"config": values, "orders": 2, "seeds": 2, "tune": {"trials": 4, "runs": [1, 2], "seeds": 1}}
        file = tmp_path / "many.yaml"
        file.write_text(yaml.safe_dump(basis | content, sort_keys=False), encoding="utf-8")
        return file

    return make


def use(monkeypatch: pytest.MonkeyPatch, learnt: Learnt, **options: Any) -> Pretended:
    executor = Pretended(learnt, **options)
    monkeypatch.setattr(command, "executor", lambda *_: executor)
    return executor


def tried(folder: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / "tried.json").read_text(encoding="utf-8"))
    return {method["label"]: method for method in content["methods"]}


SCORELESS = json.dumps(
    {"tuned_on": {}, "runs": [1], "methods": [{"label": "er", "settings": "", "trials": [
        {"settings": {}, "runs": [{"order": 1, "seed": 1, "state": "done", "OP": None, "learnt": None}]}]}]}
)  # fmt: skip
RESULTS = ("tried.json", "tried.md", "presets.yaml", "sweep.json")
METHODS = {
    "individual": None,
    "er": {"memory_size": 10},
    "joint": {"method": "sequential", "stream": "joint"},
    "fixed": {"name": "er", "learning_rate": 0.01},
}


def test_the_best_settings_are_found_kept_and_taken_by_the_sweep(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(methods=METHODS), tmp_path / "out"
    runs = use(monkeypatch, best_at(0.0316))
    tune(file, out=out)
    assert len(runs.started) == len(set(runs.started)) == 3 * (4 + 2) + 2
    found = tried(out)
    assert [trial["rung"] for trial in found["er"]["trials"]] == [2, 1, 2, 1]
    assert [len(trial["runs"]) for trial in found["er"]["trials"]] == [2, 1, 2, 1]
    assert [trial["settings"]["method.learning_rate"] for trial in found["er"]["trials"]][:3] == [0.01, 0.00316, 0.0316]
    assert {label: method["best"] for label, method in found.items()} == {
        "individual": 2, "er": 2, "joint": 2, "fixed": 0
    }  # fmt: skip
    best = found["er"]["trials"][2]
    assert (best["learnt"], best["OP"]) == (pytest.approx(0.8), pytest.approx(0.8 * 2.8 / 3))
    for entry in best["runs"]:
        assert load_config(out / f"{entry['folder']}.yaml").method.memory_size == 10
    assert [found[label]["not_trained"] for label in METHODS] == [False, False, False, True]
    said = " ".join(capsys.readouterr().out.split())
    assert "32%, not trained" in said
    assert "not trained, so not ranked: fixed" in said

    presets = yaml.safe_load((out / "presets.yaml").read_text(encoding="utf-8"))
    assert presets["methods"]["er"] == {"name": "er", "learning_rate": 0.0316}
    assert presets["methods"]["fixed"] == {"name": "er"}
    content = yaml.safe_load(file.read_text(encoding="utf-8")) | {"presets": "out/presets.yaml"}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    jobs = {job.label: job.config for job in expand(read_sweep(file), file)}
    assert jobs["er"].method.learning_rate == jobs["joint"].method.learning_rate == 0.0316
    assert jobs["er"].evaluation.split == "test"
    assert (jobs["er"].method.memory_size, jobs["fixed"].method.learning_rate) == (10, 0.01)  # type: ignore[attr-defined]
    content["seeds"] = [1, 1000]
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(InputError, match="1000 is tuned on and reported"):
        expand(read_sweep(file), file)


def test_killed_anywhere_it_ends_as_one_that_was_not(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(methods=["er", "lwf"], tune={"trials": 2, "runs": [1, 2], "seeds": 1})
    use(monkeypatch, best_at(0.02))
    tune(file, out=tmp_path / "whole", quiet=True)
    out, total = tmp_path / "out", 0
    for most in (1, 2, 2):  # each call goes on where the one before was stopped
        runs = use(monkeypatch, best_at(0.02), most=most)
        with pytest.raises(KeyboardInterrupt):
            tune(file, out=out, quiet=True)
        total += len(runs.started)
    last = use(monkeypatch, best_at(0.02))
    tune(file, out=out, quiet=True)
    assert total + len(last.started) == 2 * (2 + 1)
    for name in RESULTS:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    again = use(monkeypatch, best_at(0.02))
    tune(file, out=out, quiet=True)
    assert again.started == []


def test_a_trial_that_diverges_is_out_and_other_failures_are_tried_again(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write(methods=["sequential"]), tmp_path / "out"

    def learnt(config: Config) -> float:
        return -1 if (config.method.learning_rate or 0) > 0.02 else 0.5

    use(monkeypatch, learnt, says="out of luck")
    with pytest.raises(RunsFailed, match="the same command tries them again"):
        tune(file, out=out, quiet=True)
    assert tried(out)["sequential"]["best"] is None
    use(monkeypatch, learnt, says=f"the loss is not finite: {SAID}")
    tune(file, out=out, quiet=True)
    assert [trial["diverged"] for trial in tried(out)["sequential"]["trials"]] == [False, False, True, False]
    assert tried(out)["sequential"]["best"] == 0
    before = [(out / name).read_bytes() for name in RESULTS]
    again = use(monkeypatch, learnt)
    tune(file, out=out, quiet=True)
    assert again.started == []
    assert [(out / name).read_bytes() for name in RESULTS] == before
    use(monkeypatch, lambda _: -1, says=SAID)
    with pytest.raises(NothingFound, match="every trial diverged: sequential"):
        tune(file, out=tmp_path / "dead", quiet=True)
    assert yaml.safe_load((tmp_path / "dead" / "presets.yaml").read_text(encoding="utf-8"))["methods"] == {}


def test_only_some_labels_now_more_later_and_no_tried_value_is_lost(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    file = write(methods=["er", "lwf"], tune={"trials": 2, "runs": [1], "seeds": 1})
    first = use(monkeypatch, best_at(0.02))
    tune(file, out=out, only=["e*"], quiet=True)
    assert {title.split()[0] for title in first.started} == {"er"}
    assert (tried(out)["er"]["complete"], tried(out)["lwf"]["complete"]) == (True, False)
    with pytest.raises(InputError, match="--only ewc: fits none of the labels er, lwf"):
        tune(file, out=out, only=["ewc"])
    more = {"trials": 3, "runs": [1], "seeds": 1}
    second = use(monkeypatch, best_at(0.02))
    tune(write(methods=["er", "lwf", "migu"], tune=more), out=out, quiet=True)
    assert {title.split()[0] for title in second.started} == {"er", "lwf", "migu"}
    assert len(tried(out)["er"]["trials"]) == 3
    for changed in ({"methods": ["er", "lwf"]}, {"methods": ["er", "lwf", "migu"], "tune": {**more, "trials": 1}},
                    {"methods": ["er", "lwf", "migu"], "tune": {**more, "seeds": [9]}}):  # fmt: skip
        with pytest.raises(InputError, match=r"tried\.json: was begun with other"):
            tune(write(**({"tune": more} | changed)), out=out, quiet=True)


def test_tried_json_alone_goes_on_on_another_machine(
    write: Callable[..., Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run folders are gone and data lies elsewhere: nothing that ended is run again, and the end is the same."""

    def learnt(config: Config) -> float:
        return -1 if (config.method.learning_rate or 0) > 0.02 else best_at(0.006)(config)

    file, whole, out = write(methods=["er", "lwf"]), tmp_path / "whole", tmp_path / "out"
    use(monkeypatch, learnt, says=SAID)
    tune(file, out=whole, quiet=True)
    first = use(monkeypatch, learnt, says=SAID, most=5)
    with pytest.raises(KeyboardInterrupt):
        tune(file, out=out, quiet=True)
    use(monkeypatch, learnt, most=0)
    with pytest.raises(KeyboardInterrupt):
        tune(file, out=out, quiet=True)  # writes what has ended
    kept = (out / "tried.json").read_bytes()
    shutil.rmtree(out)
    out.mkdir()
    (out / "tried.json").write_bytes(kept)
    shutil.copytree(data, tmp_path / "moved")
    second = use(monkeypatch, learnt, says=SAID)
    tune(file, [f"data.path={tmp_path / 'moved'}"], out=out, quiet=True)
    assert not set(first.started) & set(second.started)
    assert len(first.started) + len(second.started) == 2 * (4 + 2)
    for name in RESULTS[:3]:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    states = [run["state"] for run in json.loads((out / "sweep.json").read_text(encoding="utf-8"))["runs"]]
    assert states == [run["state"] for run in json.loads((whole / "sweep.json").read_text(encoding="utf-8"))["runs"]]
    with pytest.raises(InputError, match="was begun with other settings of er, settings of lwf"):
        tune(file, [f"data.path={tmp_path / 'moved'}", "training.epochs=7"], out=out, quiet=True)


def test_trials_added_later_lose_no_outcome_whose_folder_is_gone(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rung is open again, so that no run of the second is asked for until it is done."""
    out, tune_on = tmp_path / "out", {"runs": [1, 2], "seeds": 1}
    use(monkeypatch, best_at(0.02))
    tune(write(methods=["er"], tune={"trials": 4, **tune_on}), out=out, quiet=True)
    kept = [run for trial in tried(out)["er"]["trials"] for run in trial["runs"]]
    shutil.rmtree(out / "runs")
    more = write(methods=["er"], tune={"trials": 6, **tune_on})
    use(monkeypatch, best_at(0.02), most=0)
    with pytest.raises(KeyboardInterrupt):
        tune(more, out=out, quiet=True)
    done = [run for trial in tried(out)["er"]["trials"] for run in trial["runs"] if run["state"] == "done"]
    assert done == kept
    last = use(monkeypatch, best_at(0.02))
    tune(more, out=out, quiet=True)
    assert len(last.started) == 2 + 1  # of the two new ones, and of the third that is now among the best three
    with pytest.raises(InputError, match="was begun with other settings of er"):
        tune(write(methods=["er"], tune={"trials": 6, "reduction": 3, **tune_on}), out=out, quiet=True)


@pytest.mark.parametrize("text", ["[", "[]", '{"methods": [{"label": "er", "trials": [{"runs": [1]}]}]}', SCORELESS])
def test_a_broken_tried_json_is_named(write: Callable[..., Path], tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tried.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"tried\.json: cannot be read"):
        tune(write(methods=["er"]), out=tmp_path / "out", quiet=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tune": {"seeds": [1]}}, r"tune\.seeds: 1 is tuned on and reported"),
        ({"tune": {"orders": [["one", "two", "three"]]}}, r"tune\.orders: one, two, three is tuned on"),
        ({"tune": {"runs": [1, 9]}}, r"tune\.runs: 9 runs of a trial, but 2 orders x 2 seeds are only 4"),
        ({"tune": {"trial": 3}}, r"tune\.trial: unknown key.*trials"),
        ({"tune": {"config": {"training": {"epoch": 1}}}}, "epoch: unknown key"),
        ({"orders": 6}, "2 asked for, but of the 6 orders of 3 tasks only 0 are not reported"),
        ({"settings": {"training.epochs": [1, 2]}}, "settings: a grid is not tuned"),
        ({"methods": {"er": {"method": "er", "evaluation": {"split": "eval"}}}}, "evaluation.split is eval"),
    ],
)
def test_bad_input_is_named_and_nothing_starts(
    write: Callable[..., Path], tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    file = write(**({"methods": ["er"]} | content))
    with pytest.raises(InputError, match=f"(?s){message}"):
        tune(file, out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small(write: Callable[..., Path]) -> Path:
    """Two trials of one method, each a real run over two short tasks."""
    short = {"training": {"epochs": 1}, "data": {"limit": {"train": 16, "eval": 2, "test": 2}}}
    once = {"trials": 2, "runs": [1], "seeds": 1, "orders": 1, "tasks": 2, "config": short}
    return write(methods=["sequential"], tune=once)


def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made one after another in this process."""

    class Here(Pretended):
        def start(self, entry: Entry) -> None:
            run(entry.job.config, entry.path, quiet=True)
            self.done.append((entry, 0))

    monkeypatch.setattr(command, "executor", lambda *_: Here(best_at(1)))


def test_trials_together_are_the_trials_in_turn(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joint, decode = list[int](), JointDecoder.compute

    def counting(decoder: JointDecoder, parts: Sequence[Part], *, hidden: bool) -> Pass:
        joint.append(len(parts))
        return decode(decoder, parts, hidden=hidden)

    monkeypatch.setattr(JointDecoder, "compute", counting)
    tune(small, ["adapter.dropout=0"], out=tmp_path / "together", together=2, quiet=True)
    assert joint[0] == 2
    here(monkeypatch)
    tune(small, ["adapter.dropout=0"], out=tmp_path / "turn", quiet=True)
    assert tried(tmp_path / "together") == tried(tmp_path / "turn")
    presets = [(tmp_path / name / "presets.yaml").read_text(encoding="utf-8") for name in ("together", "turn")]
    assert presets[0] == presets[1]
    for trial in tried(tmp_path / "turn")["sequential"]["trials"]:
        (entry,) = trial["runs"]
        assert difference(*(weights(tmp_path / name / entry["folder"]) for name in ("together", "turn"))) < 1e-4


def test_what_cannot_be_together_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    file, out = write(methods=["er"]), tmp_path / "out"
    with pytest.raises(InputError, match="leave out --processes and --ray"):
        tune(file, out=out, together=2, ray="local")
    with pytest.raises(InputError, match="--together 0"):
        tune(file, out=out, together=0)
    with pytest.raises(InputError, match="trackers: wandb"):
        tune(file, ["trackers=[wandb]"], out=out, together=2)
    assert not out.exists()


def test_the_command_with_real_runs(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ilora: Command
) -> None:
    here(monkeypatch)
    before = ilora("tune", small, "--dry-run")
    assert (before.code, before.err) == (0, "")
    assert "2 runs at most (0 done)" in " ".join(before.out.split())
    done = ilora("tune", small)
    assert (done.code, done.err) == (0, "")
    (method,) = tried(tmp_path / "sweeps" / "many-tuning").values()
    assert method["best"] in (0, 1)
    for trial in method["trials"]:
        (entry,) = trial["runs"]
        results = json.loads((tmp_path / "sweeps/many-tuning" / entry["folder"] / "results.json").read_text())
        variant = results["variants"][results["answers_with"]]
        assert (trial["OP"], trial["learnt"]) == (variant["summary"]["OP"], variant["summary"]["plasticity"])
        assert len(results["tasks"]) == 2
    assert load_config(tmp_path / "sweeps/many-tuning" / f"{entry['folder']}.yaml").evaluation.split == "eval"
