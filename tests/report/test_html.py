from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ilora.report import write_report
from ilora.report.html import headline
from tests.report.fake_run import (
    metric_lines,
    results,
    three_tasks,
    write_demo,
    write_predictions,
    write_run,
)

pytestmark = pytest.mark.usefixtures("sketched")

ATTACK = "</svg></title></style></pre><script>alert('x')</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """The tags, the attributes that act, and the visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_settings_that_changed_are_named_and_inert(tmp_path: Path) -> None:
    run = write_demo(tmp_path / "demo")
    file = run / "results.json"
    found = json.loads(file.read_text())
    found["tasks"][2]["settings"] = {"training.learning_rate": 1e-4, "method.memory_size": ATTACK}
    file.write_text(json.dumps(found))
    page = Page(write_report(run))
    assert f"task 3 ({found['tasks'][2]['name']}) on: training.learning_rate 0.0001" in page.text
    assert "script" not in page.tags


@pytest.mark.usefixtures("drawn")
def test_page_of_a_run_with_a_contrast_run(tmp_path: Path) -> None:
    run = write_demo(tmp_path / "demo")
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    assert "3 tasks learnt with I-LoRA." in page.text
    assert "It ends at 76.7 points on average, 7.5 points were forgotten (BWT)" in page.text
    assert "; sequential fine-tuning beside it ends at 48.7 and forgot 56.5." in page.text
    order = [page.text.index(title) for title in (
        "3 tasks learnt", "Kept at the end", "Task by task", "Pictures", "What was forgotten",
        "Use the adapter", "Rows that were cut", "Cost", "Settings",
    )]  # fmt: skip
    assert order == sorted(order)
    assert page.tags.count("svg") == 7  # bars, curves, three heat maps, loss
    assert "model: smollm2-135m" in page.text
    assert "not finished" not in page.text


def test_page_has_the_numbers_of_the_table(tmp_path: Path) -> None:
    text = Page(write_report(write_demo(tmp_path / "demo"))).text
    row = "10.0 90.0 80.0 10.0 92.0 50.0 42.0 91.0 20.0 71.0"
    assert f"stance accuracy · 20 rows {row}" in text
    assert "sequential 48.7 −56.5 56.5 – 86.3" in text


@pytest.mark.usefixtures("drawn")
def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = Page(write_report(write_demo(tmp_path / "demo")))
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    for name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "action", "srcset"}:
            assert value.startswith("#")
    assert "@import" not in page.source
    assert not re.search(r"url\((?!#)", page.source)


@pytest.mark.usefixtures("drawn")
def test_hostile_text_is_inert_wherever_it_comes_from(tmp_path: Path) -> None:
    main, other = three_tasks()
    for content in (main, other):
        content["tasks"][0] |= {"name": ATTACK, "metric": ATTACK, "truncated": {ATTACK: 3}, ATTACK: 5}
        content["phases"][0] = ATTACK
        content |= {"name": ATTACK, "model": ATTACK, "seed": ATTACK, "adapter": f"adapters/{ATTACK}"}
        content["cost"]["stored_bytes"][ATTACK] = 5
    main["variants"] = {"slow": main["variants"]["slow"], ATTACK: main["variants"]["fast"]}
    run = write_run(tmp_path / "demo", main)
    write_predictions(run, {**main, "phases": ["a", "b", "c"]}, prompt=ATTACK)
    write_run(run / "contrast" / "bad & <b>", {**other, "method": ATTACK}, predictions=False)
    (run / "contrast" / "<i>empty").mkdir()
    (run / "config.yaml").write_text(f"name: {ATTACK}", encoding="utf-8")
    lines = [line | {"task": ATTACK, "terms": {"ce": 1.0, ATTACK: 2.0}} for line in metric_lines(["x"])]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    page = Page(write_report(run))
    assert not {"script", "img", "i", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.source.count("<script") == page.source.count("<img") == 0
    assert html.escape(ATTACK, quote=False).split("alert")[0] in page.source  # shown, as text
    assert page.source.count("</html>") == page.source.count("</style>") - page.tags.count("style") + 1


def test_prompt_with_a_script_is_shown_as_text(tmp_path: Path) -> None:
    main, _ = three_tasks()
    run = write_run(tmp_path / "demo", main, predictions=False)
    write_predictions(run, main, prompt="<script>alert(1)</script>")
    page = Page(write_report(run))
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, number 16?" in page.source


def test_ten_right_rows_are_no_certainty(tmp_path: Path) -> None:
    main = results(["a", "b"], {"fast": [[0.6, None], [1.0, 0.7]]})
    main["variants"]["fast"] |= {"se": [[0.16, None], [0.0, 0.1528]], "n": [[10, None], [10, 10]]}
    page = Page(write_report(write_run(tmp_path / "demo", main, predictions=False)))
    assert "100.0(72–100)" in page.text.replace(" ", "")
    assert "70.0±15.3" in page.text.replace(" ", "")
    assert "85.0±8.4" in page.text.replace(" ", "")  # of the mean: both tasks' errors, ±7.1 and ±15.3
    assert "gained 40.0" in page.text


def test_examples_of_what_was_forgotten(tmp_path: Path) -> None:
    """stance: 18 of 20 right when learnt, 16 at the end, so rows 16 and 17; fomc: 13, then 12: row 12."""
    main, _ = three_tasks()
    page = Page(write_report(write_run(tmp_path / "demo", main)))
    assert "3 of 40 test rows were right just after their task was learnt and are wrong at the end; 0 went" in page.text
    assert "stance · 2 of 20 rows lost" in page.text
    assert "fomc · 1 of 20 rows lost" in page.text
    assert [n for n in range(20) if f"number {n}?" in page.text] == [12, 16, 17]
    assert "Reference C Answer then C Answer now positive, I would say" in page.text


def test_examples_are_capped_and_long_prompts_lose_their_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for figure in ("bars_svg", "curves_svg", "heatmap_svg"):  # of 28 tasks they take long, even when not rendered
        monkeypatch.setattr(f"ilora.report.html.{figure}", lambda *_, **__: None)
    count = 28
    rows = [[None if k < i else 0.9 if k == i else 0.1 for i in range(count)] for k in range(count)]
    main = results([f"task {i}" for i in range(count)], {"fast": rows})
    run = write_run(tmp_path / "demo", main, metrics=False, predictions=False)
    write_predictions(run, main, prompt="long " * 20_000)
    page = Page(write_report(run))
    assert page.tags.count("blockquote") == 80
    assert "[… 98" in page.text
    assert "number 3?" in page.text
    assert "task 0 · 16 of 20 rows lost, 3 shown" in page.text
    examples = page.source[page.source.index("What was forgotten") : page.source.index("Use the adapter")]
    assert len(examples) < 200_000


def test_run_without_contrast_metrics_predictions_and_adapter(tmp_path: Path) -> None:
    main, _ = three_tasks()
    main["adapter"] = None
    page = Page(write_report(write_run(tmp_path / "demo", main, metrics=False, predictions=False)))
    assert "Training loss" not in page.text
    assert "There are no predictions of two phases to compare." in page.text
    assert "The run has not written an adapter yet." in page.text
    assert "beside it" not in page.text


def test_unfinished_runs_say_so(tmp_path: Path) -> None:
    main, _ = three_tasks()
    main["complete"] = False
    for entry in main["variants"].values():
        entry["R"] = entry["R"][:2]
        entry["summary"] = {"OP": 0.725, "BWT": -0.05, "forgetting": 0.05, "FWT": None, "plasticity": 0.775}
    run = write_run(tmp_path / "demo", main)
    (run / "contrast" / "sequential").mkdir(parents=True)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": 12.5, "task": "fo')  # killed while it wrote
    text = Page(write_report(run)).text
    assert "Not finished: 2 of 3 tasks learnt with I-LoRA." in text
    assert "It stands at 72.5 points on average, 5.0 points were forgotten (BWT)." in text
    assert "The contrast run sequential has no results yet." in text


def test_run_stopped_before_its_first_result(tmp_path: Path) -> None:
    main, _ = three_tasks()
    main |= {"complete": False, "adapter": None}
    main["variants"] = {"slow": {"zero_shot": None, "R": [], "n": [], "summary": {}}}
    text = Page(write_report(write_run(tmp_path / "demo", main, predictions=False))).text
    assert "There is no final score yet." in text
    assert "Learnt and kept" not in text


def test_joint_run(tmp_path: Path) -> None:
    main = results(["a", "b"], {"fast": [[0.5, 0.7], [0.5, 0.7]]}, method="sequential", stream="joint")
    summary = {"OP": 0.6, "BWT": None, "forgetting": None, "FWT": None, "plasticity": None}
    main["variants"]["fast"] = {"zero_shot": None, "R": [[0.5, 0.7]], "n": [[9, 9]], "summary": summary}
    main["phases"] = ["joint"]
    page = Page(write_report(write_run(tmp_path / "demo", main)))
    assert "2 tasks learnt together (joint training)." in page.text
    assert "It ends at 60.0 points on average." in page.text
    assert "Every task over time" not in page.text


@pytest.mark.parametrize(
    ("bwt", "text"),
    [(-0.013, ", 1.3 points were forgotten (BWT)."), (0.02, ", earlier tasks gained 2.0 (BWT)."), (None, " average.")],
)
def test_headline_tells_loss_and_gain(bwt: float | None, text: str) -> None:
    main, _ = three_tasks()
    main["variants"]["slow"]["summary"]["BWT"] = bwt
    assert headline(main)[1].endswith(text)


def test_headline_of_one_task() -> None:
    assert headline(results(["only"], {"fast": [[0.5]]}))[0] == "1 task learnt with I-LoRA."


def test_adapter_and_base_model_as_code_that_runs(tmp_path: Path) -> None:
    main, _ = three_tasks()
    run = write_run(tmp_path / 'de"mo', main | {"base_model": "HuggingFaceTB/SmolLM2-135M"})
    source = Page(write_report(run)).text
    code = source[source.index("model = PeftModel.from_pretrained") :].split(" Rows that were cut")[0]
    seen: list[object] = []

    class PeftModel:
        from_pretrained = staticmethod(lambda *arguments: seen.extend(arguments))

    exec(code, {"PeftModel": PeftModel, "base": "BASE"})
    assert seen == ["BASE", (run / "adapters/03-meeting-notes/slow").as_posix()]
    assert 'AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")' in source


def test_truncated_rows_and_cost(tmp_path: Path) -> None:
    main, _ = three_tasks()
    main["tasks"][1]["truncated"] = {"train": 7, "test": 0}
    text = Page(write_report(write_run(tmp_path / "demo", main))).text
    assert "fomc train 7 160" in text
    assert "2 min 0 s" in text
    assert "240,000" in text
    assert "Tokens per second 2,000" in text
    assert "3.0 GiB" in text
    assert "Stored: memory 64.0 KiB" in text


def test_rows_left_out_as_repeated(tmp_path: Path) -> None:
    main, _ = three_tasks()
    main["tasks"][1]["dropped"] = {"train": 7, "eval": 0, "test": 2}
    text = Page(write_report(write_run(tmp_path / "demo", main))).text
    assert "(data.deduplicate): 7 train rows of fomc, 2 test rows of fomc." in text
    assert "Left out" not in Page(write_report(write_demo(tmp_path / "none"))).text


def test_no_row_was_cut(tmp_path: Path) -> None:
    assert "None: every row fitted." in Page(write_report(write_demo(tmp_path / "demo"))).text


@pytest.mark.usefixtures("drawn")
def test_the_same_run_gives_the_same_bytes_and_leaves_no_other_file(tmp_path: Path) -> None:
    run = write_demo(tmp_path / "demo")
    before = {path.name for path in run.iterdir()}
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_line_separators_inside_a_text_do_not_split_its_line(tmp_path: Path) -> None:
    main, _ = three_tasks()
    run = write_run(tmp_path / "demo", main, predictions=False)
    write_predictions(run, main, prompt="one\u2028two")
    for path in run.glob("predictions/*/*.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace("\\u2028", "\u2028"), encoding="utf-8")
    assert "3 of 40 test rows" in Page(write_report(run)).text


@pytest.mark.usefixtures("drawn")
def test_twenty_tasks_stay_small(tmp_path: Path) -> None:
    run = write_demo(tmp_path / "demo", 20)
    assert write_report(run).stat().st_size < 1_500_000


def test_template_lies_beside_the_module() -> None:
    """Where a wheel puts it: jinja2.PackageLoader finds it through the package, not through the working folder."""
    from importlib.resources import files

    assert (files("ilora.report") / "report.html.jinja").is_file()
