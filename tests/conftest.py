"""How the tests are started. What they need is in fixtures.py, which the processes that run them import."""

from __future__ import annotations

import os

import pytest


def pytest_xdist_auto_num_workers() -> int:
    """A worker more than there are cores: one waits for processes of its own most of the time."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Import torch and all else where tests run, and so not in pytest-xdist's own process: that takes it 6 s."""
    if config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("tests.fixtures")
        config.pluginmanager.import_plugin("tests.command")  # the fixtures `ilora`, `refused` and `config`


def pytest_make_parametrize_id(val: object) -> str | None:
    """Of a long text, its beginning: names of tests travel between processes, and people read them."""
    return f"{ascii(val[:60])[1:-1]}..." if isinstance(val, str | bytes) and len(val) > 80 else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with several processes first: they are one worker's, and as the last they would leave the others idle."""
    items.sort(key=lambda item: not any(mark.args == ("processes",) for mark in item.iter_markers("xdist_group")))
