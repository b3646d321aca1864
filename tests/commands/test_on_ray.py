"""`--ray`: what a worker does, and with Ray itself (where it is installed) a worker that is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from ilora import add, run
from ilora.commands.on_ray import MARK, run_on_ray, work
from ilora.config import Config
from ilora.errors import InputError
from tests.command import Command, Refused
from tests.helpers import FEW_SCORES, MakeConfig, difference, weights
from tests.processes import outcome, steps, wait_for, write_config
from tests.training.test_processes import in_two


@pytest.fixture
def short(make_config: MakeConfig) -> Config:
    few = ("data.limit={train: 16, eval: 2, test: 2}", "training.epochs=1", "adapter.dropout=0")
    return make_config(*FEW_SCORES, *few, "data.tasks=[one, two]")


@pytest.fixture
def order(short: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A new run for a worker."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / MARK).touch()
    places = {"path": str(tmp_path / "run"), "scratch": str(tmp_path / "scratch"), "folder": str(tmp_path)}
    return {**places, "config": short.dump(), "quiet": True}


def failing(order: dict[str, Any], at: str) -> None:
    """A worker that fails there."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("broken for the test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at, fail)
        with pytest.raises(ZeroDivisionError):
            work(order)


def test_a_worker_that_failed_goes_on_and_ends_with_the_same_bits(
    order: dict[str, Any], short: Config, tmp_path: Path
) -> None:
    failing(order, at="ilora.training.evaluating.evaluate")
    assert not (tmp_path / "run" / "adapters" / "02-two").exists()
    work(order)
    assert outcome(tmp_path / "run") == outcome(run(short, tmp_path / "whole", quiet=True).path) != {}


def test_a_worker_that_failed_while_it_added_a_task_goes_on_with_it(
    order: dict[str, Any], short: Config, data: Path, tmp_path: Path
) -> None:
    for folder in ("run", "whole"):
        run(short, tmp_path / folder, quiet=True)
    del order["config"]
    order["new"] = {"tasks": [str(data / "three")], "overrides": ["training.epochs=2"], "replaces": None}
    order["before"] = (tmp_path / "run" / "config.yaml").read_text()
    failing(order, at="ilora.training.session.optimizer_step")
    assert not (tmp_path / "run" / "adapters" / "03-three").exists()
    work(order)
    add(tmp_path / "whole", **order["new"], quiet=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert (tmp_path / "run" / "adapters" / "03-three").exists()


def test_what_a_worker_refuses_is_noted_and_not_tried_again(
    order: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order["config"]["data"]["tasks"] = ["tow"]
    work(order)
    (note,) = (tmp_path / "scratch").glob("*.json")
    assert "no task 'tow'" in note.read_text(encoding="utf-8")
    monkeypatch.setattr("ilora.runner.run", None)
    work(order)


def test_a_worker_without_the_folder_of_the_command_is_refused(order: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "scratch" / MARK).unlink()
    with pytest.raises(InputError, match="must be on storage that the command and all workers share"):
        work(order)
    assert not (tmp_path / "run").exists()


def test_a_second_command_on_the_same_run_leaves_the_first_one_its_folder(
    short: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of Ray: a trainer that lets a second command begin and end before the first one's worker."""
    monkeypatch.chdir(tmp_path)
    begun: list[dict[str, Any]] = []

    class Trainer:
        def __init__(self, *_: object, train_loop_config: dict[str, Any], **__: object) -> None:
            self.order = train_loop_config

        def fit(self) -> None:
            begun.append(self.order)
            if len(begun) == 1:
                with pytest.raises(InputError, match="not a run folder"):  # it has done nothing
                    run_on_ray("local", short, tmp_path / "run", quiet=True)
                work(self.order)

    ray = MagicMock(**{"cluster_resources.return_value": {"CPU": 2}})
    ray.exceptions.RayActorError = ray.train.TrainingFailedError = RuntimeError
    ray.train.torch.TorchTrainer = Trainer
    parts = {"ray": ray, "ray.exceptions": ray.exceptions, "ray.train": ray.train, "ray.train.torch": ray.train.torch}
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, name, part)
    assert run_on_ray("local", short, tmp_path / "run", quiet=True).results["complete"]
    assert len(begun) == 2
    assert not list(tmp_path.glob(".run-ray*"))


def test_bad_words_are_refused(refused: Refused, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("run", config, "--workers", 2, says=["--workers", "is for --ray"])
    refused("add", config, "three", "--workers", 2, says=["--workers", "is for --ray"])
    monkeypatch.setitem(sys.modules, "ray", None)
    refused("run", config, "--ray", "local", says=["--ray", "pip install 'ilora[ray]'"])


# -- with Ray ----------------------------------------------------------------------------------------------------------


def workers() -> list[int]:
    """The process ids of Ray Train's workers that this process has started."""
    parents, names = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            names[int(place.name)] = (place / "cmdline").read_bytes()
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue

    def ours(number: int) -> bool:
        return number == os.getpid() or (number in parents and ours(parents[number]))

    return [number for number, name in names.items() if b"RayTrainWorker" in name and ours(number)]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for Ray's processes in /proc")
def test_a_killed_worker_begins_again_with_the_same_bits(short: Config, tmp_path: Path, ilora: Command) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    config = short.model_copy(update={"training": short.training.model_copy(update={"epochs": 20})})
    file = write_config(tmp_path / "config.yaml", config)
    in_two("run", file, "--out", tmp_path / "whole", log=tmp_path / "log")

    def kill_one() -> None:
        wait_for(steps(5), tmp_path / "run", lambda: True)
        os.kill(workers()[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = run_on_ray("local", config, tmp_path / "run", workers=2)
    killer.join()
    assert result.results["complete"]
    assert difference(weights(tmp_path / "whole"), weights(tmp_path / "run")) == 0.0
    assert not list(tmp_path.glob(".run-ray*"))
    refused = ilora("run", file, "--out", tmp_path / "more", "--ray", "local", "--workers", 10_000)
    assert (refused.code, refused.err.count("--workers 10000: the cluster has ")) == (2, 1)
    assert not list(tmp_path.glob("*more*"))
