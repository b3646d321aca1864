"""The page in a real headless Chromium: sorting, filtering, no network, no script errors, and without scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilora.commands.compare import compare
from tests.comparison.chromium import PROGRAM, Browser
from tests.comparison.fake_runs import Method, write_sweep

pytestmark = [
    pytest.mark.xdist_group("compare"),
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine"),
]
NAMES = "[...document.querySelectorAll('#main tbody tr')].filter(r => !r.hidden).map(r => r.dataset.name)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    methods = {"sequential": Method(loss=0.3), "er": Method(level=0.9, loss=0.0), "alike": Method(loss=0.3)}
    _, folder = compare([write_sweep(tmp_path_factory.mktemp("page") / "s", methods, items=60)])
    return folder / "index.html"


def test_sorting_and_filtering(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert browser.run(NAMES) == ["sequential", "alike", "er"]
        browser.press("#main thead th:nth-child(1) button")
        assert browser.run(NAMES) == ["alike", "er", "sequential"]
        column = browser.run(
            "1 + [...document.querySelectorAll('#main thead th')].findIndex(h => h.textContent.trim().startsWith('OP'))"
        )
        browser.press(f"#main thead th:nth-child({column}) button")
        values = f"[...document.querySelectorAll('#main tbody tr')].map(r => +r.cells[{column - 1}].dataset.value)"
        sorted_values = browser.run(values)
        assert sorted_values == sorted(sorted_values, reverse=True)
        assert browser.run(NAMES)[0] == "er"
        head = f"document.querySelector('#main thead th:nth-child({column})').getAttribute('aria-sort')"
        assert browser.run(head) == "descending"
        browser.press(f"#main thead th:nth-child({column}) button")
        assert browser.run(values) == sorted(sorted_values)
        browser.press(f"#main thead th:nth-child({column}) button")
        assert browser.run(NAMES) == ["sequential", "alike", "er"]  # as written
        browser.press("#words")
        browser.type("al, er")
        assert browser.run(NAMES) == ["sequential", "alike", "er"]
        browser.run("document.getElementById('words').value = ''")
        browser.press("#words")
        browser.type("alike")
        assert browser.run(NAMES) == ["alike"]
        assert browser.run("document.getElementById('shown').textContent") == "1 of 3 rows shown"
        browser.run("document.getElementById('words').value = ''")
        browser.press("#clear-only")
        assert "alike" not in browser.run(NAMES)
        assert "er" in browser.run(NAMES)
        assert browser.problems == []


def test_without_scripts_everything_is_there(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", scripts=False) as browser:
        browser.open(page)
        assert browser.run("document.querySelectorAll('#main tbody tr').length") == 3
        assert browser.run("document.querySelectorAll('figure svg, figure img').length") >= 5
        assert browser.run("getComputedStyle(document.getElementById('filter')).display") == "none"
        assert browser.problems == []


def test_nothing_sticks_out_on_a_narrow_screen(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        browser.open(page)
        assert browser.run("document.documentElement.scrollWidth") <= 400
        assert browser.run("[...document.querySelectorAll('table')].every(table => table.closest('.scroll'))")
        assert browser.run("[...document.querySelectorAll('figure svg')].every(svg => svg.clientWidth <= 640)")
        assert browser.run(
            "[...document.querySelectorAll('figure')].every(f => f.getBoundingClientRect().right <= 400)"
        )


def test_the_main_table_fits_a_common_screen(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        browser.open(page)
        box = "document.getElementById('main').parentElement"
        assert browser.run(f"{box}.scrollWidth <= {box}.clientWidth")


def test_a_picture_of_one_method_does_not_fill_the_screen(tmp_path: Path) -> None:
    _, folder = compare([write_sweep(tmp_path / "s", {"sequential": Method(), "er": Method(loss=0)}, items=20)])
    with Browser(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        browser.open(folder / "index.html")
        heights = "[...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect().height)"
        assert max(browser.run(heights)) < 450


def test_dark_pages_have_light_text(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.call("Emulation.setEmulatedMedia", features=features)
        browser.open(page)
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 28)"
        assert browser.run("getComputedStyle(document.body).color") == "rgb(228, 233, 238)"
