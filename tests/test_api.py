"""What `import ilora` offers: all of it is there, and does what the command of its name does."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ilora
from tests.helpers import MakeConfig

pytestmark = pytest.mark.core


def test_every_name_is_there() -> None:
    assert len(set(ilora.__all__)) == len(ilora.__all__)
    assert set(ilora.__all__) < set(dir(ilora))
    for name in ilora.__all__:
        assert getattr(ilora, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        ilora.no_such_name  # noqa: B018


def test_the_names_stay_functions_whatever_is_imported() -> None:
    """A subpackage of the same name would take the function's place."""
    for module in ("comparison.page", "sweeps.sweep", "connectivity.connect", "evaluation.scoring", "runner"):
        importlib.import_module(f"ilora.{module}")
    assert all(map(callable, (ilora.compare, ilora.sweep, ilora.tune, ilora.connect, ilora.evaluate, ilora.run)))


def test_importing_is_light() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, ilora; assert 'torch' not in sys.modules and 'peft' not in sys.modules"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_study_from_python(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("training.epochs=1", "data.tasks=[one]", contrast=["sequential"])
    made = ilora.run(config, tmp_path / "run", quiet=True)
    scored = ilora.evaluate(str(made.path), at=0.5, between="fast-slow", rows=3, quiet=True)
    assert set(scored["tasks"]) == {"one"}
    results = ilora.connect(str(made.path), paths=("factors",), points=3, rows=3, quiet=True)
    assert {result["kind"] for result in results} == {"path"}
    assert (made.path / "connectivity" / "index.html").is_file()
    comparison, folder = ilora.compare([made.path], out=tmp_path / "comparison")
    assert (folder / "index.html").is_file()
    assert comparison
    with pytest.raises(TypeError, match="pointz"):
        ilora.connect(made.path, pointz=3)
