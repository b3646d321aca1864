"""The page of changed rows in a real headless Chromium: search, filters, paging, untrusted text, phones."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilora.diffs import page as pages
from ilora.diffs.rows import Change, Changes, TaskChanges
from tests.comparison.chromium import PROGRAM, Browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine")]
SHOWN = "[...document.querySelectorAll('#rows article p')].map(p => p.textContent)"
COUNT = "document.getElementById('shown').textContent"
HOSTILE = "</script><img src=x onerror=alert(1)>"


def a_task(name: str, lost: int, gained: int) -> TaskChanges:
    scores = [(1.0, 0.0)] * lost + [(0.0, 1.0)] * gained
    rows = [
        Change(f"{name}/test/{n}", f"{name} question {n} {HOSTILE}", "Wahr", HOSTILE, "now", *pair)
        for n, pair in enumerate(scores)
    ]
    return TaskChanges(name, rows, rows[:lost], rows[lost:])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 rows of two tasks, in parts of 16."""
    path = tmp_path_factory.mktemp("diff") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "PART", 16)
        tasks = [a_task("one", 40, 10), a_task("two", 7, 3)]
        pages.write_page(path, Changes(("01-one", "02-two"), 0.5, tasks, []))
    return path


def choose(browser: Browser, field: str, value: str) -> None:
    browser.run(
        f"(() => {{ const f = document.getElementById('{field}'); f.value = '{value}'; "
        "f.dispatchEvent(new Event('change')); })()"
    )


def test_paging_filters_and_search(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert browser.run(COUNT) == "60 of 60 rows"
        first = browser.run(SHOWN)
        assert first == [f"one question {n} {HOSTILE}" for n in range(25)]
        browser.press("#on")
        assert browser.run(SHOWN)[0].startswith("one question 25 ")
        browser.press("#on")
        assert len(browser.run(SHOWN)) == 10
        assert browser.run("document.getElementById('on').disabled")
        choose(browser, "kind", "1")
        assert [text.split()[:3] for text in browser.run(SHOWN)] == [
            *(["one", "question", str(n)] for n in range(40, 50)),
            *(["two", "question", str(n)] for n in range(7, 10)),
        ]
        choose(browser, "task", "1")
        assert browser.run(COUNT) == "3 of 60 rows"
        assert browser.run("document.getElementById('paging').hidden")
        choose(browser, "kind", "")
        browser.press("#words")
        browser.type("QUESTION 8")
        browser.run("new Promise(done => setTimeout(done, 300))")
        assert [text.split()[:3] for text in browser.run(SHOWN)] == [["two", "question", "8"]]
        assert browser.run("document.querySelectorAll('#rows img').length") == 0
        assert browser.problems == []


def test_narrow_dark_and_on_paper(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        browser.open(page)
        assert browser.run("document.documentElement.scrollWidth") <= 400
        assert browser.run("getComputedStyle(document.querySelector('.change')).backgroundColor") == "rgb(26, 33, 40)"
        browser.call("Emulation.setEmulatedMedia", media="print")
        assert browser.run("getComputedStyle(document.getElementById('filter')).display") == "none"


def test_without_scripts_the_tables_are_there(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", scripts=False) as browser:
        browser.open(page)
        assert browser.run("document.querySelectorAll('table tbody tr').length") >= 3
        assert browser.run("getComputedStyle(document.getElementById('filter')).display") == "none"
        assert "--jsonl" in browser.run("document.querySelector('noscript').textContent")


def test_a_large_page_cuts_its_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_CHARACTERS", 30_000)
    rows = [Change(str(n), "word " * 400, "a", "b", "c", 1.0, 0.0) for n in range(50)]
    path = tmp_path / "page.html"
    pages.write_page(path, Changes(("a", "b"), 0.5, [TaskChanges("one", rows, rows, [])], []))
    text = path.read_text()
    assert len(text) < 60_000
    assert "longer than 500 characters" in text
