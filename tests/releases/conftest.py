"""Two releases of a run with a memory and a contrast run, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ilora import add, run
from ilora.releases import change
from tests.helpers import MakeConfig, write_task


def no_report(_run: Path) -> None:
    """In place of report.html, which takes longer than all the rest."""


@pytest.fixture(scope="session")
def first(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tasks, whose second one is release 1."""
    er = {"name": "er", "memory_size": 20}
    config = make_config("data.tasks=[one, two]", "training.epochs=1", "keep.trajectory=all", contrast=[er])
    folder = run(config, tmp_path_factory.mktemp("releases") / "first", quiet=True).path
    change.promote(folder, report=no_report)
    return folder


@pytest.fixture(scope="session")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with a third task, whose rows are not those of the third task elsewhere; it is release 2."""
    folder = first.with_name("second")
    shutil.copytree(first, folder, symlinks=True)
    task = write_task(tmp_path_factory.mktemp("other"), "three", train=16, test=5)
    add(folder, [str(task)], quiet=True)
    change.promote(folder, gate={"outcome": "passed"}, note="spring", report=no_report)
    return folder


@pytest.fixture
def one_release(first: Path, tmp_path: Path) -> Path:
    """A copy of `first`."""
    return Path(shutil.copytree(first, tmp_path / "run", symlinks=True))


@pytest.fixture
def two_releases(second: Path, tmp_path: Path) -> Path:
    """A copy of `second`."""
    return Path(shutil.copytree(second, tmp_path / "run", symlinks=True))
