"""`ilora init`: what it asks, what it writes, and that the file runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilora import InputError, load_config, run
from ilora.commands.init import init
from ilora.commands.settings_file import Setting, settings_file
from tests.helpers import task_rows

TINY = ("adapter.dropout=0.0", "model.dtype=float32", "evaluation.max_new_tokens=4", "evaluation.zero_shot=false")


def default(_question: str, value: Any, _read: Callable[[str], Any]) -> Any:
    return value


def silent(_line: str) -> None: ...


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of two files, each a task."""
    folder = tmp_path / "home" / "data"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        lines = map(json.dumps, task_rows(name, 60, seed=0))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_every_default_makes_a_file_that_runs(
    rows: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = rows.parent / "mine.yaml", []
    given = [f"model={tiny_model}", "training.epochs=1", *TINY]
    init(rows, out, given, ask=default, say=said.append, timed=True)
    text = out.read_text()
    assert yaml.safe_load(text)["data"]["path"] == "data"
    assert "tokens/s" in text.partition("name:")[0]
    assert any("choices" in line for line in said)
    every = [line for line in text.splitlines() if ":" in line and line.startswith(("  ", "#   "))]
    assert all(" # " in line for line in every)

    monkeypatch.chdir(tmp_path)
    config = load_config(out)
    assert (config.method.name, config.data.max_length, config.training.epochs) == ("ilora+", 64, 1)
    assert config.method.memory_capacity == 50
    assert [method.name for method in config.contrast] == ["sequential"]
    assert config.model.dtype == "float32"
    assert run(config, "out", quiet=True).results["complete"]


def test_answers_are_written_and_settings_are_not_asked(rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    answers = {"Method": "er", "Tokens": "128", "Rows": "7", "Train": "no"}
    asked = []

    def answer(question: str, _default: Any, read: Callable[[str], Any]) -> Any:
        asked.append(question.split()[0].rstrip(":"))
        return read(answers[asked[-1]])

    out = tmp_path / "elsewhere" / "x.yaml"
    init(rows / "one.jsonl", out, [f"model={tiny_model}", "epochs=2"], ask=answer, say=silent, timed=False)
    assert asked == list(answers)
    config = load_config(out)
    assert config.data.path == rows / "one.jsonl"  # it is not below the file's folder
    assert (config.method.name, config.method.memory_capacity, config.data.max_length) == ("er", 7, 128)
    assert config.training.epochs == 2
    assert config.contrast == []


def test_nothing_is_written_for_what_cannot_be(rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.yaml"
    for wrong in ("training.epochs=0", "method.gamma=1", "data.columns.prompt=nowhere", "method=none"):
        with pytest.raises(InputError, match=wrong.partition("=")[0].rpartition(".")[2]):
            init(rows, out, [f"model={tiny_model}", wrong], ask=default, say=silent, timed=False)
        assert not out.exists()


def test_a_row_longer_than_most(rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    long = {"prompt": "one " + "big " * 300 + "red :", "answer": "cat"}
    file = rows / "one.jsonl"
    file.write_text(file.read_text() + "\n" + json.dumps(long))
    init(rows, tmp_path / "a.yaml", [f"model={tiny_model}"], ask=default, say=silent, timed=False)
    assert load_config(tmp_path / "a.yaml").data.max_length == 64  # one of 121 prompts may be cut
    long["answer"] = "cat " * 100
    file.write_text(file.read_text() + "\n" + json.dumps(long))
    init(rows, tmp_path / "b.yaml", [f"model={tiny_model}"], ask=default, say=silent, timed=False)
    config = load_config(tmp_path / "b.yaml")
    assert config.data.max_length > 64  # an answer is never cut
    assert config.method.name == "er"


def test_a_given_setting_takes_the_place_of_a_written_one(rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    given = [f"model={tiny_model}", "training.micro_batch_size=3", "training.learning_rate=0.5", "data.limit.test=4"]
    init(rows, tmp_path / "a.yaml", given, ask=default, say=silent, timed=False)
    config = load_config(tmp_path / "a.yaml")
    assert (config.training.micro_batch_size, config.training.learning_rate, config.data.limit.test) == (3, 0.5, 4)
    with pytest.raises(InputError, match=r"data\.path"):
        init(rows, tmp_path / "b.yaml", ["data.path=x"], ask=default, say=silent, timed=False)


def test_names_and_values_are_what_yaml_reads_back() -> None:
    values = {"a.text": 'x: "y" # z', "a.word": "no", "a.number": "1e3", "a.list": ["ä", 1], "a.plain": "ilora"}
    lines = [Setting(key, value, "why\nnot: this") for key, value in values.items()]
    found = yaml.safe_load(settings_file(["a\nb: c"], lines, {"b": {"deep": {"x": 1}}, "c": 2}))
    assert found == {"a": {key[2:]: value for key, value in values.items()}, "b": {"deep": {"x": 1}}, "c": 2}
