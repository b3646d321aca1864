"""Where a place in a configuration file is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ilora import cli
from ilora.config import Config, load_config
from ilora.errors import InputError
from ilora.sweeps.plan import expand, read_sweep
from tests.helpers import write_task


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the file is in configs/ beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(folder)
    return folder


def load(*overrides: str, **values: Any) -> Config:
    file = Path("../configs/c.yaml")
    file.write_text(yaml.safe_dump({"data": {"benchmark": "mini8"}} | values), encoding="utf-8")
    return load_config(file, overrides)


def test_every_place_counts_from_the_files_folder(here: Path) -> None:
    for folder in ("model", "rows"):
        (here.parent / "configs" / folder).mkdir()
    tasks = [
        "plain",
        {"name": "a", "path": "a"},
        {"name": "b", "train": "b.json", "eval": "c.json", "test": "../d.json"},
        {"name": "e", "dataset": "rows"},
        {"name": "f", "dataset": "owner/rows"},
    ]
    found = load(model="model", data={"path": "tasks", "tasks": tasks}, evaluation={"perplexity_file": "text"})
    configs = here.parent / "configs"
    assert found.model.name == str(configs / "model")
    assert found.data.path == configs / "tasks"
    assert found.evaluation.perplexity_file == configs / "text"
    _, a, b, e, f = found.data.tasks or []
    assert (a.path, b.train, b.eval, b.test) == tuple(configs / name for name in ("a", "b.json", "c.json", "../d.json"))
    assert (e.dataset, f.dataset) == (str(configs / "rows"), "owner/rows")


def test_a_file_beside_the_working_directory_stays_readable(here: Path) -> None:
    Path("c.yaml").write_text("data: {path: tasks}\n", encoding="utf-8")
    assert load_config("c.yaml").data.path == Path("tasks")
    Path("inner").mkdir()
    Path("inner/c.yaml").write_text("data: {path: ../tasks}\n", encoding="utf-8")
    assert load_config("inner/c.yaml").data.path == Path("inner/../tasks")


def test_absolute_places_aliases_and_hub_ids_stay(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWS", "/rows")
    (here / "smollm2-135m").mkdir()
    assert load(model={"name": "smollm2-135m"}, data={"path": "$ROWS/x"}).data.path == Path("/rows/x")
    assert load(model={"name": "owner/model"}).model.name == "owner/model"
    assert load(model={"name": "./mine"}).model.name == str(here.parent / "configs/mine")


def test_what_is_typed_counts_from_the_working_directory(here: Path) -> None:
    (here / "tasks").mkdir()
    typed = ("data.path=tasks", "model.name=./m", "data.tasks.0.path=x", "evaluation.perplexity_file=t")
    found = load(*typed, data={"path": "tasks", "tasks": [{"name": "a", "path": "y"}]})
    assert (found.data.path, found.model.name) == (Path("tasks"), "./m")
    assert (found.data.tasks or [])[0].path == Path("x")
    assert found.evaluation.perplexity_file == Path("t")
    assert load("data={path: tasks}").data.path == Path("tasks")
    assert load_config({"data": {"path": "tasks"}}).data.path == Path("tasks")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"data": {"path": "there"}}, "data.path"),
        ({"data": {"tasks": [{"name": "a", "path": "there"}]}}, "data.tasks.0.path"),
        ({"model": "there"}, "model"),
        ({"model": {"name": "there"}}, "model.name"),
        ({"evaluation": {"perplexity_file": "there"}}, "evaluation.perplexity_file"),
    ],
)
def test_a_place_that_is_in_the_working_directory_alone_is_refused(
    values: dict[str, Any], key: str, here: Path
) -> None:
    (here / "there").mkdir()
    with pytest.raises(InputError) as caught:
        load(**values)
    message = str(caught.value)
    for part in (f"c.yaml: {key}: no {here.parent}/configs/there", str(here / "there"), f"{key}=there"):
        assert part in message


def test_what_is_no_text_is_left_to_the_sections(here: Path) -> None:
    with pytest.raises(InputError, match=r"data\.path"):
        load(data={"path": 3})
    with pytest.raises(InputError, match=r"data\.tasks"):
        load(data={"tasks": {"a": "b"}})
    with pytest.raises(InputError, match=r"data\.path: the variable \$NOT_SET"):
        load(data={"path": "$NOT_SET/x"})


def test_what_is_shown_holds_anywhere(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(data={"path": "tasks", "tasks": ["a", {"name": "b", "path": "b"}]})
    monkeypatch.setattr("sys.argv", ["ilora", "config", "show", "../configs/c.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = yaml.safe_load(capsys.readouterr().out)["data"]
    assert shown["path"] == str(here.parent / "configs/tasks")
    assert shown["tasks"][1]["path"] == str(here.parent / "configs/b")


def test_a_sweeps_base_and_the_sweep_have_each_their_own_folder(here: Path) -> None:
    base, sweeps = here.parent / "configs", here.parent / "sweeps"
    sweeps.mkdir()
    write_task(base / "tasks", "one")
    write_task(sweeps / "own", "one")
    (base / "base.yaml").write_text("data: {path: tasks, tasks: [one]}\n", encoding="utf-8")
    file = sweeps / "s.yaml"

    def places(text: str, *overrides: str) -> list[str]:
        file.write_text(f"base: ../configs/base.yaml\nmethods: [sequential]\n{text}", encoding="utf-8")
        jobs = expand(read_sweep(file, overrides), file)
        return [f"{job.config.data.path} {job.config.evaluation.perplexity_file}" for job in jobs]

    assert places("") == [f"{base / 'tasks'} None"]
    assert places("config: {data: {path: own}}") == [f"{sweeps / 'own'} None"]
    texts = "settings: {evaluation.perplexity_file: [a, b]}"
    assert places(texts) == [f"{base / 'tasks'} {sweeps / name}" for name in "ab"]
    write_task(here / "typed", "one")
    assert places("", "data.path=typed") == [f"{here / 'typed'} None"]
    (base / "base.yaml").write_text("data: {path: typed, tasks: [one]}\n", encoding="utf-8")
    assert places("", "data.path=typed") == [f"{here / 'typed'} None"]  # what is replaced is not looked for
    with pytest.raises(InputError, match=r"base\.yaml: data\.path"):
        places("")
