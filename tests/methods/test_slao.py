"""What SLAO cannot do is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilora import InputError, run
from tests.helpers import MakeConfig


def test_a_rank_above_the_inputs_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    """Their row space has no orthonormal basis of so many vectors. The tiny model's layers have 32 inputs."""
    with pytest.raises(InputError, match=r"adapter\.r: 33, .* 32 inputs"):
        run(make_config("adapter.r=33", method="slao"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
