"""gate.yaml: defaults, limits of single tasks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ilora import InputError, gate
from ilora.gates.rules import Rules, as_yaml, read_rules
from tests.gates.conftest import MakeRun, right


def test_without_a_file_the_defaults_hold_and_can_be_written_out(tmp_path: Path) -> None:
    rules, source = read_rules(tmp_path)
    assert rules == Rules()
    assert "defaults" in source
    (tmp_path / "gate.yaml").write_text(as_yaml(rules))
    assert read_rules(tmp_path) == (rules, str(tmp_path / "gate.yaml"))
    assert yaml.safe_load(as_yaml(rules)) == rules.model_dump()


def test_the_defaults_of_a_run_may_be_written_to_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("")  # what a shell makes before `ilora gate RUN --show-rules > RUN/gate.yaml`
    assert read_rules(tmp_path) == (Rules(), "the defaults")


def test_a_file_that_is_named_takes_the_place_of_the_runs_own(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("hard: 20\n")
    other = tmp_path / "strict.yaml"
    other.write_text("earlier_tasks: {best: 1}\nlimits: {Meeting Notes: {best: 7, hard: 8}}\n")
    rules, source = read_rules(tmp_path, other)
    assert source == str(other)
    assert [rules.limit("best", task) for task in ("meeting-notes", "fomc")] == [7, 1]
    assert [rules.limit("hard", task) for task in ("meeting-notes", "fomc")] == [8, 15]
    assert rules.limit("least", "fomc") is None
    assert yaml.safe_load(as_yaml(rules))["limits"] == {"Meeting Notes": {"best": 7, "hard": 8}}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("earlier_tasks: {bets: 3}", "earlier_tasks.bets: unknown key (did you mean 'best'"),
        ("hard: 200", "hard: "),
        ("hard: yes", "hard: "),
        ("few_rows: perhaps", "few_rows: "),
        ("confidence: 95", "confidence: "),
        ("confidence: 0.9999999999999999", "confidence: "),  # the error would round to 0
        ("limits: {One: {best: 3}, one: {best: 5}}", "One, one are one task"),
        ("limits: {../x: {best: 3}}", "limits: task name '../x'"),
        ("limits: {one: {beast: 3}}", "limits.one.beast: unknown key"),
        ("hard: [", "not valid YAML"),
        ("hard: 3\nhard: 4", "twice"),
        ("- 3", "expected a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        read_rules(tmp_path)
    assert str(tmp_path / "gate.yaml") in str(error.value)
    assert named in str(error.value)


def test_limits_of_a_task_that_is_not_there_are_refused(make_run: MakeRun) -> None:
    run = make_run({"01-one": {"one": right(3, 4)}}, tasks=("one",))
    (run / "gate.yaml").write_text("limits: {ones: {best: 3}}\n")
    with pytest.raises(InputError, match=r"limits\.ones: .*there are one"):
        gate(run)
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        gate(run, rules=run / "nothing.yaml")
