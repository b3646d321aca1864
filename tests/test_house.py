"""The house: every room imports from the floors below it alone, so no room can stand in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "ilora"

# From the ground up. A room is a folder or a file of the package; it may import from rooms of lower floors only.
FLOORS = (
    ("errors",),
    ("registry", "files", "present", "section", "hub"),
    ("progress", "stopping"),
    ("settings", "keeping"),
    ("data", "environment", "changes"),
    ("kernels", "replay", "metrics"),
    ("results", "model"),
    ("benchmarks", "methods", "evaluation", "places", "words"),
    ("overrides",),
    ("config",),
    ("stream", "comparison"),
    ("training", "in_memory", "early"),
    ("connectivity", "check", "adding", "releases", "handover"),
    ("answering", "diffs", "gates", "planning"),
    ("report", "sweeps"),
    ("runner",),
    ("commands",),
    ("cli_inspect", "cli_releases", "cli_use", "cli_export", "cli_gate"),
    ("cli_setup",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of everything that a file imports from the package: at its top, in a function, for types."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("ilora."):
                yield node.lineno, name.split(".")[1]


def room_of(file: Path) -> str:
    """The folder or file of the package in which a file stands."""
    return file.relative_to(ROOT).with_suffix("").parts[0]


FILES = [file for file in sorted(ROOT.rglob("*.py")) if room_of(file) != "__init__"]  # it offers what others make


def upward(file: Path) -> list[str]:
    """The imports of a file that do not run down, each with its place."""
    here = room_of(file)
    return [
        f"{file.relative_to(ROOT)}:{line}: {here} (floor {FLOOR[here]}) imports {room} (floor {FLOOR[room]})"
        for line, room in imports(file)
        if room != here and FLOOR[room] >= FLOOR[here]
    ]


def test_every_room_has_a_floor() -> None:
    assert {room_of(file) for file in FILES} == set(FLOOR)


def test_imports_run_down() -> None:
    assert not [arrow for file in FILES for arrow in upward(file)]


def test_an_arrow_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_house.ROOT", tmp_path)
    bad = tmp_path / "data" / "rows.py"
    bad.parent.mkdir()
    bad.write_text("def late():\n    from ilora.report.html import write_report\n")
    assert upward(bad) == [f"data/rows.py:2: data (floor {FLOOR['data']}) imports report (floor {FLOOR['report']})"]


def modules_imported(file: Path, modules: dict[str, Path]) -> set[str]:
    """The files of the package that a file imports, by module name; a name taken from a package is that package's."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else str(node.module) for name in names}
    return found & modules.keys()


def test_no_files_import_each_other() -> None:
    names = {file: ".".join(("ilora", *file.relative_to(ROOT).with_suffix("").parts)) for file in FILES}
    modules = {name.removesuffix(".__init__"): file for file, name in names.items()}
    order = TopologicalSorter({name: modules_imported(file, modules) for name, file in modules.items()})
    order.prepare()  # raises CycleError with the files of a circle


def test_every_file_is_in_the_layout_of_the_design() -> None:
    design = (ROOT.parents[1] / "docs" / "design.md").read_text(encoding="utf-8").partition("## Layout")[2]
    of_methods = [file for file in FILES if file.parent.name == "methods"]  # one a method, in docs/methods.md
    missing = [file.name for file in FILES if file not in of_methods and file.name not in design]
    assert sorted(set(missing) - {"__init__.py", "__main__.py"}) == []


def private_names(file: Path) -> set[str]:
    """What a file of ours keeps to itself: functions, classes and attributes with a leading underscore."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"}
    return {name for name in names if name.startswith("_") and name.strip("_") and not name.startswith("__")}


def used_names(file: Path) -> Iterator[tuple[int, str]]:
    """Attributes of other objects than `self`, names that are imported from ilora, and dotted names in strings."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ilora"):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value.rpartition(".")[2]


def test_tests_use_no_private_name() -> None:
    """They would have to change with every change of how a thing is done."""
    private = set().union(*map(private_names, FILES))
    old = "old_run"  # was made by the version before, with its names
    tests = [file for file in Path(__file__).parent.rglob("*.py") if old not in file.parts]
    assert [f"{file}:{line}: {name}" for file in tests for line, name in used_names(file) if name in private] == []
