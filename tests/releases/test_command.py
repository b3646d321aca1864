"""`ilora promote`, `rollback` and `history` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ilora import export
from ilora.cli import app
from ilora.errors import InputError
from ilora.releases.store import current
from tests.releases.conftest import no_report

pytestmark = pytest.mark.xdist_group("releases")


def test_the_commands(two_releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilora.commands.releases.write_report", no_report)

    def ilora(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    assert "current" in ilora("history", str(two_releases))
    assert "release 1 (02-two)" in ilora("rollback", str(two_releases), "--to", "1", "--note", "[bold]worse[/bold]")
    assert current(two_releases) == 1
    shown = ilora("history", str(two_releases))
    assert "release 1 (from 2): [bold]worse[/bold]" in shown
    assert [line.split()[0] for line in shown.splitlines()[1:4]] == ["01-one", "02-two", "03-three"]
    assert ["withdrawn" in line for line in shown.splitlines()[1:4]] == [False, False, True]  # whole, at 80 columns
    found = json.loads(ilora("history", str(two_releases), "--json"))
    assert (found["current"], found["events"][-1]["left"]) == (1, 2)
    with pytest.raises(InputError, match="02-two is release 1 already"):
        ilora("promote", str(two_releases))


def test_export_hands_the_current_release_over(two_releases: Path, tmp_path: Path) -> None:
    made = export(two_releases, tmp_path / "now")
    first = export(two_releases, tmp_path / "first", release=1)
    for exported, number, tasks in ((made, 2, ["one", "two", "three"]), (first, 1, ["one", "two"])):
        release = two_releases / "releases" / str(number) / "adapter"
        weights = "adapter_model.safetensors"
        assert (exported.folder / weights).read_bytes() == (release / weights).read_bytes()
        card = (exported.folder / "README.md").read_text()
        assert [name in card for name in ("three", "two", "one")] == [name in tasks for name in ("three", "two", "one")]
    with pytest.raises(InputError, match="--release"):
        export(two_releases, tmp_path / "both", release=1, phase="one")
