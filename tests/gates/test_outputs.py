"""The decision in every form, with names that try to be more than text; and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from ilora import cli, gate
from ilora.errors import InputError
from ilora.gates.outputs import as_junit, as_markdown, sentences
from ilora.handover.card import Wishes
from ilora.handover.export import export_source
from ilora.handover.source import Source
from tests.gates.conftest import MakeRun, right
from tests.gates.test_judge import two_months

BAD = 'x]]> <b>"&\x07\x1b[31m | `y`'


def test_junit_has_a_case_for_each_rule(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=60), tasks=("one", "two"))
    decision = gate(run)
    suite = ET.fromstring(as_junit(decision)).find("testsuite")
    assert suite is not None
    assert [suite.get(key) for key in ("tests", "failures", "skipped")] == ["2", "1", "0"]
    failures = [case for case in suite if case.find("failure") is not None]
    assert ["one" in str(case.get("name")) for case in failures] == [True]


def test_undecidable_rules_are_skipped_or_fail(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=4, rows=40), tasks=("one", "two"))
    suite = ET.fromstring(as_junit(gate(run))).find("testsuite")
    assert suite is not None
    assert [suite.get(key) for key in ("failures", "skipped")] == ["0", "1"]
    (run / "gate.yaml").write_text("few_rows: fail\n")
    suite = ET.fromstring(as_junit(gate(run))).find("testsuite")
    assert suite is not None
    assert [suite.get(key) for key in ("failures", "skipped")] == ["1", "0"]


def test_untrusted_text_stays_text(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=60), tasks=("one", "two"), name=BAD)
    row = {"task": BAD, "metric": "acc", "before": 0.9, "after": 0.1}
    (run / "general.json").write_text(json.dumps({"adapter": "adapters/02-two/fast", "scores": [row]}))
    decision = gate(run)
    suite = ET.fromstring(as_junit(decision)).find("testsuite")
    assert suite is not None
    assert any("<b>" in str(case.get("name")) for case in suite)  # escaped in the file, read back here
    text = as_markdown(decision)
    assert "<b>" not in text.replace("\\<b\\>", "")
    for found in (text, "\n".join(sentences(decision)), as_junit(decision).decode()):
        assert "\x1b" not in found
        assert "\x07" not in found


def test_the_command_writes_all_forms_and_says_by_its_exit_code(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(two_months(lost=60), tasks=("one", "two"))
    files = [tmp_path / name for name in ("d.json", "d.xml", "d.md")]
    options = [word for pair in zip(("--json", "--junit", "--markdown"), map(str, files), strict=True) for word in pair]
    done = CliRunner().invoke(cli.app, ["gate", str(run), *options])
    assert done.exit_code == 1
    assert "best so far" in done.stdout
    assert "What to try" in done.stdout
    assert json.loads(files[0].read_text()) == json.loads((run / "gate.json").read_text())
    assert all(file.stat().st_size for file in files)
    (run / "gate.yaml").write_text("earlier_tasks: {best: 50}\nhard: null\n")
    assert CliRunner().invoke(cli.app, ["gate", str(run), "--quiet"]).exit_code == 0


def test_bad_input_is_2(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run({"01-one": {"one": right(3, 4)}}, tasks=("one",))
    for words in (["gate", str(run / "no")], ["gate"], ["gate", str(run), "--phase", "3"]):
        monkeypatch.setattr(sys, "argv", ["ilora", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("ilora: ")


def test_the_rules_are_printed_as_a_file(make_run: MakeRun, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["gate", "--show-rules"])
    assert done.exit_code == 0
    file = tmp_path / "rules.yaml"
    file.write_text(done.stdout)
    run = make_run(two_months(lost=0), tasks=("one", "two"))
    assert gate(run, rules=file)["rules"] == gate(run)["rules"]


def test_no_form_is_written_over_a_file_of_a_run(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(two_months(lost=0), tasks=("one", "two"))
    kept = (run / "results.json").read_bytes()
    scores = run / "releases" / "1" / "scores.json"
    for command, option, file in (
        ("gate", "--markdown", run / "results.json"),
        ("gate", "--json", scores),
        ("diff", "--jsonl", run / "results.json"),
        ("predict", "--out", scores.with_suffix(".jsonl")),
    ):
        rows = ["rows.jsonl"] if command == "predict" else []
        monkeypatch.setattr(sys, "argv", ["ilora", command, str(run), *rows, option, str(file)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert f"{option} {file}: belongs to the run" in capsys.readouterr().err
    assert (run / "results.json").read_bytes() == kept
    assert not scores.exists()
    assert not (run / "gate.json").exists()
    done = CliRunner().invoke(cli.app, ["gate", str(run), "--markdown", str(run / "gate.md")])  # a file beside them
    assert done.exit_code == 0
    assert (run / "gate.md").is_file()


def test_an_export_does_not_go_into_a_release(make_run: MakeRun) -> None:
    run = make_run(two_months(lost=0), tasks=("one", "two"))
    with pytest.raises(InputError, match="belongs to the run"):
        export_source(cast(Source, None), run / "releases" / "1" / "handed", kind="peft", wishes=Wishes())
    assert not (run / "releases" / "1").exists()
