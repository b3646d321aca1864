"""The time of a run, said before its first step: by a rate that is given, so nothing here depends on the machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ilora import run
from ilora.data.examples import Example
from ilora.model.operations import operations
from ilora.model.sizes import sizes_of
from ilora.training.expected import SHARES, Time, expected_time
from ilora.training.session import Session
from tests.helpers import SMALL, MakeConfig, begin

TIME = Time(steps=140, operations=2e12, processes=1, rate=1e9, share=0.5, launched=False)


def expected(session: Session, rate: float = 1e9) -> Time:
    plans = [session.plan(phase) for phase in session.stream.phases]
    return expected_time(session.method, session.config, session.stream, plans, rate=rate)


def mean(rows: list[Example], answers: bool = False) -> float:
    return sum(len(row.answer) if answers else len(row) for row in rows) / len(rows)


def by_hand(session: Session, count: int, rows: list[Example]) -> float:
    """Operations of so many rows that are as these are on average."""
    engine = session.method.engine
    sizes = sizes_of(engine.core, element=4, dropout=False)
    trained = sum(parameter.numel() for parameter in session.method.trainable)
    tokens = mean(rows)
    each = operations(sizes, trained=trained, tokens=tokens, answer=mean(rows, answers=True), checkpointing=False)
    return count * tokens * each


def test_what_is_said() -> None:
    assert TIME.seconds == 4000.0
    assert "about 1 h 6 min" in TIME.line()
    assert "140 steps of 29 s, if 50% of it is matrix products" in TIME.line()
    assert "at least 1 h 6 min" in replace(TIME, launched=True).line()
    assert replace(TIME, processes=4).seconds == 1000.0


def test_rows_of_the_task_and_those_that_are_replayed_are_counted(make_config: MakeConfig, tmp_path: Path) -> None:
    """Task one: two epochs of 24 rows; task two: four steps of eight new and eight old ones."""
    config = make_config(*SMALL[:3], "data.tasks=[one, {name: two, settings: {training.max_steps: 4}}]")
    session = begin(config, tmp_path / "run")
    one, two = (list(rows) for rows in session.stream.train.values())
    found = expected(session)
    assert found.steps == 6 + 4
    total = by_hand(session, 2 * 24, one) + by_hand(session, 32, two) + by_hand(session, 32, one)
    assert found.operations == pytest.approx(total)
    assert found.seconds == pytest.approx(total / 1e9 / SHARES["cpu"])


def test_without_a_memory_there_are_the_tasks_rows_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(*SMALL, "method.memory_size=0", "data.tasks=[one, two]", "training.epochs=1")
    session = begin(config, tmp_path / "run")
    parts = [by_hand(session, 16, list(rows)) for rows in session.stream.train.values()]
    assert expected(session).operations == pytest.approx(sum(parts))


def test_rows_in_a_file_are_sampled(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole file is the sample where it is small; of a large one some rows stand for all."""
    sets = ("data.tasks=[one]", "data.rows_in_memory=1")
    found = [expected(begin(make_config(*sets[:n]), tmp_path / f"{n}")).operations for n in (1, 2)]
    assert found[0] == found[1]
    monkeypatch.setattr("ilora.training.expected.COUNTED", 5)
    sampled = expected(begin(make_config(*sets), tmp_path / "sampled")).operations
    assert sampled != found[0]
    assert sampled == pytest.approx(found[0], rel=0.3)


def test_processes_divide_the_rows(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = begin(make_config(*SMALL), tmp_path / "run")
    alone = expected(session)
    monkeypatch.setattr(session.method.engine, "accelerator", SimpleNamespace(num_processes=4))
    assert expected(session).seconds == pytest.approx(alone.seconds / 4)


def test_a_run_says_it_once_and_notes_it(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ilora.training.expected.product_rate", lambda *_, **__: 1e6)
    config = make_config(*SMALL, "data.tasks=[one]")
    made = run(config, tmp_path / "run")
    assert capsys.readouterr().out.count("ilora: time: about") == 1
    noted = json.loads((made.path / "environment.json").read_text(encoding="utf-8"))
    assert noted["expected_time"]["steps"] == 4
    assert noted["expected_time"]["products_per_second"] == 10**6
    session = begin(config, tmp_path / "other")
    assert noted["expected_time"]["predicted_train_seconds"] == pytest.approx(expected(session, 1e6).seconds, abs=1e-3)
    assert noted["memory"]["predicted_bytes"] > 0
    assert isinstance(noted["time"], str)  # when it began
