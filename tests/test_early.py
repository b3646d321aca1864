"""Bad input is refused, and a command says that it begins, before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

Answers = dict[str, tuple[object, str, str]]

# Torch cannot be imported in it at all; what would import it ends with an error of another kind.
PROGRAM = """
import contextlib, functools, io, json, sys
import typer.main
from ilora import cli
typer.main.get_command = functools.cache(typer.main.get_command)
sys.modules["torch"] = sys.modules["transformers"] = None
found = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["ilora", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
        except ImportError as error:
            code = str(error)
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("early")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    good = {
        "model": str(tmp_path / "model"),
        "data": {"benchmark": "mini8"},
        "method": {"name": "ilora", "memory_size": 4},
    }
    for name, changes in {
        "good": {},
        "typo": {"training": {"epoch": 1}, "method": {"name": "ilora", "memori": 4}},
        "place": {"data": {"path": "nowhere"}},
        "task": {"data": {"tasks": [{"name": "a", "train": "a.json", "test": "b.json"}]}},
        "text": {"evaluation": {"perplexity_file": "none.txt"}},
        "empty": {"model": "./nothing"},
        "hub": {"model": "owner/model-of-nobody"},
        "dataset": {"data": {"tasks": [{"name": "a", "dataset": "owner/rows-of-nobody"}]}},
        "sweep": {},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(good | changes), encoding="utf-8")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text((tmp_path / "good.yaml").read_text())
    return tmp_path


@pytest.fixture(scope="module")
def answers(folder: Path) -> Answers:
    """The exit code, the output and the message of each command, all in one new process."""
    commands = [*REFUSED, *SPOKEN, *QUIET, *TWICE]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, input=json.dumps([command.split() for command in commands]),
        capture_output=True, text=True, check=True, env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"},
    )  # fmt: skip
    return {command: tuple(answer) for command, answer in zip(commands, json.loads(done.stdout), strict=True)}


REFUSED = {
    "run none.yaml": "none.yaml: no such configuration file",
    "run typo.yaml": "training.epoch: unknown key",
    "run good.yaml training.epochs=x": "training.epochs",
    "run good.yaml --out unfinished": "unfinished: exists already",
    "run place.yaml": "nowhere: no such file or folder",
    "run task.yaml": "a.json: no such file",
    "run text.yaml": "none.txt: no such file",
    "run empty.yaml": "no folder with a config.json",
    "run hub.yaml": "owner/model-of-nobody",
    "run dataset.yaml": "owner/rows-of-nobody",
    "config show typo.yaml": "training.epoch: unknown key",
    "resume none": "none: not a run folder",
    "resume unfinished training.epochs=x": "training.epochs",
    "add none x": "none: not a run folder",
    "add unfinished x": "unfinished: not finished",
    "connect none": "none: not a run folder with results",
    "connect none other": "none: not a PEFT adapter folder",
    "evaluate none": "none: not a run folder with results",
    "general none --tasks a": "none: not a run folder with results",
    "data check none": "none: no such configuration file",
    "data check none.csv": "none.csv: no such file or folder",
    "data check typo.yaml": "training.epoch: unknown key",
    "sweep none.yaml": "none.yaml: no such configuration file",
    "sweep sweep.yaml": "methods",
    "tune sweep.yaml": "methods",
    "compare none": "none: no such folder",
}

SPOKEN = ["run good.yaml", "resume unfinished", "data check good.yaml"]
QUIET = ["run good.yaml --quiet", "resume unfinished --quiet", "data check good.yaml --json -"]
TWICE = ["run typo.yaml", "run typo.yaml training={}"]


def test_bad_input_is_refused_without_torch(folder: Path, answers: Answers) -> None:
    for command, said in REFUSED.items():
        code, _, message = answers[command]
        assert code == 2, (command, code)
        assert said in message, command
    assert not (folder / "runs").exists()


def test_the_first_line_comes_before_torch(answers: Answers) -> None:
    for commands, expected in ((SPOKEN, "loading torch and transformers\n"), (QUIET, "")):
        for command in commands:
            code, out, _ = answers[command]
            assert "import of torch" in str(code)
            assert out == expected


def test_the_methods_own_settings_come_after_the_rest(answers: Answers) -> None:
    (_, _, message), (code, _, _) = (answers[command] for command in TWICE)
    assert "memori" not in message
    assert "the methods' own settings" in message
    assert "import of torch" in str(code)
