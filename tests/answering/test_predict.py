"""Answers to many rows: the evaluation's own, in order, into a file that goes on after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilora.answering.predict import Predictor, predict_file
from ilora.commands.predict import predict, predict_command
from ilora.errors import InputError
from ilora.results.scores import read_records
from tests.helpers import Killed

Rows = list[dict[str, Any]]
NOTHING: dict[str, Any] = {"name": None, "task": None, "max_tokens": None, "batch_size": None}


@pytest.fixture
def rows(data: Path) -> Rows:
    """The test rows of the first task."""
    found: Rows = json.loads((data / "one" / "test.json").read_text())
    return found


@pytest.fixture
def source(rows: Rows, tmp_path: Path) -> Path:
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row | {"number": n}) + "\n" for n, row in enumerate(rows)))
    return file


@pytest.mark.parametrize(
    ("weights", "file"),
    [
        (None, "after-02-two/one.jsonl"),
        ("base", "after-00-base/one.jsonl"),
        ("fast", "after-02-two/fast/one.jsonl"),
        ("phase:1", "after-01-one/one.jsonl"),
    ],
)
def test_answers_and_scores_are_those_of_the_evaluation(
    weights: str | None, file: str, finished: Path, rows: Rows
) -> None:
    made = predict(finished, rows, weights=weights, task="one", quiet=True)
    expected = read_records(finished / "predictions" / file)
    assert [(row["prompt"], row["prediction"], row["score"]) for row in made] == [
        (row["prompt"], row["prediction"], row["score"]) for row in expected
    ]


def test_without_a_task_nothing_is_scored_and_the_answers_are_the_same(finished: Path, rows: Rows) -> None:
    made = predict(finished, [{"prompt": row["prompt"]} for row in rows], quiet=True)
    expected = read_records(finished / "predictions" / "after-02-two" / "one.jsonl")
    assert made == [{"prompt": row["prompt"], "prediction": row["prediction"]} for row in expected]


def test_other_forms_and_fields(finished: Path, rows: Rows) -> None:
    question = rows[0]["prompt"]
    given = [
        {"prompt": question, "answer": None, "page": 7},
        {"messages": [{"role": "user", "content": question}], "page": 8},
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "dog"}]},
    ]
    made = predict(finished, given, task="one", quiet=True)
    assert [list(row) for row in made] == [
        ["prompt", "answer", "page", "prediction"],
        ["messages", "page", "prediction"],
        ["messages", "prediction", "score"],
    ]
    assert len({row["prediction"] for row in made}) == 1
    assert given[1]["messages"] == [{"role": "user", "content": question}]  # left as it was


def test_a_killed_one_goes_on_to_the_same_file(
    finished: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ilora.answering.predict.BATCHES", 2)
    chosen = NOTHING | {"task": "one", "batch_size": 1}  # four blocks of two rows
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    predict_file(Predictor(finished, **chosen), source, whole, quiet=True)
    answer, asked = Predictor.answer, []

    def dying(self: Predictor, questions: Any, **more: Any) -> Any:
        if len(asked) == 2:
            raise Killed
        asked.append(len(questions))
        return answer(self, questions, **more)

    monkeypatch.setattr(Predictor, "answer", dying)
    with pytest.raises(Killed):
        predict_file(Predictor(finished, **chosen), source, out, quiet=True)
    monkeypatch.setattr(Predictor, "answer", answer)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert out.read_bytes() == b"".join(lines[:4])
    out.write_bytes(b"".join(lines[:5]) + lines[5][:7])  # the next block was cut off by the kill
    found = predict_file(Predictor(finished, **chosen), source, out, quiet=True)
    assert found["there"] == 4
    assert out.read_bytes() == whole.read_bytes()
    assert [json.loads(line)["number"] for line in lines] == list(range(8))
    monkeypatch.setattr(Predictor, "answer", lambda *_: pytest.fail("all answers are there"))
    done = predict_command(finished, source, out, quiet=True, **chosen)
    assert "8 of them were there" in done[0]
    expected = [row["score"] for row in read_records(finished / "predictions" / "after-02-two" / "one.jsonl")]
    assert f"{100 * sum(expected) / 8:.1f}" in done[1]


def test_a_file_of_another_origin_is_left_alone(finished: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("something of the user's\n")
    with pytest.raises(InputError, match=r"out.jsonl: exists already"):
        predict_file(Predictor(finished, **NOTHING), source, out, quiet=True)
    assert out.read_text() == "something of the user's\n"
    out.unlink()
    predict_file(Predictor(finished, **NOTHING), source, out, quiet=True)
    before = out.read_bytes()
    for change, named in (({"name": "base"}, "adapters"), ({"max_tokens": 3}, "settings"), ({"task": "one"}, "judged")):
        with pytest.raises(InputError, match=f"made from other .*{named}"):
            predict_file(Predictor(finished, **NOTHING | change), source, out, quiet=True)
    source.write_text(source.read_text().replace("one 0", "one 9", 1))
    with pytest.raises(InputError, match="input_sha256"):
        predict_file(Predictor(finished, **NOTHING), source, out, quiet=True)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a", "prediction": "b"}', ["in.jsonl:1", "'prediction'"]),
        ('{"prompt": " "}', ["in.jsonl:1", "'prompt' is blank"]),
        ('{"question": "a"}', ["in.jsonl:1", "'question'"]),
        ('{"prompt": "a"', ["in.jsonl:1", "not JSON"]),
        ('{"messages": [{"role": "boss", "content": "a"}]}', ["in.jsonl:1", "messages[1]", "'boss'"]),
        ('["a"]', ["in.jsonl:1", "a list"]),
        ("", ["in.jsonl: no rows"]),
    ],
)
def test_rows_that_cannot_be_used(line: str, says: list[str], finished: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(InputError) as raised:
        predict_file(Predictor(finished, **NOTHING | {"task": "one"}), file, out, quiet=True)
    assert all(part in str(raised.value) for part in says), raised.value
    assert not out.parent.exists()


def test_what_the_run_does_not_have(finished: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no task 'on'.*did you mean 'one'"):
        Predictor(finished, **NOTHING | {"task": "on"})
    with pytest.raises(InputError, match=r"--out .*\.jsonl"):
        predict_command(finished, source, tmp_path / "out.csv", quiet=True, **NOTHING)


def test_of_two_that_write_one_file_the_second_is_refused(
    finished: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, answer = tmp_path / "out.jsonl", Predictor.answer
    seen: list[str] = []

    def meanwhile(self: Predictor, *others: Any, **more: Any) -> Any:
        monkeypatch.setattr(Predictor, "answer", answer)
        with pytest.raises(InputError, match="another process"):
            predict_file(Predictor(finished, **NOTHING), source, out, quiet=True)
        seen.append("refused")
        return self.answer(*others, **more)

    monkeypatch.setattr(Predictor, "answer", meanwhile)
    predict_file(Predictor(finished, **NOTHING), source, out, quiet=True)
    assert seen == ["refused"]
    assert len(out.read_text().splitlines()) == 8


def test_ranked_tasks_are_ranked(finished: Path, rows: Rows, tmp_path: Path) -> None:
    """The same run, whose first task is now answered by ranking its choices."""
    run = Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "trajectory")))
    values, choices = yaml.safe_load((run / "config.yaml").read_text()), ["cat", "dog", "owl", "fox"]
    values["data"]["tasks"][0] |= {"scoring": "rank", "metric": "accuracy", "choices": choices}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    made = predict(run, rows, task="one", quiet=True)
    assert {row["prediction"] for row in made} <= set(choices)
    assert {row["score"] for row in made} <= {0.0, 1.0}
