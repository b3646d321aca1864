"""`model.dtype: auto`: what suits the device, written out at a run's start."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import pytest
import torch
import yaml
from torch.nn.functional import linear

import ilora
from ilora.model import dtype
from ilora.model.dtype import computes_in_bfloat16, with_dtype
from ilora.settings import ModelConfig
from tests.helpers import MakeConfig


@pytest.mark.parametrize(("able", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch, able: bool, chosen: str) -> None:
    monkeypatch.setattr(dtype, "computes_in_bfloat16", lambda device: able)
    assert with_dtype(ModelConfig()).dtype == chosen


@pytest.mark.parametrize("given", ["bfloat16", "float32"])
def test_a_type_that_is_given_stays(given: str) -> None:
    config = ModelConfig(dtype=given)
    assert with_dtype(config) == config


def test_a_run_writes_out_its_type(monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig, tmp_path: Path) -> None:
    """So that it goes on in the same type on another machine."""
    monkeypatch.setattr(dtype, "computes_in_bfloat16", lambda device: False)
    config = make_config("model.dtype=auto", "training.max_steps=1")
    run = ilora.run(config, tmp_path / "run", quiet=True)
    assert yaml.safe_load((run.path / "config.yaml").read_text())["model"]["dtype"] == "float32"


@pytest.mark.skipif(computes_in_bfloat16(torch.device("cpu")), reason="this CPU computes in bfloat16")
def test_a_cpu_without_bfloat16_is_faster_in_float32() -> None:
    """The choice against the clock (8.5 times as fast where it was measured)."""

    def seconds(kind: torch.dtype) -> float:
        rows, weights = torch.randn(512, 576).to(kind), torch.randn(1536, 576).to(kind)
        times = []
        for _ in range(7):
            began = time.perf_counter()
            linear(rows, weights)
            times.append(time.perf_counter() - began)
        return median(times)

    assert seconds(torch.bfloat16) > seconds(torch.float32)
