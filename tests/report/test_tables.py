from __future__ import annotations

import copy

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from ilora.present.numbers import plain, points
from ilora.report.tables import TaskOutcome, markdown_table, row_values, run_table
from tests.report.fake_run import SEQUENTIAL, SLOW, ZERO_SHOT, Json, results, simulated, three_tasks


def lines_of(table: Table, width: int = 100) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def line_with(lines: list[str], start: str) -> str:
    return next(line for line in lines if line.strip().startswith(start))


def approx(scores: TaskOutcome) -> tuple[object, ...]:
    values = (scores.learnt, scores.kept, scores.forgotten, scores.zero_shot)
    return tuple(None if value is None else pytest.approx(value) for value in values)


def test_row_values_of_three_tasks() -> None:
    main, other = three_tasks()
    values = row_values(main, [other])
    assert [s.label for s in values.series] == ["I-LoRA slow (answers)", "I-LoRA fast", "sequential"]
    slow, fast, sequential = values.series
    assert approx(slow.scores[0]) == (0.90, 0.80, 0.10, 0.10)
    assert approx(slow.scores[1]) == (0.65, 0.60, 0.05, 0.25)
    assert approx(slow.scores[2]) == (0.90, 0.90, None, None)
    assert approx(fast.scores[0]) == (0.92, 0.50, 0.42, 0.10)
    assert approx(sequential.scores[0]) == (0.91, 0.20, 0.71, 0.10)
    assert slow.summary["OP"] == pytest.approx(2.3 / 3)
    assert slow.mean.kept == slow.summary["OP"]
    assert slow.mean.zero_shot is None  # one of three is missing: a mean of two would not compare


def test_forgotten_is_the_best_earlier_score_minus_the_final_one_and_may_be_negative() -> None:
    rows = [[0.50, None, None], [0.70, 0.40, None], [0.60, 0.55, 0.80]]
    scores = row_values(results(["a", "b", "c"], {"fast": rows})).series[0].scores
    assert scores[0].forgotten == pytest.approx(0.10)  # from 0.70, not from the 0.50 when it was learnt
    assert scores[1].forgotten == pytest.approx(-0.15)
    main = results(["a", "b", "c"], {"fast": rows})
    assert line_with(lines_of(run_table(main)), "b").split()[-2:] == ["gained", "15.0"]
    assert "gained 15.0" in markdown_table(main)


def test_scores_before_the_training_of_a_task_do_not_count_as_learnt() -> None:
    main = results(["a", "b", "c"], {"fast": [[0.5, 0.1, 0.2], [0.4, 0.6, 0.3], [None, None, None]]})
    main["complete"] = False
    values = row_values(main)
    assert values.finished == 2
    assert values.series[0].scores[2] == TaskOutcome()
    assert values.series[0].scores[0].kept == 0.4
    head = lines_of(run_table(main))[0]
    assert "(not finished: 2 of 3 tasks)" in head
    assert markdown_table(main).startswith("Not finished: 2 of 3 tasks.")


def test_run_without_any_result_yet() -> None:
    main = results(["a", "b"], {"fast": [[0.5, None], [0.4, 0.6]]}, complete=False)
    main["variants"]["fast"] = {"zero_shot": None, "R": [], "n": [], "summary": {}}
    assert row_values(main).finished == 0
    assert line_with(lines_of(run_table(main)), "a").split() == ["a", "–", "–", "–", "–"]


def test_terminal_table() -> None:
    main, other = three_tasks()
    lines = lines_of(run_table(main, [other]))
    assert lines[0].strip() == "demo: I-LoRA on smollm2-135m"
    assert line_with(lines, "stance").split() == "stance 10.0 90.0 80.0 10.0 50.0 42.0 20.0 71.0".split()
    assert line_with(lines, "meeting notes").split()[2:] == "– 90.0 90.0 – 95.0 – 96.0 –".split()
    assert line_with(lines, "I-LoRA slow (answers)  76").split()[3:] == ["76.7", "-7.5", "7.5", "–", "81.7"]
    assert line_with(lines, "sequential").split() == ["sequential", "48.7", "-56.5", "56.5", "–", "86.3"]


def test_one_contrast_run_and_one_variant_show_every_column() -> None:
    main, other = three_tasks()
    del main["variants"]["fast"]
    lines = lines_of(run_table(main, [other]))
    assert line_with(lines, "fomc").split() == "fomc 25.0 65.0 60.0 5.0 72.0 30.0 42.0".split()
    assert "(answers)" not in "".join(lines)  # nothing to tell apart


@pytest.mark.parametrize("contrasts", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_at_most_100_columns_and_aligned(contrasts: int, count: int) -> None:
    names = [f"super-natural-instructions-of-many-tasks-{i:03d}" for i in range(count)]
    before = [0.1] * count
    main = results(
        names,
        {"slow": simulated(count, 0.05, 1, before=before), "fast": simulated(count, 0.1, 1, before=before)},
    )
    others = [
        results(names, {"fast": simulated(count, 0.5, 2, before=before)}, method=f"method-{i}")
        for i in range(contrasts)
    ]
    lines = lines_of(run_table(main, others), width=200)
    assert max(cell_len(line.rstrip()) for line in lines) <= 100
    body = [line for line in lines if line.strip().startswith("super-na")]
    assert len(body) == count
    assert len({len(line) for line in body}) == 1
    assert len({line.split()[0] for line in body}) == count  # cut names still tell their tasks apart
    text = "\n".join(lines)
    for i in range(contrasts):
        assert f"method-{i}" in text
    assert ("more in the summary only" in text) == (contrasts >= 3)


def test_contrast_runs_are_paired_by_task_not_by_place() -> None:
    main, _ = three_tasks()
    swapped = results(["fomc", "stance"], {"fast": [[0.7, None], [0.3, 0.9]]}, method="sequential")
    scores = row_values(main, [swapped]).series[2].scores
    assert [s.kept for s in scores] == [0.9, 0.3, None]


def test_equal_methods_are_told_apart_by_the_name_of_their_run() -> None:
    main = results(["a"], {"fast": [[0.5]]}, name="warm")
    values = row_values(main, [{**main, "name": "cold"}])
    assert [s.title for s in values.series] == ["I-LoRA warm", "I-LoRA cold"]


def test_joint_run() -> None:
    main = results(["a", "b"], {"fast": [[0.5, 0.7], [0.5, 0.7]]}, method="sequential", stream="joint")
    entry = main["variants"]["fast"]
    entry["R"], entry["n"] = [[0.5, 0.7]], [[20, 20]]
    entry["summary"] = {"OP": 0.6, "BWT": None, "forgetting": None, "FWT": None, "plasticity": None}
    main["phases"] = ["joint"]
    values = row_values(main)
    assert values.finished == 2
    assert [s.kept for s in values.series[0].scores] == [0.5, 0.7]
    assert [s.forgotten for s in values.series[0].scores] == [None, None]
    assert line_with(lines_of(run_table(main)), "joint ").split() == ["joint", "60.0", "–", "–", "–", "–"]


def test_single_task() -> None:
    main = results(["only"], {"fast": [[0.75]]}, method="sequential", zero_shot=[0.5])
    assert line_with(lines_of(run_table(main)), "only").split() == ["only", "50.0", "75.0", "75.0", "–"]


def hostile(main: Json, name: str) -> Json:
    changed = copy.deepcopy(main)
    changed["tasks"][0]["name"] = name
    return changed


def test_markup_and_control_characters_in_a_name_are_text() -> None:
    lines = lines_of(run_table(hostile(three_tasks()[0], "[red]x[/red]\x1b[31m\n")))
    assert any("[red]x[/red] [31m" in line for line in lines)
    assert "\x1b" not in "".join(lines)


def test_markdown_table() -> None:
    main, other = three_tasks()
    text = markdown_table(hostile(main, "a|b <b> [x](y) *z*"), [other])
    rows = text.splitlines()
    cells = "| 10.0 | 90.0 | 80.0 | 10.0 | 92.0 | 50.0 | 42.0 | 91.0 | 20.0 | 71.0 |"
    assert rows[2] == rf"| a\|b \<b\> \[x\](y) \*z\* {cells}"
    assert rows[5].startswith("| average | – | 81.7 | 76.7 | 7.5 |")
    assert "| I-LoRA slow (answers) | 76.7 | -7.5 | 7.5 | – | 81.7 |" in rows
    head, rule = rows[0], rows[1]
    assert head.count("|") == rule.count("|") == rows[3].count("|")


@pytest.mark.parametrize(
    ("score", "text"),
    [(None, "–"), (0.0, "0.0"), (-0.0001, "0.0"), (0.71249, "71.2"), (1.0, "100.0"), (-0.013, "-1.3")],
)
def test_points(score: float | None, text: str) -> None:
    assert points(score) == text


def test_plain_keeps_both_ends() -> None:
    assert plain("abcdefghijklmno", 10) == "abcdef…mno"
    assert plain("a\nb\x00") == "a b "


def test_the_fixture_agrees_with_the_measures_of_the_package() -> None:
    from ilora.results.matrix import summarise

    for rows in (SLOW, SEQUENTIAL):
        expected = summarise(rows, ZERO_SHOT)
        series = row_values(results(["a", "b", "c"], {"fast": rows})).series[0]
        assert {k: v for k, v in series.summary.items() if k != "FWT"} == pytest.approx(
            {k: v for k, v in expected.items() if k != "FWT"}
        )
        forgotten = [s.forgotten for s in series.scores if s.forgotten is not None]
        assert sum(forgotten) / len(forgotten) == pytest.approx(expected["forgetting"])
