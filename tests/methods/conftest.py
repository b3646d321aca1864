"""A whole run of each method, made once."""

from __future__ import annotations

import pytest

from ilora import RunResult, run
from tests.helpers import SMALL, MakeConfig, WholeRun, settings


@pytest.fixture(scope="session")
def whole_run(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """A method's uninterrupted run over the three small tasks, made once: tests only look at it."""
    made: dict[str, RunResult] = {}

    def get(name: str) -> RunResult:
        if name not in made:
            folder = tmp_path_factory.mktemp("whole") / name
            made[name] = run(make_config(*SMALL, method=settings(name)), folder, quiet=True)
        return made[name]

    return get
