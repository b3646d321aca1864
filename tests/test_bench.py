"""The scripts behind the figures on a GPU are sound: toy sizes run on a CPU, and both sides compute the same."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


def test_the_gpu_bench_runs_with_toy_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.syspath_prepend(str(BENCH))
    arguments = ["--shapes", "135M,7B uneven", "--variants", "padded;packed", "--steps", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    runpy.run_path(str(BENCH / "gpu.py"), run_name="__main__")
    lines = json.loads(out.read_text(encoding="utf-8"))["lines"]
    assert [line["variant"] for line in lines] == ["plain", "padded", "packed"] * 2
    for first in (0, 3):
        plain, *ours = lines[first : first + 3]
        for line in ours:
            assert line["loss"] == pytest.approx(plain["loss"], rel=1e-2)  # bfloat16's
            assert line["norm"] == pytest.approx(plain["norm"], rel=2e-2)
            assert line["seconds"] > 0


def test_the_bench_of_answers_runs_with_toy_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "answers.json"
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "argv", ["gpu_answers.py", "--rows", "6", "--tokens", "4", "--out", str(out)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(BENCH / "gpu_answers.py"), run_name="__main__")
    lines = json.loads(out.read_text(encoding="utf-8"))["lines"]
    exact = lines["same in float32"]
    assert (exact["equal_rows"], exact["equal_choices"]) == (1.0, 1.0)
    assert exact["likelihoods_apart"] < 1e-4
    assert lines["same in bfloat16"]["equal_first_tokens"] > 0.5
    assert all(lines[f"{kind}, ours"]["times_plain"] > 0 for kind in ("generate", "rank"))


def test_the_bench_of_runs_together_runs_with_toy_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "together.json"
    monkeypatch.syspath_prepend(str(BENCH))
    arguments = ["--runs", "2", "--warm", "1", "--steps", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu_together.py", *arguments])
    runpy.run_path(str(BENCH / "gpu_together.py"), run_name="__main__")
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["apart"] < 2e-2  # bfloat16's
    assert figures["seconds"] > 0
