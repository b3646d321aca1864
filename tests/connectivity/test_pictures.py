"""Pictures: series that can be told apart, labels inside, equal axes; and which of them the run's page shows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ilora.connectivity import pictures
from ilora.connectivity.files import SCHEMA
from ilora.present.figures import series_look
from ilora.report.connectivity import connectivity
from ilora.report.html import write_report

VALUES = {"n": 9, "score": 0.5, "score_se": 0.02, "loss": 1.0, "loss_se": 0.1}


def path(names: list[str], *, ends: tuple[str, str] = ("01-a/slow", "02-b/slow"), space: str = "factors") -> Any:
    tasks = [{"name": name, "label": name, "metric": "exact"} for name in names]
    groups = {"mean": names, "old": names[:-1], "new": names[-1:]}
    points = [
        {"t": t, "tasks": dict.fromkeys(names, VALUES), **{group: {**VALUES, "score": 0.4 + t / 9} for group in groups}}
        for t in (0.0, 0.5, 1.0)
    ]
    score = {"best": 0.5, "best_t": 1.0, "best_se": 0.02, "width": 0.25, "barrier": 0.0, "barrier_se": 0.01}
    return {
        "schema": SCHEMA, "kind": "path", "complete": True, "made_from": {}, "ends": [{"label": end} for end in ends],
        "tasks": tasks, "groups": groups, "points": points, "path": "linear", "space": space, "bend": None,
        "profiles": {group: {"score": score, "loss": {**score, "barrier": 0.125}} for group in groups},
    }  # fmt: skip


def plane(names: tuple[str, str, str] = ("01-a/fast", "02-b/fast", "02-b/slow")) -> Any:
    xs, ys = [10.0 * i / 8 - 2 for i in range(9)], [5.0 * i / 8 - 1 for i in range(9)]
    trail = [
        {"label": f"step {n}", "variant": variant, "when": 1 + n / 4, "x": float(n), "y": n / 2, "away": 0.0,
         "near": n != 2}
        for variant in ("slow", "fast") for n in range(5)
    ]  # fmt: skip
    return {
        "schema": SCHEMA, "kind": "plane", "complete": True, "made_from": {}, "space": "factors", "x": xs, "y": ys,
        "ends": [{"label": name} for name in names], "trail": trail, "tasks": [],
        "grid": [[{"mean": {**VALUES, "score": 0.5 + 0.1 * math.sin(x) * math.cos(y)}} for x in xs] for y in ys],
        "corners": [{"label": name, "x": x, "y": y, "mean": VALUES}
                    for name, x, y in zip(names, (0.0, 6.0, 3.0), (0.0, 0.0, 2.0), strict=True)],
    }  # fmt: skip


def similarity(*ends: str) -> Any:
    values = {"cka": 0.9, "cka_se": 0.01, "cka_debiased": 0.8, "cka_debiased_se": None}
    cka = [{"layer": layer, **values, "tasks": {"a": values, "b": values}} for layer in (1, 2)]
    along = {
        variant: {"label": ["s", "e"], "when": [0.5, 1], "factors": {"from_first": [0.0, 1.0], "step": [0.0, 1.0]},
                  "delta": {"from_first": [0.0, 9.0], "step": [0.0, 9.0]}}
        for variant in ("slow", "fast")
    }  # fmt: skip
    return {
        "schema": SCHEMA, "kind": "similarity", "complete": True, "made_from": {}, "tasks": [], "cka": cka,
        "ends": [{"label": end} for end in ends], "distances": {}, "along": along,
        "angles": {"layers": [{"layer": "x", "out": {"overlap": 0.5}, "in": {"overlap": None}}]},
    }  # fmt: skip


def test_many_series_are_told_apart_without_colours() -> None:
    looks = [(str(look["linestyle"]), look["marker"]) for look in map(series_look, range(28))]
    assert len(set(looks)) == 28
    assert len({str(series_look(order)) for order in range(140)}) == 140


@pytest.mark.parametrize("tasks", [2, 8])
def test_means_are_emphasised_and_many_tasks_stand_apart(tasks: int) -> None:
    figure = pictures.drawings(path([f"task{n}" for n in range(tasks)]))[""]()
    assert len(figure.axes) == (2 if tasks == 2 else 4)
    bold = [line for line in figure.axes[0].lines if line.get_linewidth() >= 1.8]
    thin = [line for line in figure.axes[-1].lines if str(line.get_label()).startswith("task")]
    assert len(bold) == (1 if tasks == 2 else 3)  # old and new of one task each are those tasks
    assert len(thin) == tasks
    assert len({line.get_marker() for line in thin}) == min(tasks, 7)
    assert all(line.get_markerfacecolor() == "#ffffff" for line in bold)
    assert not any(line.get_markerfacecolor() == "#ffffff" for line in thin)


def test_bands_stay_within_what_scores_and_losses_can_be() -> None:
    result = json.loads(json.dumps(path(["a", "b"])))
    for point in result["points"]:
        for values in (point["mean"], *point["tasks"].values()):
            values |= {"score": 0.99, "score_se": 0.05, "loss": 0.01, "loss_se": 0.05}
    figure = pictures.drawings(result)[""]()
    bands = [[part.vertices[:, 1] for band in axes.collections for part in band.get_paths()] for axes in figure.axes]
    assert all(bands)
    assert max(ys.max() for ys in bands[0]) == 100
    assert min(ys.min() for ys in bands[1]) == 0


def test_a_plane_has_equal_axes_and_labels_within() -> None:
    figure = pictures.drawings(plane())["-score"]()
    axes = figure.axes[0]
    assert axes.get_aspect() == 1.0
    assert (axes.get_xlim(), axes.get_ylim()) == ((-2.0, 8.0), (-1.0, 4.0))
    labels = [text for text in axes.texts if text.get_text()]
    assert labels
    for text in labels:
        x, y = text.get_position()
        assert -2 + 0.05 * 10 < x < 8 - 0.05 * 10
        assert -1 + 0.05 * 5 < y < 4 - 0.05 * 5
        assert 40 <= float(text.get_text()) <= 60  # points of 100, as on the scale beside it
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert names[3:] == ["slow along training (projected)", "fast along training (projected)"]
    none = pictures.drawings(plane() | {"trail": []})["-score"]()
    assert not any("training" in text.get_text() for legend in none.legends for text in legend.get_texts())


def test_distances_have_a_panel_for_each_space_and_a_series_for_each_variant() -> None:
    figure = pictures.drawings(similarity("01-a/slow", "02-b/slow"))[""]()
    titles = [axes.get_ylabel() for axes in figure.axes]
    assert titles == ["linear CKA", "overlap (mean cos²)", "distance in factors", "distance in delta"]
    assert [len(axes.lines) for axes in figure.axes[2:]] == [2, 2]
    alone = pictures.drawings(similarity("a", "b") | {"along": {}})[""]()
    assert len(alone.axes) == 2


@pytest.fixture
def shown_run(finished: Path, tmp_path: Path) -> Path:
    """A run's results with a folder of connectivity results: five paths, two planes, one similarity."""
    for name in ("results.json", "config.yaml"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    folder = tmp_path / "connectivity"
    folder.mkdir()
    ends = [(f"0{n}-x/slow", f"0{n + 1}-x/slow") for n in range(1, 6)]
    for number, pair in enumerate(ends):
        (folder / f"path-{number}.json").write_text(json.dumps(path(["a", "b"], ends=pair)))
    for number, corners in enumerate(
        (("01-a/fast", "02-b/fast", "02-b/slow"), ("08-a/fast", "09-b/fast", "09-b/slow"))
    ):
        (folder / f"plane-{number}.json").write_text(json.dumps(plane(corners)))
    (folder / "similarity-1.json").write_text(json.dumps(similarity("01-a/slow", "02-b/slow")))
    return tmp_path


def test_the_page_shows_every_kind_and_says_what_it_leaves_out(
    shown_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = connectivity(shown_run)
    assert found is not None
    assert [figure["title"] for figure in found["figures"]] == [
        "plane: 08-a/fast → 09-b/fast → 09-b/slow", "plane: 08-a/fast → 09-b/fast → 09-b/slow",
        "path: 05-x/slow → 06-x/slow", "path: 04-x/slow → 05-x/slow", "path: 03-x/slow → 04-x/slow",
        "similarity: 01-a/slow → 02-b/slow",
    ]  # fmt: skip
    assert found["left_out"] == "1 plane and 2 paths"
    assert len(found["paths"]) == 5
    row = found["paths"][0]
    assert (row["first"], row["best"], row["t"], row["width"]) == ((0.4, 0.02), (0.5, 0.02), "1.00", "0.25")
    assert (row["old"], row["new"]) == (0.4 + 1 / 9, 0.4 + 1 / 9)
    assert row["barrier"] == "0.125 ± 0.010"
    monkeypatch.setattr("ilora.report.html.connectivity", lambda _run: found)  # drawn once
    page = write_report(shown_run).read_text()
    assert "40.0 ± 2.0" in page
    assert "More pictures, of 1 plane and 2 paths, are in" in page
