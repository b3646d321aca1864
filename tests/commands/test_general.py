"""`ilora general`, with a harness that only notes what it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ilora import cli, run
from ilora.commands.general import compared, general, lines
from ilora.errors import IloraError, InputError
from ilora.report.html import write_report
from tests.helpers import MakeConfig

pytestmark = [pytest.mark.usefixtures("sketched"), pytest.mark.xdist_group("general")]  # one worker makes the run

HARNESS = """
import json
def simple_evaluate(**asked):
    with open("asked.jsonl", "a") as file:
        file.write(json.dumps(asked) + "\\n")
    if asked["tasks"] == ["unheard"]:
        raise KeyError("unheard")
    score = 0.5 if "peft" in asked["model_args"] else 0.625
    return {"results": {task: {"alias": task, "sample_len": 3, "acc,none": score, "acc_stderr,none": 0.1,
                               "perplexity,none": 9.0, "perplexity_stderr,none": "N/A"} for task in asked["tasks"]}}
"""


@pytest.fixture
def fake_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `lm_eval`; what it is asked stands in asked.jsonl of the folder that is returned."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "lm_eval.py").write_text(HARNESS)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(__import__("sys").modules, "lm_eval", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = make_config("data.tasks=[one]", "training.epochs=1", "evaluation.zero_shot=false", "contrast=[sequential]")
    return run(config, folder, quiet=True).path


def test_the_command(
    fake_harness: Path,
    finished: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["ilora", "general", str(finished), "--tasks", "arc_easy, sciq", "--limit", "3"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    before, after = map(json.loads, (fake_harness / "asked.jsonl").read_text().splitlines())
    assert (before["model"], before["tasks"], before["limit"]) == ("hf", ["arc_easy", "sciq"], 3)
    assert before["model_args"] == {"pretrained": str(tiny_model), "dtype": "float32"}
    adapter = json.loads((finished / "results.json").read_text())["adapter"]
    assert after["model_args"] == before["model_args"] | {"peft": str(finished / adapter)}
    assert "arc_easy acc: 0.6250 ± 0.1000 before, 0.5000 ± 0.1000 after" in capsys.readouterr().out
    content = json.loads((finished / "general.json").read_text())
    assert (content["schema"], content["limit"], content["adapter"]) == (1, 3, adapter)
    assert content["scores"][0] == {
        "task": "arc_easy", "metric": "acc", "before": 0.625, "after": 0.5, "before_stderr": 0.1, "after_stderr": 0.1
    }  # fmt: skip
    assert content["scores"][1]["before_stderr"] is None
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "What the base model could do and still can" in page
    assert "0.6250 ± 0.1000" in page
    assert "-0.1250" in page


def test_a_contrast_run_stands_on_the_same_page(fake_harness: Path, finished: Path) -> None:
    general(finished / "contrast" / "sequential", ["only_there"])
    assert "only_there, acc" in (finished / "report.html").read_text(encoding="utf-8")


def test_what_cannot_be_measured(fake_harness: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        general(fake_harness, ["x"])
    results = finished / "results.json"
    text = results.read_text()
    for change, problem in (({"adapter": None}, "leaves no single adapter"), ({"complete": False}, "not finished")):
        results.write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(InputError, match=problem):
            general(finished, ["x"])
    results.write_text(text)
    with pytest.raises(IloraError, match="lm_eval: KeyError: 'unheard'"):
        general(finished, ["unheard"])
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'ilora\[harness\]'"):
        general(finished, ["x"])


def test_scores_side_by_side() -> None:
    before = {
        "t": {"alias": "t", "exact_match,strict": 0.25, "exact_match_stderr,strict": 0.5, "bad,none": float("nan")}
    }
    (row,) = compared(before, {})
    assert (row["metric"], row["before"], row["before_stderr"], row["after"]) == ("exact_match,strict", 0.25, 0.5, None)
    assert lines({"scores": [row]}) == ["t exact_match,strict: 0.2500 ± 0.5000 before, – after"]


def test_a_damaged_file_is_passed_over(finished: Path) -> None:
    for content in ("{", "[]", '{"scores": 3}', '{"scores": [3, {"task": "<b>x</b>", "before": "y"}]}'):
        (finished / "general.json").write_text(content)
        page = write_report(finished).read_text(encoding="utf-8")
        assert "<b>x</b>" not in page
