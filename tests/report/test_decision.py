"""The page of a run begins with whether it may be released, and shows its months."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ilora import gate
from ilora.commands.releases import promote
from ilora.errors import IloraError
from ilora.report.decision import decision, months_svg
from ilora.report.html import write_report
from ilora.results.reader import read_results

pytestmark = pytest.mark.usefixtures("sketched")


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def test_before_the_gate(own: Path) -> None:
    found = decision(own, read_results(own))
    assert (found["outcome"], found["complete"], found["problem"]) == (None, True, None)
    assert "ilora gate RUN" in write_report(own).read_text()


def test_a_decision_is_on_the_page_and_kept_from_a_release(own: Path) -> None:
    write_report(own)
    least = own.with_name("least.yaml")
    least.write_text("new_task: {least: 99.9}\n")
    told = gate(own, rules=least)
    assert told["outcome"] == "failed"
    page = (own / "report.html").read_text()  # the gate writes it anew
    assert "It should not be released" in page
    assert page.index("It should not be released") < page.index("Task by task")
    with pytest.raises(IloraError, match="--force"):
        promote(own)
    assert promote(own, force=True).manifest.gate["outcome"] == "failed"
    page = (own / "report.html").read_text()
    assert "release 1 (02-two)" in page
    assert months_svg(decision(own, read_results(own))["months"])


def test_a_damaged_line_of_releases_is_said_and_nothing_else(own: Path) -> None:
    promote(own)
    (own / "current").unlink()
    assert "current is missing" in str(decision(own, read_results(own))["problem"])
    assert "Task by task" in write_report(own).read_text()
