"""The command: what a user sees. Bad input is one message on stderr, exit code 2, and nothing on disk changes."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError

from ilora import __version__, files
from ilora.config import Config
from ilora.methods.ilora import ILoRA
from ilora.model import adapters
from ilora.training import checkpoint, session
from tests.command import Command, Refused, tree
from tests.helpers import difference, weights, write_task
from tests.processes import Done, ilora_process

# -- configurations --------------------------------------------------------------------------------------------------


def test_all_problems_of_a_configuration_in_one_message(config: Path, refused: Refused) -> None:
    values = yaml.safe_load(config.read_text())
    values["training"] |= {"epoch": 3, "epochs": 0, "learning_rate": "fast"}
    values["evaluation"]["unseen"] = "some"
    values["method"]["ema_dekay"] = 0.5
    config.write_text(yaml.safe_dump(values))
    message = refused(
        "run",
        config,
        says=[
            f"{config}: 4 problem(s)",
            "training.epoch: unknown key (did you mean 'epochs'?)",
            "training.epochs: Input should be greater than or equal to 1 (got 0)",
            "training.learning_rate: Input should be a valid number",
            "evaluation.unseen: Input should be 'none', 'next' or 'all' (got 'some')",
        ],
    )
    assert len(message.splitlines()) == 6  # the last: the method's settings come after these
    assert "ema_dekay" not in message
    refused(
        "run",
        config,
        "training={}",
        "evaluation={}",
        says=["method.ema_dekay: unknown key (did you mean 'ema_decay'?)"],
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method.name=ilor", ["unknown method 'ilor' (did you mean 'ilora'?)", "sequential"]),
        ("method.name=no.such:Method", ["no.such:Method"]),
        ("training.epochs", ["'training.epochs'", "key=value"]),
        ("adapter.dropout=1", ["adapter.dropout: Input should be less than 1"]),
        ("training.learning_rate=.nan", ["training.learning_rate"]),
        ("name=../up", ["name: "]),
        ("data.benchmark=mini", ["unknown benchmark 'mini' (did you mean 'mini8'?)"]),
        ("data.tasks=[one, tow]", ["no task 'tow' (did you mean 'two'?)", "one, two"]),
        ("data.tasks=[one, two, one]", ["duplicate task names 'one' and 'one'"]),
        ("data.tasks=[one, a/b]", ["'a/b'", "allowed are"]),
        ("data.tasks=[one, ..]", ["'..'", "allowed are"]),
        ('data.tasks=[one, "a\\nb"]', [r"'a\nb'", "allowed are"]),
        ("data.tasks=[{name: one, metric: accurac}]", ["accurac", "accuracy"]),
        ("data.max_length=16", ["one/train/", "data.max_length (16)", "answer"]),
        ("adapter.target_modules=[attention]", ["adapter.target_modules", "q_proj", "all-linear"]),
    ],
)
def test_bad_setting_is_refused(override: str, says: list[str], config: Path, refused: Refused, tmp_path: Path) -> None:
    if "max_length" in override:
        rows = json.loads((tmp_path / "tasks/one/train.json").read_text())
        rows[3]["answer"] = "a very long answer, " * 10
        (tmp_path / "tasks/one/train.json").write_text(json.dumps(rows))
        says = [*says, "one/train/3"]
    refused("run", config, override, says=says)


def test_configuration_file_that_cannot_be_read(refused: Refused, tmp_path: Path) -> None:
    refused("run", "none.yaml", says=["none.yaml: no such configuration file"])
    (tmp_path / "broken.yaml").write_text("data: [1,\nmodel: }")
    refused("run", "broken.yaml", says=["broken.yaml: not valid YAML", "line 2"])
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    refused("run", "latin.yaml", says=["latin.yaml: not UTF-8 (byte 9)"])


def test_unknown_model_writes_nothing(
    config: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused("run", config, "model.name=/no/such/model", says=["'/no/such/model'", "config.json", "smollm2-135m"])
    (tmp_path / "broken-model").mkdir()
    (tmp_path / "broken-model" / "config.json").write_text("{}")
    refused("run", config, f"model.name={tmp_path / 'broken-model'}", says=["broken-model", "local folder"])


def test_unknown_hub_model_without_a_network(config: Path, tmp_path: Path) -> None:
    """In a real process. One to a good end, and an interrupted one: tests/training/test_{processes,interrupt}.py."""
    before = tree(tmp_path)
    done = ilora_process(
        "run", config, "model.name=no-such/model", "--out", tmp_path / "run", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
    )
    assert done.code == 2
    assert "ilora: model 'no-such/model'" in done.err
    assert "HF_HUB_OFFLINE is set" in done.err
    assert "Give a local folder" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()
    assert {key for key in tree(tmp_path) if not key.startswith(("hub", "modules"))} >= set(before)


def test_tracker_that_is_not_installed(config: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "trackio" else find(name, *a))
    refused("run", config, "trackers=[trackio]", says=["trackio is not installed", "pip install 'ilora[trackio]'"])
    refused("run", config, "trackers=[mlflow]", says=["trackers.0", "'tensorboard', 'wandb' or 'trackio'"])


# -- data ------------------------------------------------------------------------------------------------------------

GOOD = '{"prompt": "a", "answer": "b"}'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(f"{GOOD}\n{{'prompt'}}\n", ["train.jsonl:2", "not JSON"], id="malformed line"),
        pytest.param(f'{GOOD}\n{{"answer": "b"}}\n', ["train.jsonl:2: no 'prompt'", "'answer'"], id="no prompt"),
        pytest.param(f'{GOOD}\n{{"prompt": "b"}}\n', ["train.jsonl:2: no 'answer'", "'prompt'"], id="no answer"),
        pytest.param(f'{{"prompt": "a", "answer": ""}}\n{GOOD}', ["train.jsonl:1: 'answer' is empty"], id="empty"),
        pytest.param(f"{GOOD}\n\xe9".encode("latin-1"), ["train.jsonl:2: not UTF-8", "0xe9"], id="not UTF-8"),
        pytest.param("\n", ["train.jsonl: no rows"], id="no rows"),
        pytest.param(None, ["no train split", "train as .json"], id="missing split"),
    ],
)
def test_bad_data_is_refused_with_file_and_line(
    content: str | bytes | None, says: list[str], config: Path, refused: Refused, tmp_path: Path
) -> None:
    task = tmp_path / "tasks" / "two"
    (task / "train.json").unlink()
    if content is not None:
        (task / "train.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    refused("run", config, says=[str(task), *says])


# -- run folders -----------------------------------------------------------------------------------------------------


def test_folders_that_cannot_be_used(config: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    refused("run", config, "--out", "there", says=["there: exists already", "ilora resume there", "--out"])
    refused("resume", "there", says=["there: not a run folder", "config.yaml"])
    refused("resume", "nowhere", says=["nowhere: not a run folder"])
    refused("add", "nowhere", "one", says=["nowhere: not a run folder"])


def test_finished_run_refuses_what_does_not_fit(config: Path, ilora: Command, refused: Refused, tmp_path: Path) -> None:
    assert ilora("run", config, "--out", "run", "--quiet") == Done(0, "", "")
    refused("run", config, "--out", "run", says=["run: exists already"])
    refused("add", "run", "tasks/three", says=["tasks/three: no such file or folder of rows"])
    refused("add", "run", "three", says=["no task 'three'", "there are one, two"])
    refused("add", "run", "two", says=["duplicate task names 'two' and 'two'"])
    refused("add", "run", "tasks/one", says=["duplicate task names 'one' and 'one'", "--replace"])
    write_task(tmp_path / "tasks", "three")
    rows = json.loads((tmp_path / "tasks/three/train.json").read_text())
    rows[5]["answer"] = "a very long answer, " * 20
    (tmp_path / "tasks/three/train.json").write_text(json.dumps(rows))
    refused("add", "run", "tasks/three", says=["'three'", "three/train/5", "data.max_length (64)"])


def test_resume_refuses_another_configuration_and_other_data(
    config: Path, ilora: Command, refused: Refused, tmp_path: Path
) -> None:
    assert ilora("run", config, "--out", "run").code == 0
    settings = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(settings.replace("learning_rate: 0.002", "learning_rate: 0.003"))
    refused("resume", "run", says=["training.learning_rate was 0.002, is 0.003", "Put it back"])
    (tmp_path / "run/config.yaml").write_text(settings)
    rows = (tmp_path / "tasks/two/eval.json").read_text()
    (tmp_path / "tasks/two/eval.json").write_text(rows.replace("cat", "dog", 1))
    refused("resume", "run", says=["task 'two'", "changed since the run began", str(tmp_path / "tasks")])
    (tmp_path / "tasks/two/eval.json").write_text(rows)
    assert ilora("resume", "run").code == 0


def test_unfinished_run_takes_no_task(
    config: Path, ilora: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 3)
        assert ilora("run", config, "--out", "run").code == 130
    refused("add", "run", "tasks/one", says=["run: not finished; `ilora resume run` first, then add"])
    assert ilora("run", config, "--out", "joint", "stream=joint").code == 0
    write_task(Path("tasks"), "three")
    refused("add", "joint", "tasks/three", says=["joint: a joint run has no next task"])


# -- work that meets a problem -----------------------------------------------------------------------------------------


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing_from(call: int, original: Callable[..., Any], fail: Callable[..., Any]) -> Callable[..., Any]:
    """`original` for the first calls, `fail` from the `call`-th on."""
    calls = 0

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return fail(*arguments, **named) if calls >= call else original(*arguments, **named)

    return counting


def interrupt_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C while the `step`-th optimizer step is under way."""

    def interrupted(*arguments: Any, **named: Any) -> Any:
        report = original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGINT)
        return report

    original = session.optimizer_step
    patch.setattr(session, "optimizer_step", failing_from(step, original, interrupted))


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """The weights of the uninterrupted run; filled by the first test that needs them."""
    return {}


@pytest.fixture
def whole(config: Path, ilora: Command, expected: dict[str, torch.Tensor], tmp_path: Path) -> dict[str, torch.Tensor]:
    if not expected:
        assert ilora("run", config, "--out", "whole").code == 0
        expected |= weights(tmp_path / "whole")
    return expected


class BrokenStream:
    """A file on a full disk: opening it works, writing does not."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> BrokenStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, text: str) -> None:
        self.file.write(text[: len(text) // 2])
        full_disk()


def fill_disk(patch: pytest.MonkeyPatch, what: str) -> None:
    write, save, path_open = checkpoint.write_flushed, adapters.save, Path.open

    def on_files(name: str) -> Callable[[Path, bytes], None]:
        calls = 0

        def writing(path: Path, data: bytes) -> None:
            nonlocal calls
            calls += name in str(path)
            if name in str(path) and calls >= 6:
                path.write_bytes(data[: len(data) // 2])
                full_disk()
            write(path, data)

        return writing

    if what == "metrics.jsonl":
        broken = failing_from(4, path_open, lambda path, *a, **k: BrokenStream(path_open(path, *a, **k)))
        patch.setattr(
            Path,
            "open",
            lambda path, *a, **k: (broken if path.name == "metrics.jsonl" else path_open)(path, *a, **k),
        )
    elif what.startswith("adapters"):
        error = SafetensorError("I/O error: No space left on device (os error 28)")

        def fail(*_: object) -> None:
            raise error

        patch.setattr(adapters, "save", failing_from(2, save, fail if "safetensors" in what else full_disk))
    else:
        writing = on_files(what)
        for module in (checkpoint, files):
            patch.setattr(module, "write_flushed", writing)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("checkpoints", "checkpoints/0"),
        ("metrics.jsonl", "metrics.jsonl"),
        ("predictions", "predictions/after-01-one/"),
        ("adapters, safetensors", "adapters/02-two"),
        ("adapters, system", "adapters/02-two"),
    ],
)
def test_full_disk_keeps_the_last_good_checkpoint(
    what: str,
    named: str,
    whole: dict[str, torch.Tensor],
    config: Path,
    ilora: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, what)
        done = ilora("run", config, "--out", "run")
    assert done.code == 1
    assert f"ilora: run/{named}" in done.err
    assert "No space left on device" in done.err
    assert "Traceback" not in done.err
    newest = max((tmp_path / "run/checkpoints").glob("[0-9]*"))
    assert f"the last good state is {newest.relative_to(tmp_path)}; `ilora resume run`" in done.err
    assert checkpoint.load_latest(newest.parent)[0] is not None
    assert not [path for path in tree(tmp_path / "run") if "-writing" in path]
    assert ilora("resume", "run").code == 0
    assert difference(whole, weights(tmp_path / "run")) == 0.0
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 7))


def test_lost_loss_says_where_and_keeps_the_checkpoint(
    whole: dict[str, torch.Tensor],
    config: Path,
    ilora: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss = ILoRA.loss
    with monkeypatch.context() as patch:
        patch.setattr(ILoRA, "loss", failing_from(6, loss, lambda *a: loss(*a) * float("nan")))
        done = ilora("run", config, "--out", "run")
    assert done.code == 1
    assert "ilora: the loss is not finite (nan) at task 'two', step 2 of 3 (step 5 of the run" in done.err
    assert "the last good state is run/checkpoints/000004; `ilora resume run`" in done.err
    assert "Traceback" not in done.err
    assert ilora("resume", "run").code == 0
    assert difference(whole, weights(tmp_path / "run")) == 0.0


@pytest.mark.parametrize("rate", ["1e4", "1e20"])
def test_an_absurd_learning_rate_ends_the_run(rate: str, config: Path, ilora: Command, tmp_path: Path) -> None:
    """Whether a number overflows, which differs between processors, or not."""
    done = ilora("run", config, f"training.learning_rate={rate}", "--out", "run")
    assert done.code == 1
    assert "training has diverged" in done.err
    assert "step 1 of the run, learning rate" in done.err
    assert "training.learning_rate" in done.err
    assert "the last good state is run/checkpoints/000001; `ilora resume run`" in done.err
    assert [path.name for path in list((tmp_path / "run").glob("checkpoints/*"))] == ["000001"]


def test_interruption_says_how_to_go_on(
    whole: dict[str, torch.Tensor],
    config: Path,
    ilora: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 5)
        done = ilora("run", config, "--out", "run")
    assert done.code == 130
    assert done.err == (
        "ilora: interrupted\nthe last good state is run/checkpoints/000005; `ilora resume run` goes on from there\n"
    )
    resumed = ilora("resume", "run")
    assert resumed.code == 0
    assert "going on after step 2 of task 2 of 2" in resumed.out
    assert difference(whole, weights(tmp_path / "run")) == 0.0


# -- output ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "run", "resume", "add", "list", "config", "config show", "config schema"])
def test_help(command: str, ilora: Command) -> None:
    done = ilora(*command.split(), "--help")
    assert done.code == 0
    assert "Usage: ilora" in done.out
    assert done.err == ""


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", ["ilora", "er", "sequential", "2402.18865"]),
        ("benchmarks", ["mini"]),
        ("metrics", ["accuracy"]),
        ("models", ["smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "<folder>"]),
    ],
)
def test_list(kind: str, names: list[str], ilora: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = ilora("list", kind)
    assert done.code == 0
    for name in names:
        assert name in done.out


def test_list_of_something_else(refused: Refused) -> None:
    refused("list", "method", says=["'method'", "did you mean 'methods'?", "methods, benchmarks, metrics, models"])


def test_config_show_writes_out_what_runs(config: Path, ilora: Command) -> None:
    done = ilora("config", "show", config, "training.epochs=7", "method=er")
    shown = yaml.safe_load(done.out)
    assert done.code == 0
    assert shown["training"]["epochs"] == 7
    assert shown["training"]["global_batch_size"] == 8
    assert shown["method"]["name"] == "er"
    assert Config(**shown).dump() == shown


def test_config_schema_is_json(ilora: Command) -> None:
    schema = json.loads(ilora("config", "schema").out)
    assert {"model", "adapter", "data", "method", "training", "evaluation"} <= set(schema["properties"])


@pytest.mark.usefixtures("report")
def test_run_prints_the_table_the_report_and_the_adapter(config: Path, ilora: Command, tmp_path: Path) -> None:
    done = ilora("run", config, "--out", "run")
    assert done.code == 0
    assert done.err == ""
    assert "ilora after 01-one: one " in done.out
    assert "report:   run/report.html" in done.out
    assert 'PeftModel.from_pretrained(base, "run/adapters/02-two/slow")' in done.out
    assert (tmp_path / "run/report.html").is_file()


def test_usage_errors_have_exit_code_2(ilora: Command) -> None:
    for arguments in (["no-such-command"], ["run"], ["run", "x.yaml", "--no-such-option"]):
        done = ilora(*arguments)
        assert done.code == 2
        assert "Usage: ilora" in done.err


def test_lines_of_other_libraries_are_hidden_unless_asked_for(ilora: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, expected in ((["--verbose", "list", "methods"], None), (["list", "methods"], "1")):
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
        assert ilora(*arguments).code == 0
        assert os.environ.get("TQDM_DISABLE") == expected


def test_the_version(ilora: Command) -> None:
    assert ilora("--version") == Done(0, f"ilora {__version__}\n", "")
