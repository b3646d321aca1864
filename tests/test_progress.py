"""What the screen shows of a run, by a clock that is set by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import pytest
from rich.console import Console

from ilora.errors import InputError
from ilora.progress import ANSWERS, STEPS, Bar, Display


class Watch:
    """A clock and the screen beside it."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.now = 0.0
        self.screen = StringIO()
        console = Console(file=self.screen, force_terminal=terminal, width=160, highlight=False)
        self.display = Display(console=console, clock=lambda: self.now)

    @property
    def lines(self) -> list[str]:
        return self.screen.getvalue().splitlines()

    def step(self, bar: Bar, *, seconds: float, count: int = 1, note: str | None = None, line: bool = False) -> None:
        """So many units in so many seconds."""
        self.now += seconds
        bar.advance(count, note=note, line=line)


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_a_bar_goes_on_at_its_pace(watch: Watch) -> None:
    with watch.display.bar("training", 10, done=4) as bar:
        assert bar.left is None
        watch.step(bar, seconds=6, count=2)
        assert bar.left == 4 * 3.0  # those before it was there do not count
        watch.now += 5
        assert bar.left == 7.0
        watch.now += 50
        assert bar.left == 0.0


def test_lines_where_there_is_no_terminal(watch: Watch) -> None:
    with watch.display.bar("training 1/2 one", 100) as bar:
        for number in range(1, 41):
            watch.step(bar, seconds=2, note=f"loss {number}")
    assert watch.lines == [
        "training 1/2 one 1/100, loss 1, 3 min 18 s left, 2.0 s so far",
        "training 1/2 one 16/100, loss 16, 2 min 48 s left, 32.0 s so far",
        "training 1/2 one 31/100, loss 31, 2 min 18 s left, 1 min 2 s so far",
    ]


def test_a_line_that_is_asked_for_is_printed_once(watch: Watch) -> None:
    with watch.display.bar("task", 4) as bar:
        for line in (True, False, True, False):
            watch.step(bar, seconds=1, line=line)
    assert [line.partition(",")[0] for line in watch.lines] == ["task 1/4", "task 3/4"]


def test_the_seconds_between_lines_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ILORA_PROGRESS_SECONDS", "4")
    watch = Watch()
    with watch.display.bar("task", 4) as bar:
        for _ in range(4):
            watch.step(bar, seconds=2)
    assert len(watch.lines) == 2
    for wrong in ("often", "-1", "nan"):
        monkeypatch.setenv("ILORA_PROGRESS_SECONDS", wrong)
        with pytest.raises(InputError, match=f"ILORA_PROGRESS_SECONDS: .*{wrong}"):
            Display()


@contextmanager
def whole_run(watch: Watch, *, steps: int, answers: int) -> Iterator[Bar]:
    with watch.display.bar("er: whole run", 2, ahead={STEPS: steps, ANSWERS: answers}) as bar:
        yield bar


def test_the_whole_run_adds_up_what_is_left_of_each_kind(watch: Watch) -> None:
    with whole_run(watch, steps=30, answers=40) as whole:
        assert (whole.left, whole.times) == (None, "0.0 s so far")
        with watch.display.bar("evaluating", 10, kind=ANSWERS) as bar:
            watch.step(bar, seconds=5, count=10)
            assert whole.left == 30 * 0.5
            assert whole.times == "at least 15.0 s left, 5.0 s so far"  # no step was taken yet
        with watch.display.bar("training", 10, kind=STEPS) as bar:
            watch.step(bar, seconds=2)
            assert whole.left == 9 * 2 + 20 * 2 + 30 * 0.5
            assert whole.times == "1 min 13 s left, 7.0 s so far"
            watch.step(bar, seconds=8, count=2)  # it has become slower: 10 seconds for 3 steps
            assert whole.left == pytest.approx((7 + 20) * 10 / 3 + 30 * 0.5)
        # The task has ended early: its other steps are no longer expected.
        assert whole.left == pytest.approx(20 * 10 / 3 + 30 * 0.5)
        with watch.display.bar("evaluating", 20, kind=ANSWERS):
            assert whole.left == pytest.approx(20 * 10 / 3 + 30 * 0.5)  # at the pace of before, until it has its own
        whole.advance()
        assert whole.left == pytest.approx(20 * 10 / 3 + 10 * 0.5)


def test_a_run_that_goes_on_inside_a_task(watch: Watch) -> None:
    with (
        whole_run(watch, steps=6 + 10, answers=0) as whole,
        watch.display.bar("training", 10, done=4, kind=STEPS) as bar,
    ):
        watch.step(bar, seconds=3)
        assert whole.left == (5 + 10) * 3.0
    assert watch.lines == [
        "er: whole run 0/2, 45.0 s left, 3.0 s so far | training 5/10, 15.0 s left, 3.0 s so far",
    ]


def test_bars_on_a_terminal_name_both_times() -> None:
    watch = Watch(terminal=True)
    with watch.display as display, display.bar("training one", 4) as bar:
        watch.step(bar, seconds=90, note="[loss] 1.0")
        end = time.monotonic() + 10
        while "left" not in watch.screen.getvalue() and time.monotonic() < end:
            time.sleep(0.01)  # another thread draws
    text = " ".join(watch.screen.getvalue().split())
    assert "4 min 30 s left, 1 min 30 s so far" in text
    assert "[loss] 1.0" in text  # no markup
    assert "training one 1/4," not in text  # no lines


def test_a_quiet_display_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=True) as display, display.bar("task", 2) as bar:
        bar.advance(line=True)
    assert capsys.readouterr() == ("", "")
