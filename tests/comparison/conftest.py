"""Comparisons without their pictures, which take longer than all the rest of a small one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ilora.present.figures import as_svg


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Of this module's tests, those that look at pictures ask for `drawn`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ilora.comparison.page.as_svg", lambda name, _draw: f'<svg id="{name}"></svg>')
        yield


@pytest.fixture
def drawn(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of this test are drawn."""
    monkeypatch.setattr("ilora.comparison.page.as_svg", as_svg)
