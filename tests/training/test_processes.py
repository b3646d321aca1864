"""One process or two: the same weights, the same predictions, one voice.

Two processes are forked with the environment that a launcher gives them, and run every method; a launcher itself runs
once.
"""

from __future__ import annotations

import json
import multiprocessing.connection
import os
import platform
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ilora import run
from ilora.cli import PATIENCE
from ilora.config import Config, load_config
from ilora.methods import METHODS
from ilora.training.processes import joined
from ilora.training.watch import LOST_AFTER, meeting
from tests.helpers import FEW_SCORES, MakeConfig, difference, settings, weights
from tests.processes import ilora_forks, module_fork, steps, wait_for, write_config

pytestmark = pytest.mark.slow

# Two processes run every method with the base in parts. These run with whole weights, too: they use gradients before
# these are summed, or change the base's own weights.
WHOLE = ["gem", "osft"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_two(*arguments: object, log: Path, broken: Mapping[int, str] = MappingProxyType({})) -> list[BaseProcess]:
    """The command in two processes that know of each other; their output in `log-0.out`, `log-1.out` and so on.

    broken: by process, the name of a function that fails there.
    """
    return start_pair([arguments], log=log, broken=broken)


def start_pair(
    commands: Sequence[Sequence[object]],
    *,
    log: Path,
    broken: Mapping[int, str] = MappingProxyType({}),
    count: int = 2,
    machines: int = 1,
    **environment: str,
) -> list[BaseProcess]:
    """Several commands, one after the other, in two processes, or in so many on so many machines."""
    port = free_port()
    return [
        ilora_forks(
            commands,
            log=log.with_name(f"{log.name}-{rank}"),
            broken=broken.get(rank),
            patience=0.1 if broken else PATIENCE,  # no launcher ends the other process when one has failed
            **member(rank, port, count=count, machines=machines),
            **environment,
        )
        for rank in range(count)
    ]


def member(rank: int, port: int, *, count: int = 2, machines: int = 1) -> dict[str, str]:
    """The environment that a launcher gives to a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count // machines),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def in_two(*arguments: object, log: Path) -> None:
    """The same, to a good end, in which the second process has said nothing."""
    finished(start_two(*arguments, log=log), log=log)


def finished(processes: list[BaseProcess], *, log: Path, runs: int = 1) -> None:
    """They come to a good end, and the second process has said nothing."""
    for process in processes:
        process.join(240)
    ranks = range(len(processes))
    said = [log.with_name(f"{log.name}-{rank}.{kind}").read_text() for rank in ranks for kind in ("out", "err")]
    assert [process.exitcode for process in processes] == [0 for _ in ranks], said
    assert not any(said[1:])
    assert said[0].count("report:") == runs


def predictions(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.glob("predictions/**/*.jsonl")}


def assert_equal(one: Path, two: Path) -> None:
    """Two's weights and predictions are one's, and it was really two processes."""
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    assert difference(weights(one), weights(two)) <= 1e-5
    assert predictions(one) == predictions(two)
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert first["terms"] == pytest.approx(second["terms"], abs=1e-5)
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], abs=1e-4)
        assert first.get("validation_loss") == pytest.approx(second.get("validation_loss"), abs=1e-5)


def metrics(folder: Path) -> list[dict[str, object]]:
    file = folder / "metrics.jsonl"  # a method without steps has none
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def uneven(make_config: MakeConfig, **sections: object) -> Config:
    """13 rows a task, 5 a step: batches that two processes cannot share equally. Dropout masks are per forward pass.

    The validation loss is measured on 3 rows.
    """
    return make_config(
        *FEW_SCORES,
        "adapter.dropout=0",
        "data.tasks=[one, two]",
        "data.limit={train: 13, eval: 3, test: 5}",
        "training.stop_when={every: 2, patience: 9}",
        "training.epochs=1",
        "training.global_batch_size=5",
        "training.micro_batch_size=2",
        **sections,
    )


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    return uneven(make_config)


@pytest.fixture(scope="module")
def by_two(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each method's config-<name>.yaml and its run <name>, with the base in parts, and some <name>-whole,
    all by the same two processes.
    """
    folder = tmp_path_factory.mktemp("two")
    commands = []
    for name in METHODS:
        file = write_config(folder / f"config-{name}.yaml", uneven(make_config, method=settings(name)))
        commands.append(("run", file, "model.shard=full", "--out", folder / name))
        if name in WHOLE:
            commands.append(("run", file, "--out", folder / f"{name}-whole"))
    finished(start_pair(commands, log=folder / "log"), log=folder / "log", runs=len(commands))
    return folder


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("name", list(METHODS))
def test_two_processes_equal_one(name: str, by_two: Path, tmp_path: Path) -> None:
    one = run(load_config(by_two / f"config-{name}.yaml"), tmp_path / "one", quiet=True)
    assert_equal(one.path, by_two / name)
    if name in WHOLE:
        assert_equal(one.path, by_two / f"{name}-whole")


def on_two_machines(*arguments: object, log: Path) -> list[BaseProcess]:
    """The command under two launchers of this machine that meet as two machines do, each with one process."""
    place = f"127.0.0.1:{free_port()}"
    meeting = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", place)
    ours = (*meeting, "--rdzv-id", "7", "--local-addr", "127.0.0.1", "-m", "ilora", *arguments)
    return [
        module_fork("torch.distributed.run", *ours, log=log.with_name(f"{log.name}-{machine}"), OMP_NUM_THREADS="1")
        for machine in range(2)
    ]


def worker_of(launcher: BaseProcess) -> int:
    """The process id of the one process that a launcher has started."""
    (child,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return int(child)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for a launcher's process in /proc")
def test_one_process_of_two_machines_killed_and_resumed_gives_the_same_bits(config: Config, tmp_path: Path) -> None:
    file, killed = write_config(tmp_path / "config.yaml", config), tmp_path / "killed"
    in_two("run", file, "--out", tmp_path / "whole", log=tmp_path / "whole-log")
    launchers = on_two_machines("run", file, "--out", killed, log=tmp_path / "log")
    wait_for(steps(4), killed, launchers[0].is_alive)
    os.kill(worker_of(launchers[1]), signal.SIGKILL)
    said = end_of(launchers, tmp_path / "log")
    assert "ilora: another process of this run has ended" in said  # the other machine's
    assert "Signal 9 (SIGKILL)" in said  # the launcher's, on the machine where it was
    assert f"`ilora resume {killed}` goes on from there" in said
    assert len(metrics(killed)) < len(metrics(tmp_path / "whole")) == 6
    again = on_two_machines("resume", killed, log=tmp_path / "resumed")
    finished(again, log=tmp_path / "resumed")
    assert difference(weights(tmp_path / "whole"), weights(killed)) == 0.0
    assert predictions(tmp_path / "whole") == predictions(killed)


def test_real_launcher(config: Config, tmp_path: Path) -> None:
    """`accelerate launch`, which starts its processes by `torchrun`'s own code."""
    file, log = write_config(tmp_path / "config.yaml", config), tmp_path / "log"
    options = [
        *("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", free_port()),
    ]
    ours = ("-m", "ilora", "run", file, "--out", tmp_path / "two")
    launcher = module_fork("accelerate.commands.launch", *options, *ours, log=log, OMP_NUM_THREADS="1")
    one = run(config, tmp_path / "one", quiet=True)
    launcher.join(120)
    out, err = (log.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
    assert (launcher.exitcode, err) == (0, "")
    for said in ("ilora after 01-one", "ilora after 02-two", "report:", "adapter:"):
        assert out.count(said) == 1
    assert_equal(one.path, tmp_path / "two")


def end_of(processes: list[BaseProcess], log: Path) -> str:
    """What two processes say when one of them has failed; the other one ends within a minute, by itself."""
    for process in processes:
        process.join(60)
    assert all(process.exitcode for process in processes)  # neither 0 nor still at work
    return "".join(log.with_name(f"{log.name}-{rank}.err").read_text() for rank in range(2))


def refused(*arguments: object, log: Path) -> str:
    """What two processes say of bad input when, as under a launcher, the first one to end ends the other."""
    processes = start_two(*arguments, log=log)
    multiprocessing.connection.wait([process.sentinel for process in processes], timeout=60)
    assert any(process.exitcode for process in processes)
    for process in processes:
        process.terminate()
    said = end_of(processes, log)
    assert said.count("ilora: ") == 1
    return said


def test_a_process_waits_for_long_work_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of ten million rows take an hour; the limits of communication libraries are 10 and 30 minutes."""
    given: dict[str, Any] = {}

    def noted(**options: Any) -> SimpleNamespace:
        given.update(options)
        return SimpleNamespace(device=torch.device("cpu"))

    monkeypatch.setattr("ilora.training.processes.Accelerator", noted)
    joined()
    (patience,) = given["kwargs_handlers"]
    assert patience.timeout >= timedelta(hours=12)


def test_bad_input_that_every_process_sees_is_said_once(config: Config, tmp_path: Path) -> None:
    file = write_config(tmp_path / "config.yaml", config)
    said = refused("run", file, "data.tasks=[one, tow]", "--out", tmp_path / "run", log=tmp_path / "log")
    assert said.count("no task 'tow' (did you mean 'two'?)") == 1
    assert not (tmp_path / "run").exists()


def test_bad_input_that_the_first_process_sees_ends_both(config: Config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    file = write_config(tmp_path / "config.yaml", config)
    said = refused("run", file, "--out", tmp_path / "run", log=tmp_path / "log")
    assert said.count("exists already") == 1
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("rank", "broken"),
    [
        pytest.param(0, "ilora.training.checkpoint.save", id="writing in the first"),
        pytest.param(0, "ilora.training.session.optimizer_step", id="a step of the first"),
        pytest.param(1, "ilora.training.session.optimizer_step", id="a step of the second"),
        pytest.param(1, "ilora.training.evaluating.evaluate", id="answers of the second"),
    ],
)
def test_an_error_in_one_process_ends_both(rank: int, broken: str, config: Config, tmp_path: Path) -> None:
    file, log = write_config(tmp_path / "config.yaml", config), tmp_path / "log"
    processes = start_two("run", file, "--out", tmp_path / "run", log=log, broken={rank: broken})
    said = end_of(processes, log)
    assert "ZeroDivisionError: broken for the test" in said  # its traceback: it is no error that is expected
    assert said.count("ilora: ") == 1


def test_a_killed_process_ends_the_other_with_a_message(config: Config, tmp_path: Path) -> None:
    file, log = write_config(tmp_path / "config.yaml", config), tmp_path / "log"
    processes = start_two("run", file, "training.epochs=50", "--out", tmp_path / "run", log=log)
    wait_for(steps(3), tmp_path / "run", processes[0].is_alive)
    processes[1].kill()
    said = end_of(processes, log)
    assert said.startswith("ilora: another process of this run has ended")
    assert f"`ilora resume {tmp_path / 'run'}` goes on from there" in said


def test_a_process_that_is_silent_ends_the_other_with_a_message(config: Config, tmp_path: Path) -> None:
    """As where a machine has lost its power or its network: its connections stay open."""
    file, log = write_config(tmp_path / "config.yaml", config), tmp_path / "log"
    command = ("run", file, "training.epochs=50", "--out", tmp_path / "run")
    first, second = start_pair([command], log=log, **{LOST_AFTER: "2"})
    wait_for(steps(3), tmp_path / "run", first.is_alive)
    assert second.pid is not None
    os.kill(second.pid, signal.SIGSTOP)
    first.join(60)
    assert first.exitcode == 1
    second.kill()
    said = log.with_name("log-0.err").read_text()
    assert said.startswith("ilora: process 1 of 2 has not been heard of for ")
    assert f"`ilora resume {tmp_path / 'run'}` goes on" in said


def test_a_process_that_never_comes_ends_the_other_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timer, given, codes, ended = threading.Timer, [], [], threading.Event()

    def soon(seconds: float, *what: Any) -> threading.Timer:
        given.append(seconds)
        return timer(0.0, *what)

    monkeypatch.setattr("threading.Timer", soon)
    monkeypatch.setattr("os._exit", lambda code: (codes.append(code), ended.set()))
    with meeting():  # alone
        assert given == []
    monkeypatch.setenv("WORLD_SIZE", "3")
    with meeting():
        assert ended.wait(10)
    assert codes == [1]
    assert 60 < given[0] <= 300
    assert "not all 3 processes are here" in capsys.readouterr().err


def refused_on_two_machines(*commands: Sequence[object], log: Path) -> str:
    """What two processes say of bad input that one of them has alone, each with a command and a machine of its own."""
    port = free_port()
    processes = [
        ilora_forks([command], log=log.with_name(f"log-{rank}"), **member(rank, port) | {"LOCAL_RANK": "0"})
        for rank, command in enumerate(commands)
    ]
    said = end_of(processes, log)
    assert [process.exitcode for process in processes] == [2, 2]
    return said


def test_a_folder_that_a_process_does_not_see_is_refused(config: Config, tmp_path: Path) -> None:
    """Two machines with disks of their own: the path leads each to another folder."""
    file, disks = write_config(tmp_path / "config.yaml", config), [tmp_path / "here", tmp_path / "there"]
    for disk in disks:
        disk.mkdir()
    said = refused_on_two_machines(*(("run", file, "--out", disk / "run") for disk in disks), log=tmp_path / "log")
    assert "must be on storage that all processes share" in said
    assert f"not seen by process 1 on {platform.node()}" in said
    assert [*tmp_path.glob("here/*"), *tmp_path.glob("there/*")] == []


def test_a_run_that_a_process_does_not_see_is_not_resumed(config: Config, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    write_config(tmp_path / "here" / "config.yaml", config)
    places = (tmp_path / "here", tmp_path / "there")
    said = refused_on_two_machines(*(("resume", place) for place in places), log=tmp_path / "log")
    assert said.count(f"not seen by process 1 on {platform.node()}") == 2


def test_rows_that_one_process_has_lost_are_missed_by_both(config: Config, tmp_path: Path) -> None:
    """Each machine has its own copy of the data; on one it is gone."""
    file, places = write_config(tmp_path / "config.yaml", config), (config.data.path, tmp_path)
    commands = [("run", file, f"data.path={place}", "--out", tmp_path / "run") for place in places]
    said = refused_on_two_machines(*commands, log=tmp_path / "log")
    assert said.count(f"{tmp_path}: no tasks; ") == 2
    assert "ilora: process 1: " in said
    assert not (tmp_path / "run").exists()


def test_rows_that_differ_between_machines_are_missed_by_both(config: Config, tmp_path: Path) -> None:
    """As many rows with the same prompts: nothing else would tell."""
    assert config.data.path is not None
    shutil.copytree(config.data.path, tmp_path / "other")
    changed = tmp_path / "other" / "one" / "train.json"
    rows = json.loads(changed.read_text(encoding="utf-8"))
    rows[0]["answer"], rows[1]["answer"] = rows[1]["answer"], rows[0]["answer"] + " not"
    changed.write_text(json.dumps(rows), encoding="utf-8")
    file = write_config(tmp_path / "config.yaml", config)
    places = (config.data.path, tmp_path / "other")
    commands = [("run", file, f"data.path={place}", "--out", tmp_path / "run") for place in places]
    said = refused_on_two_machines(*commands, log=tmp_path / "log")
    assert said.count(f"task 'one': process 1 on {platform.node()} sees another content than process 0") == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shard", ["none", "full"])
def test_weights_that_differ_between_machines_are_missed_by_both(shard: str, config: Config, tmp_path: Path) -> None:
    model = Path(config.model.name)
    shutil.copytree(model, tmp_path / "other")
    weights = {key: 1.1 * value for key, value in load_file(model / "model.safetensors").items()}
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    file = write_config(tmp_path / "config.yaml", config)
    more = (f"model.shard={shard}", "--out", tmp_path / "run")
    commands = [("run", file, f"model={place}", *more) for place in (model, tmp_path / "other")]
    said = refused_on_two_machines(*commands, log=tmp_path / "log")
    assert said.count("the weights of model") == said.count("sees another content than process 0") == 2
    assert not (tmp_path / "run").exists()


def test_a_text_that_one_process_has_lost_is_missed_by_both(config: Config, tmp_path: Path) -> None:
    """After the model is loaded."""
    file, text = write_config(tmp_path / "config.yaml", config), tmp_path / "text.txt"
    text.write_text("one small old red : fox. " * 12, encoding="utf-8")
    commands = [
        ("run", file, f"evaluation.perplexity_file={place}", "--out", tmp_path / "run")
        for place in (text, tmp_path / "lost.txt")
    ]
    said = refused_on_two_machines(*commands, log=tmp_path / "log")
    assert said.count("lost.txt") == 2
    assert "ilora: process 1: " in said
    assert not (tmp_path / "run").exists()
