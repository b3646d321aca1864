"""Individual fine-tuning: every task from scratch, answered for ever by its own adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from ilora import run
from ilora.data.examples import collate
from ilora.methods import METHODS
from ilora.results.scores import read_records
from tests.helpers import LABELS, MakeConfig, begin, logits, plain, snapshot, train

INDIVIDUAL = {"name": "individual"}


def test_every_task_begins_from_a_fresh_adapter(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(make_config(method=INDIVIDUAL), tmp_path / "run")
    begin_task, model = session.method.begin_task, session.method.engine.model
    initial: list[dict[str, Tensor]] = []

    def watching() -> None:
        begin_task()
        initial.append(snapshot(model, "fast"))

    monkeypatch.setattr(session.method, "begin_task", watching)
    final = [snapshot(model, "fast") for _ in train(session)]
    for number, start in enumerate(initial):
        for key, value in start.items():
            assert float((final[number][key] - value).abs().max()) > 1e-4  # it is trained
            if "lora_B" in key:
                assert not value.any()
                continue
            assert 0 < float(value.abs().max()) <= value.shape[1] ** -0.5  # the bounds of a fresh A
            for other in (*initial[:number], *final[:number]):
                assert float((value - other[key]).abs().max()) > 1e-2


def test_nothing_is_shared_with_the_task_before(make_config: MakeConfig, tmp_path: Path) -> None:
    """Task two is trained to the same bits whatever was trained before it, unlike in sequential fine-tuning."""
    data = make_config().data.model_dump(mode="json")
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for method in ("individual", "sequential"):
        for before in ("one", "three"):
            config = make_config(method=method, data=data | {"tasks": [before, "two"]})
            for _ in train(begin(config, tmp_path / f"{method}-{before}")):
                pass
            folder = tmp_path / f"{method}-{before}" / "adapters" / "02-two" / "fast"
            found[method, before] = load_file(folder / "adapter_model.safetensors")
    first, second = found["individual", "one"], found["individual", "three"]
    assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = found["sequential", "one"], found["sequential", "three"]
    assert not any(torch.equal(first[key], second[key]) for key in first)


def test_a_task_is_answered_by_its_own_adapter_for_ever(
    tiny_model: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    session = begin(make_config(method=INDIVIDUAL), tmp_path / "run")
    then = {phase.name: logits(session, phase.name) for phase in train(session)}
    assert all(torch.equal(logits(session, name), value) for name, value in then.items())
    assert not torch.equal(logits(session, "one", "two"), then["one"])
    assert torch.equal(logits(session, "one", "unheard of"), logits(session, "one", "three"))  # the newest
    for label in LABELS:  # what is saved after a task is that task's adapter
        name = label.partition("-")[2]
        loaded = PeftModel.from_pretrained(plain(tiny_model), tmp_path / "run" / "adapters" / label / "fast").eval()
        batch = collate(session.stream.train[name], pad=session.method.engine.pad)
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            found = loaded(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions)
        torch.testing.assert_close(found.logits[:, -batch.keep :], then[name])


def test_nothing_is_forgotten_in_a_run(make_config: MakeConfig, tmp_path: Path) -> None:
    result = run(make_config("evaluation.unseen=none", method=INDIVIDUAL), tmp_path / "run", quiet=True)
    predictions = result.path / "predictions"
    for number, label in enumerate(LABELS):
        file = f"{label.partition('-')[2]}.jsonl"
        own = read_records(predictions / f"after-{label}" / file)
        assert own != read_records(predictions / "after-00-base" / file)
        for later in LABELS[number:]:
            assert read_records(predictions / f"after-{later}" / file) == own
        column = [row[number] for row in result.results["variants"]["fast"]["R"][number:]]
        assert len(set(column)) == 1


def test_the_task_must_be_told() -> None:
    assert METHODS["individual"].needs_task_id
    assert not METHODS["router"].needs_task_id
