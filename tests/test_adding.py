"""Settings for the next task and those after it: `add` with key=value, and `settings` in a stream."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilora import InputError, RunResult, add, load_config, resume, run
from ilora.adding import tasks_and_settings
from ilora.answering.weights import RunWeights
from ilora.comparison.folders import read_folder
from ilora.comparison.run import Run
from ilora.connectivity.sources import from_run, pair_of
from ilora.data.encoding import Encoder
from ilora.data.task import Task
from ilora.handover import source as handover
from ilora.handover.card import Wishes
from ilora.handover.export import export_source
from ilora.methods import Method
from ilora.model.load import load_tokenizer
from ilora.releases import change
from ilora.releases.history import history
from ilora.report import write_report
from ilora.results.reader import prompt_template
from ilora.stream import load_tasks
from ilora.training.checkpoint import load_latest
from ilora.training.encoded import EncodedStream
from tests.helpers import (
    SMALL,
    Killed,
    MakeConfig,
    after_each_step,
    difference,
    run_killed,
    task_rows,
    weights,
    write_task,
)

pytestmark = [pytest.mark.usefixtures("sketched"), pytest.mark.xdist_group("adding")]  # one worker makes the runs

SETTINGS = ["lr=1e-4", "training.schedule=linear", "method.strength=3", "method.memory_size=32"]
WRITTEN = {
    "training.learning_rate": 1e-4,
    "training.schedule": "linear",
    "method.strength": 3.0,
    "method.memory_size": 32,
}


@pytest.fixture(scope="module")
def two_tasks(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tasks one and two, with ER and sequential fine-tuning beside it."""
    config = make_config("data.tasks=[one, two]", *SMALL, contrast=[{"name": "er", "memory_size": 20}, "ewc"])
    return run(config, tmp_path_factory.mktemp("two") / "run", quiet=True).path


@pytest.fixture(scope="module")
def grown(two_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Task three added with other settings."""
    folder = tmp_path_factory.mktemp("grown") / "run"
    shutil.copytree(two_tasks, folder)
    return add(folder, ["three"], SETTINGS, quiet=True)


def memory(folder: Path) -> dict[str, Any]:
    found, _ = load_latest(folder / "checkpoints")
    assert found is not None
    values: dict[str, Any] = found.values["memory"]
    return values


def test_the_new_task_is_trained_with_them_and_the_history_says_so(grown: RunResult) -> None:
    lines = [json.loads(line) for line in (grown.path / "metrics.jsonl").read_text().splitlines()]
    rates = {task: [line["learning_rate"] for line in lines if line["task"] == task] for task in ("two", "three")}
    assert set(rates["two"][1:]) == {2e-3}
    assert max(rates["three"]) == 1e-4
    assert rates["three"][-1] < rates["three"][1]
    for line in lines[-4:]:  # one micro-batch a step, so that the terms add up
        terms = line["terms"]
        total = 0.5 * terms["ce"] + 0.5 * terms["ce_replayed"] + 3.0 * terms["consistency"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert len(memory(grown.path)["rows"]) == 32
    tasks = yaml.safe_load((grown.path / "config.yaml").read_text())["data"]["tasks"]
    assert [task["settings"] for task in tasks] == [{}, {}, WRITTEN]
    assert [task["settings"] for task in grown.results["tasks"]] == [{}, {}, WRITTEN]


def test_contrast_runs_get_those_that_mean_the_same_there(grown: RunResult) -> None:
    training = {key: value for key, value in WRITTEN.items() if key.startswith("training.")}
    expected = {"er": training | {"method.memory_size": 32}, "ewc": training}
    for other in grown.contrast:
        assert other["tasks"][-1]["settings"] == expected[other["method"]]
        folder = grown.path / "contrast" / other["method"]
        assert load_config(folder / "config.yaml").at(3).training.learning_rate == 1e-4
    assert len(memory(grown.path / "contrast/er")["rows"]) == 32


def test_interrupted_and_resumed_it_comes_to_the_same_bits(
    grown: RunResult, two_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(two_tasks, folder)

    def stop(method: Method[Any]) -> None:
        if method.position.task_step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        after_each_step(patch, stop)
        with pytest.raises(Killed):
            add(folder, ["three"], SETTINGS, quiet=True)
    resume(folder, quiet=True)
    for place in (".", "contrast/er", "contrast/ewc"):
        assert difference(weights(grown.path / place), weights(folder / place)) == 0.0
    assert memory(grown.path) == memory(folder)


def test_written_into_a_stream_they_are_the_same(grown: RunResult, make_config: MakeConfig, tmp_path: Path) -> None:
    tasks = ["one", "two", {"name": "three", "settings": WRITTEN}]
    config = make_config(*SMALL, f"data.tasks={json.dumps(tasks)}")
    whole = run(config, tmp_path / "run", quiet=True)
    assert difference(weights(whole.path), weights(grown.path)) == 0.0
    assert whole.results["tasks"] == grown.results["tasks"]


def test_they_hold_for_the_tasks_after_and_memory_shrinks(grown: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(grown.path, folder)
    for name in ("contrast", "report.html"):
        shutil.rmtree(folder / name, ignore_errors=True)
    edited = yaml.safe_load((folder / "config.yaml").read_text()) | {"contrast": []}
    (folder / "config.yaml").write_text(yaml.safe_dump(edited))
    after = add(folder, [str(write_task(tmp_path, "four"))], ["method.memory_size=7", "epochs=1"], quiet=True)
    config = load_config(folder / "config.yaml").at(4)
    assert config.training.learning_rate == 1e-4
    assert after.results["tasks"][3]["settings"] == {"method.memory_size": 7, "training.epochs": 1}
    assert len(memory(folder)["rows"]) == 7
    assert after.results["cost"]["steps"] == 4 * 3 + 2


def test_a_table_with_columns_of_its_own_is_added(two_tasks: Path, tmp_path: Path) -> None:
    folder, table = tmp_path / "run", tmp_path / "four"
    shutil.copytree(two_tasks, folder)
    table.mkdir()
    for seed, split in enumerate(("train", "test")):
        lines = [f"{row['prompt']},{row['answer']}\n" for row in task_rows("four", 8, seed=seed)]
        (table / f"{split}.csv").write_text("what,meaning\n" + "".join(lines))
    with pytest.raises(InputError, match=r"train\.csv"):
        add(folder, [str(table)], quiet=True)
    columns = ["columns.prompt=what", "columns.answer=meaning"]
    made = add(folder, [str(table)], [*columns, "metric=exact", "epochs=1"], quiet=True)
    task = made.results["tasks"][-1]
    assert (task["metric"], task["train"], task["settings"]) == ("exact", 8, {"training.epochs": 1})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=other", r"task 'three', model\.name: cannot change within a run: all adapters"),
        ("adapter.r=8", r"adapter\.r: cannot change .* shape"),
        ("method.name=er", r"method\.name: cannot change"),
        ("method.inference=fast", r"method\.inference: cannot change"),
        ("seed=3", "seed: cannot change"),
        ("stream=joint", "stream: cannot change"),
        ("data.path=elsewhere", r"data\.path: cannot change .* TASK"),
        ("evaluation.split=eval", r"evaluation\.split: cannot change"),
        ("training.micro_batch_size=1", r"training\.micro_batch_size: cannot change"),
        ("training.epoch=1", r"training\.epoch: unknown key .*training\.epochs"),
        ("method.gamma=1", r"method\.gamma: unknown key"),
        ("wrong=1", r"task 'three', wrong: unknown key"),
        ("training.epochs=0", r"task 'three', training\.epochs: .*1 \(got 0\)"),
        ("method.ema_half_life_share=0.5", r"task 'three', method\..*give one of"),
        ("scoring=guess", r"task 'three': scoring: .*'rank'"),
        ("columns.question=prompt", r"task 'three': columns\.question"),
        ("training.epochs={", "is not a YAML value"),
    ],
)
def test_what_cannot_change_is_refused_with_the_reason(override: str, message: str, two_tasks: Path) -> None:
    before = (two_tasks / "config.yaml").read_text()
    with pytest.raises(InputError, match=message):
        add(two_tasks, ["three"], [override], quiet=True)
    assert (two_tasks / "config.yaml").read_text() == before


def test_settings_without_a_task_are_refused(two_tasks: Path) -> None:
    with pytest.raises(InputError, match="no task to add"):
        add(two_tasks, [], ["training.epochs=1"], quiet=True)


def test_a_rate_that_the_method_would_pass_over_is_refused(make_config: MakeConfig) -> None:
    tasks = "[one, {name: two, settings: {training.learning_rate: 0.1}}]"
    with pytest.raises(InputError, match=r"task 'two', training\.learning_rate: .*method\.learning_rate \(0\.03\)"):
        make_config(f"data.tasks={tasks}", method="l2p")
    with pytest.raises(InputError, match="joint"):
        make_config(f"data.tasks={tasks}", "stream=joint")


def test_a_finished_tasks_settings_cannot_be_changed_afterwards(grown: RunResult) -> None:
    with pytest.raises(InputError, match=r"data\.tasks"):
        resume(grown.path, ["data.tasks.2.settings={training.epochs: 9}"], quiet=True)


# -- new rows for an old task ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replaced(two_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Task one got new rows, from a folder of the same name."""
    base = tmp_path_factory.mktemp("replaced")
    shutil.copytree(two_tasks, base / "run")
    return add(base / "run", [str(write_task(base, "one", train=16, test=5))], replaces="one", quiet=True)


def test_a_task_is_replaced(replaced: RunResult, two_tasks: Path) -> None:
    assert [task["name"] for task in replaced.results["tasks"]] == ["one", "two", "one-2"]
    for part, place in zip((replaced.results, *replaced.contrast), (".", "contrast/er", "contrast/ewc"), strict=True):
        before = json.loads((two_tasks / place / "results.json").read_text())
        for name, variant in part["variants"].items():
            assert [row[:2] for row in variant["R"][:2]] == before["variants"][name]["R"]
            assert [score is None for score in variant["R"][2]] == [True, False, False]
            assert variant["summary"]["OP"] == pytest.approx(sum(variant["R"][2][1:]) / 2)
        kept = {task for task, _ in memory(replaced.path / place)["rows"]}
        assert kept == (set() if place.endswith("ewc") else {"two", "one-2"})
    write_report(replaced.path)
    assert "Task one was replaced by one-2" in (replaced.path / "report.html").read_text()
    assert history(replaced.path)["phases"][-1]["mean"] == replaced.results["variants"]["slow"]["summary"]["OP"]
    pair = pair_of(from_run(replaced.path, pairs="last"), "adjacent")
    assert [task.name for task in pair.tasks] == ["two", "one-2"]
    item = read_folder(replaced.path, replaced.path)
    assert isinstance(item, Run)
    assert item.order == ("two", "one-2")


def test_replacing_written_into_a_stream_is_the_same(
    replaced: RunResult, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed on the way, too."""
    new = {"name": "one-2", "path": str(replaced.path.parent / "one"), "replaces": "one"}
    config = make_config(*SMALL, f"data.tasks={json.dumps(['one', 'two', new])}")
    run_killed(config, tmp_path / "run", monkeypatch, at="step", count=4 + 4 + 2)
    whole = resume(tmp_path / "run", quiet=True)
    assert difference(weights(whole.path), weights(replaced.path)) == 0.0
    assert memory(whole.path) == memory(replaced.path)
    assert whole.results["tasks"] == replaced.results["tasks"]


def test_what_was_replaced_can_be_forgotten_and_replaced_again(replaced: RunResult, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(replaced.path, tmp_path / "run"))
    change.forget(folder, "one", report=lambda _run: None)
    rows = [{"prompt": f"newest {number} :", "answer": "cat"} for number in range(8)]
    again = add(folder, [Task("one", {"train": rows, "test": rows})], replaces="one-2", quiet=True)
    assert [task["name"] for task in again.results["tasks"]] == ["one", "two", "one-2", "one-3"]
    assert [score is None for score in again.results["variants"]["slow"]["R"][-1]] == [True, False, True, False]
    assert {task for task, _ in memory(folder)["rows"]} == {"two", "one-3"}
    change.forget(folder, "one-3", report=lambda _run: None)
    resume(folder, quiet=True)


@pytest.mark.parametrize(
    ("tasks", "old", "message"),
    [
        (["three"], "oen", r"--replace oen: no task .*there are two, one-2"),
        (["three"], "one", r"--replace one: no task .*there are two, one-2"),
        (["three", "one"], "two", "one task replaces another; 2"),
    ],
)
def test_what_cannot_be_replaced_is_refused(tasks: list[str], old: str, message: str, replaced: RunResult) -> None:
    with pytest.raises(InputError, match=message):
        add(replaced.path, tasks, replaces=old, quiet=True)


def test_only_an_earlier_task_of_a_sequence_is_replaced(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"task 'two', replaces: no earlier task 'three'"):
        make_config("data.tasks=[one, {name: two, replaces: three}, three]")
    with pytest.raises(InputError, match="joint"):
        make_config("data.tasks=[one, {name: two, replaces: one}]", "stream=joint")


def test_words_with_an_equals_sign_are_settings_unless_they_are_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lr=3").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["one", "lr=3", "data/a=b", "training.epochs=1", "columns.prompt=a=b", "lr=4"]
    assert tasks_and_settings(words) == (
        ["one", "lr=3", "data/a=b"],
        ["training.epochs=1", "columns.prompt=a=b", "lr=4"],
    )


def test_a_file_named_like_a_setting_is_a_task_and_a_long_setting_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "month=jan.csv").write_text("prompt,answer\na,b\n")
    long = f"columns.prompt={'{a} ' * 100}"
    assert tasks_and_settings(["month=jan.csv", long]) == (["month=jan.csv"], [long])


# -- another template for the next task --------------------------------------------------------------------------------


def test_open_ends_of_conversations_are_dropped_for_the_new_task(two_tasks: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_tasks, tmp_path / "run"))
    said = (("human", "why?"), ("gpt", "cat"), ("human", "sure?"))
    talks = [{"turns": [{"from": who, "value": f"{what} {n}"} for who, what in said]} for n in range(30)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    with pytest.raises(InputError, match=r"data\.unanswered=drop"):
        add(folder, [str(tmp_path / "talks.jsonl")], quiet=True)
    made = add(folder, [str(tmp_path / "talks.jsonl")], ["data.unanswered=drop", "epochs=1"], quiet=True)
    assert "30 conversations without the turns behind their last answer" in made.results["tasks"][-1]["read_as"]


def test_a_task_has_a_template_of_its_own(two_tasks: Path, tmp_path: Path) -> None:
    """Trained, remembered, scored and asked in it, and said; the tasks before keep theirs."""
    folder = Path(shutil.copytree(two_tasks, tmp_path / "run"))
    made = add(folder, ["three"], ["template=chat", "epochs=1"], quiet=True)
    assert [task["template"] for task in made.results["tasks"]] == ["none", "none", "chat"]
    assert prompt_template(made.results) == "chat"
    config = load_config(folder / "config.yaml")
    encoded = EncodedStream.of(config, load_tasks(config.data), Encoder(load_tokenizer(config.model), config.data))
    starts = {name: encoded.encoder.tokenizer.decode(rows[0].prompt)[:4] for name, rows in encoded.train.items()}
    assert starts == {"one": "one ", "two": "two ", "three": "[use"}
    weights_of = RunWeights(folder)
    asked = {name: weights_of.template(weights_of.named(name)) for name in ("phase:2", "phase:3", "base", "t:0.5")}
    assert asked == {"phase:2": "none", "phase:3": "chat", "base": "chat", "t:0.5": "chat"}
    assert history(folder)["changes"] == [
        "from task 3 (three) on: training.epochs 1",
        "three: prompts in the template chat",
    ]
    assert "its prompts stand in the template chat" in write_report(folder).read_text()
    exported = export_source(handover.from_run(folder), tmp_path / "out", kind="peft", wishes=Wishes())
    assert "in the base model's chat template" in (exported / "README.md").read_text()
    assert json.loads((exported / "ilora.json").read_text())["prompt"]["other_templates"] == dict.fromkeys(
        ["one", "two"], "none"
    )
    later = add(folder, [str(write_task(tmp_path, "four"))], ["epochs=1"], quiet=True)  # as the task before
    assert later.results["tasks"][-1]["template"] == "chat"
    with pytest.raises(InputError, match=r"task .three.|data\.tasks"):
        resume(folder, ["data.tasks.2.template=alpaca"], quiet=True)
