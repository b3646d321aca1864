"""Real processes, killed for real: whatever the moment, `ilora resume` ends at the same bits.

They are forked from a process that has done the imports: they start at once, not after many seconds.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ilora import InputError, resume, run
from ilora.config import Config
from ilora.training.interrupt import StopRequest
from tests.helpers import MakeConfig
from tests.processes import Moment, ilora_fork, outcome, steps, there, wait_for, write_config


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """Two tasks of 12 steps, a checkpoint every 8."""
    return make_config("data.tasks=[one, two]", "training.epochs=4", "training.checkpoint_every=8")


@pytest.fixture(scope="module")
def expected() -> dict[str, bytes]:
    """The files of the uninterrupted run; filled by the first test that needs them."""
    return {}


@pytest.fixture
def whole(config: Config, expected: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    if not expected:
        run(config, tmp_path / "whole", quiet=True)
        expected |= outcome(tmp_path / "whole")
    assert len(expected) == 4 + 2 + 4 + 4  # two tasks, two adapters; base, and two phases of two tasks by two adapters
    return expected


def start_and_wait(config: Config, folder: Path, moment: Moment) -> BaseProcess:
    """`ilora run` as a process, at the moment."""
    file = write_config(folder / "config.yaml", config)
    process = ilora_fork("run", file, "--out", folder / "run", log=folder / "log")
    wait_for(moment, folder / "run", process.is_alive)
    return process


def end(process: BaseProcess, number: signal.Signals) -> int | None:
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(there("predictions/after-00-base/*.jsonl"), id="first evaluation"),
        pytest.param(steps(3), id="before a checkpoint in the task"),
        pytest.param(steps(10), id="mid-task"),
        pytest.param(there("adapters/.*-writing"), id="adapters half written"),
        pytest.param(there("predictions/after-01-one/*.jsonl"), id="mid-evaluation"),
        pytest.param(steps(20), id="second task"),
    ],
)
def test_killed_and_resumed(moment: Moment, config: Config, whole: dict[str, bytes], tmp_path: Path) -> None:
    process = start_and_wait(config, tmp_path, moment)
    assert end(process, signal.SIGKILL) == -signal.SIGKILL
    assert len(outcome(tmp_path / "run")) < len(whole)
    resume(tmp_path / "run", quiet=True)
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
def test_killed_again_and_again(config: Config, whole: dict[str, bytes], tmp_path: Path) -> None:
    end(start_and_wait(config, tmp_path, steps(4)), signal.SIGKILL)
    for count in (9, 11, 14, 20):
        again = ilora_fork("resume", tmp_path / "run", log=tmp_path / "log")
        wait_for(steps(count), tmp_path / "run", again.is_alive)
        end(again, signal.SIGKILL)
    resume(tmp_path / "run", quiet=True)
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [steps(10), there("predictions/after-01-one/*.jsonl")], ids=["training", "scoring"])
def test_signal_writes_a_checkpoint_and_says_how_to_go_on(
    moment: Moment, number: signal.Signals, config: Config, whole: dict[str, bytes], tmp_path: Path
) -> None:
    process = start_and_wait(config, tmp_path, moment)
    assert end(process, number) == 130
    newest = max((tmp_path / "run/checkpoints").iterdir())
    assert (tmp_path / "log.err").read_text() == (
        f"ilora: interrupted\nthe last good state is {newest}; `ilora resume {tmp_path / 'run'}` goes on from there\n"
    )
    assert "stopping after this step" in (tmp_path / "log.out").read_text()
    lines = (tmp_path / "run/metrics.jsonl").read_text().count("\n")
    resume(tmp_path / "run", quiet=True)
    assert outcome(tmp_path / "run") == whole
    assert 10 <= lines < 24
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 24


@pytest.mark.slow
def test_second_process_on_one_run_is_refused(config: Config, whole: dict[str, bytes], tmp_path: Path) -> None:
    first = start_and_wait(config, tmp_path, steps(5))
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)  # it holds the run, and cannot end
    try:
        with pytest.raises(InputError, match=r"run: another process is working on this run"):
            resume(tmp_path / "run", quiet=True)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.join(60)
    assert (first.exitcode, (tmp_path / "log.err").read_text()) == (0, "")
    assert outcome(tmp_path / "run") == whole


def test_first_signal_asks_second_one_interrupts() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(notify=said.append) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        assert said == ["stopping after this step; once more to stop at once"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_signals_stay_as_they_are() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopRequest():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
