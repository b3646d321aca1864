"""What `ilora list` prints, on a terminal of the usual width."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.console import Console

from ilora.commands.listing import KINDS, listing


@pytest.mark.parametrize("kind", KINDS)
def test_it_fits_80_columns(kind: str) -> None:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(listing(kind))
    lines = capture.get().splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert len(lines) < 60  # no column of single letters
    assert "…" not in capture.get()
