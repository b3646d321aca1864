from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from ilora.report.plots import bars_svg, curves_svg, heatmap_svg, loss_points, loss_svg
from tests.report.fake_run import metric_lines, results, three_tasks

HOSTILE = "</svg><script>alert(1)</script> --> $\\frac{1$ _x 試"


def all_figures(name: str = "fomc") -> dict[str, str]:
    main, other = three_tasks()
    main["tasks"][1]["name"] = main["phases"][1] = name
    lines = metric_lines([task["name"] for task in main["tasks"]])
    for line in lines:
        line["terms"][f"_{name}"] = 1.0
    return {
        "heat": heatmap_svg(main, "slow", title=name, name="heat"),
        "bars": bars_svg(main, [other]),
        "curves": curves_svg(main, [other]),
        "loss": loss_svg(lines) or "",
    }


def texts(draw: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into the figure that `draw` draws; glyphs are outlines in the SVG itself."""
    found: list[str] = []
    original = mpl.backends.backend_svg.RendererSVG.draw_text

    def spy(self: object, gc: object, x: float, y: float, s: str, *rest: object, **more: object) -> object:
        found.append(s)
        return original(self, gc, x, y, s, *rest, **more)

    monkeypatch.setattr(mpl.backends.backend_svg.RendererSVG, "draw_text", spy)
    draw()
    return found


def test_figures_are_well_formed_and_the_same_each_time() -> None:
    first, second = all_figures(), all_figures()
    assert first == second
    for svg in first.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "<metadata" not in svg
        assert "<image" not in svg


def test_ids_are_unique_over_the_figures_of_a_page_and_resolve() -> None:
    figures = all_figures()
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in figures.values()]
    assert len(set.union(*ids)) == sum(map(len, ids))
    for svg, own in zip(figures.values(), ids, strict=True):
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
        assert {a or b for a, b in used} <= own


def test_text_of_the_user_is_inert_and_never_read_as_mathematics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = all_figures(HOSTILE)
    for svg in figures.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "script" not in svg
        assert "alert" not in svg


def test_settings_of_matplotlib_stay_as_they_were() -> None:
    before = dict(mpl.rcParams)
    all_figures()
    assert dict(mpl.rcParams) == before


def test_heat_map_shows_every_score_and_the_zero_shot_row(monkeypatch: pytest.MonkeyPatch) -> None:
    main, _ = three_tasks()
    found = texts(lambda: heatmap_svg(main, "slow", title="slow"), monkeypatch)
    for number in ("90", "85", "65", "80", "60", "10", "25"):
        assert number in found
    assert "zero-shot" in found
    assert "2  fomc" in found
    assert "tested on" in found
    assert found.count("·") == 4  # three above the diagonal, one zero-shot score that was not taken


def test_bars_tell_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = three_tasks()
    found = texts(lambda: bars_svg(main, [other]), monkeypatch)
    for text in (
        "80.0",
        "60.0",
        "90.0",
        "20.0",
        "30.0",
        "96.0",
        "I-LoRA slow: kept",
        "sequential: kept",
        "zero-shot",
    ):
        assert text in found


def test_curves_have_a_panel_for_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = three_tasks()
    found = texts(lambda: curves_svg(main, [other]), monkeypatch)
    assert {"stance", "fomc", "meeting notes", "I-LoRA slow", "sequential"} <= set(found)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_tasks(count: int) -> None:
    names = [f"t{i}" for i in range(count)]
    main = results(names, {"fast": [[0.5 if k >= i else None for i in range(count)] for k in range(count)]})
    for svg in (heatmap_svg(main, "fast"), bars_svg(main), curves_svg(main)):
        assert svg.startswith("<svg")


def test_loss_of_a_resumed_run_takes_the_later_line_of_a_step() -> None:
    lines = [{"task": "a", "task_index": 1, "step": s, "loss": float(s), "terms": {}} for s in (1, 2, 3)]
    lines += [{"task": "a", "task_index": 1, "step": s, "loss": 10.0 * s, "terms": {}} for s in (2, 3)]
    assert [(step, losses["loss"]) for step, _, losses in loss_points(lines)] == [
        (1, 1.0),
        (2, 20.0),
        (3, 30.0),
    ]


def test_loss_steps_counted_within_each_task_are_put_one_after_the_other() -> None:
    lines = [{"task": t, "task_index": i, "step": s, "loss": 1.0} for i, t in ((1, "a"), (2, "b")) for s in (1, 2)]
    assert [step for step, _, _ in loss_points(lines)] == [1, 2, 3, 4]


def test_loss_shows_terms_only_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    one = [{"task": "a", "task_index": 1, "step": 1, "loss": 1.0, "terms": {"ce": 1.0}}]
    assert "ce" not in texts(lambda: loss_svg(one), monkeypatch)
    assert {"loss", "ce", "ce_replayed", "consistency", "a", "b"} <= set(
        texts(lambda: loss_svg(metric_lines(["a", "b"])), monkeypatch)
    )


def test_long_loss_is_thinned_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = metric_lines(["a", "b"], per_task=2000)
    found = texts(lambda: loss_svg(lines), monkeypatch)
    assert "optimizer step (each point the mean of 10 logged steps)" in found
    assert len(loss_svg(lines) or "") < 120_000


def test_no_loss_no_picture() -> None:
    assert loss_svg([]) is None
    assert loss_svg([{"task": "a", "task_index": 1, "step": 1, "loss": float("nan")}]) is None
