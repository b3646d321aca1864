"""A run whose data lies elsewhere now goes on there; its content must be the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ilora import InputError, add, load_config, resume, run
from tests.helpers import FEW_SCORES, MakeConfig, difference, run_killed, weights, write_task


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        write_task(tmp_path / "tasks", name)
    return tmp_path / "tasks"


def moved(folder: Path) -> Path:
    return Path(shutil.move(folder, folder.with_name("moved")))


SHORT = ("training.epochs=1", "contrast=[sequential]", *FEW_SCORES)


@pytest.mark.parametrize("listed", [False, True], ids=["a folder of tasks", "tasks one by one"])
def test_a_stopped_run_goes_on(
    listed: bool, tasks: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [{"name": name, "path": str(tasks / name)} if listed else name for name in ("one", "two")]
    data = {"tasks": names, "max_length": 64} | ({} if listed else {"path": str(tasks)})
    config = make_config(*SHORT, data=data)
    whole = run(config, tmp_path / "whole", quiet=True)
    run_killed(config, tmp_path / "run", monkeypatch, at="step", count=5)
    new = moved(tasks)
    with pytest.raises(InputError, match=f"{tasks}.*\n.*ilora resume .* data.path=") as error:
        resume(tmp_path / "run", quiet=True)
    assert "Traceback" not in str(error.value)
    keys = [f"data.tasks.{n}.path={new / name}" for n, name in enumerate(("one", "two"))]
    resumed = resume(tmp_path / "run", keys if listed else [f"data.path={new}"], quiet=True)
    assert difference(weights(whole.path), weights(resumed.path)) == 0.0
    assert str(tasks) not in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert resume(tmp_path / "run", quiet=True).results["complete"]
    assert add(tmp_path / "run", [str(new / "three")], quiet=True).results["complete"]


def test_other_data_and_other_settings_are_still_refused(
    tasks: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("training.epochs=1", data={"path": str(tasks), "tasks": ["one", "two"], "max_length": 64})
    run_killed(config, tmp_path / "run", monkeypatch, at="step", count=2)
    before = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    for name in ("one", "two"):
        write_task(tmp_path / "others", name, train=20)
    with pytest.raises(InputError, match="task 'one': its data"):
        resume(tmp_path / "run", [f"data.path={tmp_path / 'others'}"], quiet=True)
    with pytest.raises(InputError, match=r"training\.learning_rate was 0\.002"):
        resume(tmp_path / "run", ["training.learning_rate=0.1"], quiet=True)
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == before


def test_a_finished_run_is_shown_without_its_data(tasks: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(*SHORT, data={"path": str(tasks), "tasks": ["one", "two"], "max_length": 64})
    made = run(config, tmp_path / "run", quiet=True)
    moved(tasks)
    shown = resume(tmp_path / "run", quiet=True)
    assert shown.results == made.results
    assert [other["method"] for other in shown.contrast] == ["sequential"]
    assert shown.table(width=100).row_count


def test_a_place_in_a_list_that_is_not_there() -> None:
    values = {"data": {"tasks": ["a", "b"]}}
    assert load_config(values, ["data.tasks.1.path=x"]).data.tasks[1].path == Path("x")  # type: ignore[index]
    with pytest.raises(InputError, match="has 2 of them"):
        load_config(values, ["data.tasks.2.path=x"])
