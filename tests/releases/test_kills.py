"""A promotion or a rollback that is killed: the current release is the old or the new one; the next command heals."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ilora import InputError, add, resume
from ilora.files import locked
from ilora.releases import change
from ilora.releases.history import history
from ilora.releases.journal import events
from ilora.releases.opening import open_run
from ilora.releases.store import current, list_releases, read_release
from tests.helpers import Killed
from tests.releases.conftest import no_report
from tests.releases.test_releases import tree

pytestmark = pytest.mark.xdist_group("releases")

OPERATIONS = ("rename", "replace", "link", "symlink", "unlink", "mkdir", "rmdir", "fsync")
EVERY = 3  # 1 takes three times as long; bench/kills.py kills a real process at random moments


def killed_at(count: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do it until the `count`-th operation on the file system is due, which is not done. Returns whether it was."""
    left = count

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed
            return original(*args, **more)

        return operation

    with monkeypatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        except Killed:
            return True
    return False


def sound(run: Path, old: int | None, new: int) -> None:
    """Nothing of the run's releases is torn."""
    assert current(run) in (old, new)
    for manifest in list_releases(run):
        read_release(run, manifest.number)


def outside(run: Path) -> dict[str, bytes]:
    """All files of the run but those of its releases."""
    return {name: content for name, content in tree(run).items() if not name.startswith("releases/")}


def other_names(source: Path, target: Path) -> Path:
    """A copy whose files are shared with the first: nothing may change one in place."""
    return Path(shutil.copytree(source, target, symlinks=True, copy_function=os.link))


@pytest.fixture
def whole(two_releases: Path) -> Path:
    """The run with few files, so that there are fewer moments to be killed at: still some of every kind and part."""
    for part in (two_releases, two_releases / "contrast/er"):
        for label in ("00-base", "01-one", "02-two"):
            shutil.rmtree(part / f"predictions/after-{label}")
        for path in [*part.glob("trajectory/0[12]*"), *part.glob("predictions/*/*/*")]:
            path.unlink()
    return two_releases


def check_kills(
    whole: Path, folder: Path, action: Callable[[Path], object], new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill it at every `EVERY`-th operation on the file system, and the healing at some operation of its own."""
    untouched = tree(whole)
    done = other_names(whole, folder / "done")
    action(done)
    old, before, after, source = current(whole), outside(whole), outside(done), random.Random(0)
    seen: set[int | None] = set()
    for count in range(1, 1000, EVERY):
        run = other_names(whole, folder / "killed")
        if not killed_at(count, lambda run=run: action(run), monkeypatch):
            break
        sound(run, old, new)
        killed_at(source.randint(1, 30), lambda run=run: open_run(run, no_report), monkeypatch)
        sound(run, old, new)
        open_run(run, no_report)
        found = current(run)
        assert found in (old, new)
        assert outside(run) == (before if found == old else after)
        assert [event.id for event in events(run)] == list(range(1, len(events(run)) + 1))
        assert len(events(run)) == len(events(whole)) + (found == new)
        assert not (run / "releases/pending.json").exists()
        if found == old:
            action(run)  # what was left behind is in nobody's way
            assert outside(run) == after
        assert read_release(run).number == new
        seen.add(found)
        shutil.rmtree(run)
    assert count > 20
    assert tree(whole) == untouched
    assert seen == {old, new}


def test_promotion_killed_anywhere(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(whole / "releases/2")
    (whole / "current").unlink()
    (whole / "current").symlink_to("releases/1")
    lines = (whole / "releases/history.jsonl").read_text().splitlines(keepends=True)
    (whole / "releases/history.jsonl").write_text(lines[0])
    check_kills(whole, tmp_path, lambda run: change.promote(run, report=no_report), 2, monkeypatch)


def test_rollback_killed_anywhere(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_kills(whole, tmp_path, lambda run: change.rollback(run, report=no_report), 1, monkeypatch)


def test_every_command_finishes_what_was_killed(
    two_releases: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`add` reads the configuration after it is put back; several processes leave the healing to a single one."""
    assert killed_at(45, lambda: change.rollback(two_releases, report=no_report), monkeypatch)
    assert (two_releases / "releases/pending.json").is_file()
    with locked(two_releases, what="run"), pytest.raises(InputError, match="another process"):
        open_run(two_releases, no_report)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InputError, match="ilora history"):
            resume(two_releases, quiet=True)
    result = add(two_releases, [str(data / "three")], quiet=True)
    assert result.results["tasks"][-1]["train"] == 24  # the third task's other rows were rolled back
    assert [month["state"] for month in history(two_releases)["phases"]] == [
        "earlier",
        "current",
        "withdrawn",
        "candidate",
    ]
