"""The memory of a run, said before its first step; what `auto` makes of it, and a resume of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ilora import resume, run
from ilora.model.engine import Engine
from ilora.training.room import settle
from tests.helpers import SMALL, MakeConfig, begin, difference, run_killed, weights

AUTO = (*SMALL, "training.micro_batch_size=auto", "adapter.dropout=0")


def with_free(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr("ilora.training.room.free_memory", lambda _: free)


def test_what_is_said_adds_up(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 10**9)
    session = begin(make_config(*AUTO), tmp_path / "run")
    room = settle(session.method, session.config, session.stream)
    assert room.part.rows == 16  # eight new ones, eight from the memory: all fit
    assert room.part.length == max(len(row) for rows in session.stream.train.values() for row in rows)
    assert room.weights == sum(w.nbytes for n, w in session.method.engine.core.named_parameters() if "lora_" not in n)
    assert 0 < room.bytes < 10**9
    (line,) = room.lines()
    assert f"{room.part.rows} rows x {room.part.length} tokens" in line
    assert not room.recomputed


@pytest.mark.parametrize(
    ("free", "again", "lines"), [(10**9, False, 1), (60_000, True, 1), (30_000, True, 2), (None, False, 1)]
)
def test_activations_are_computed_again_where_one_row_does_not_fit(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, again: bool, lines: int
) -> None:
    with_free(monkeypatch, free)
    session = begin(make_config(*AUTO), tmp_path / "run")
    room = settle(session.method, session.config, session.stream)
    assert session.method.engine.recomputes == room.recomputed == again
    assert len(room.lines()) == lines  # the second one warns that not even this fits
    assert room.part.rows == (1 if again else 16)


def test_a_setting_is_kept(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 60_000)
    config = make_config(*AUTO, "model.gradient_checkpointing=false", "training.micro_batch_size=4")
    session = begin(config, tmp_path / "run")
    assert settle(session.method, session.config, session.stream).part.rows == 4
    assert not session.method.engine.recomputes


def test_a_resume_goes_on_as_the_run_began(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun where memory was short, killed, and resumed where it is not: the same bits."""
    engines: list[Engine] = []
    monkeypatch.setattr("ilora.training.state.recompute", _noting(engines))
    with_free(monkeypatch, 60_000)
    config = make_config(*AUTO, "data.tasks=[one]")
    run(config, tmp_path / "whole")
    assert "ilora: memory: " in capsys.readouterr().out
    run_killed(config, tmp_path / "killed", monkeypatch, at="step", count=3)
    with_free(monkeypatch, 10**9)
    resume(tmp_path / "killed", quiet=True)
    assert engines[-1].recomputes
    assert difference(weights(tmp_path / "whole"), weights(tmp_path / "killed")) == 0.0
    noted = json.loads((tmp_path / "killed" / "environment.json").read_text())["memory"]
    assert noted["gradient_checkpointing"]
    assert noted["micro_batch"]["rows"] == 1


def _noting(engines: list[Engine]) -> object:
    from ilora.model.fitting import recompute

    def noted(engine: Engine) -> bool:
        engines.append(engine)
        return recompute(engine)

    return noted
