"""The two ends of the scale: a model that is never trained, and one that is trained on all tasks at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from ilora import run
from ilora.data.examples import Example
from ilora.methods import METHODS
from ilora.results.scores import read_records
from ilora.training import session as sessions
from ilora.training.loop import StepReport
from tests.helpers import LABELS, MakeConfig, plain

NAMES = ("one", "two", "three")


# -- zero-shot -----------------------------------------------------------------------------------------------------


def test_zero_shot_is_the_base_model_after_every_task(
    tiny_model: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config("evaluation.unseen=all", "evaluation.max_new_tokens=4", method="zero_shot")
    result = run(config, tmp_path / "run", quiet=True)
    base, tokenizer = plain(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    for name in NAMES:
        records = read_records(result.path / "predictions" / "after-00-base" / f"{name}.jsonl")
        for record in records:
            ids = torch.tensor([tokenizer(record["prompt"]).input_ids])
            made = base.generate(
                input_ids=ids, do_sample=False, max_new_tokens=4, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
            )
            text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert record["prediction"] == text
        for label in LABELS:
            assert read_records(result.path / "predictions" / f"after-{label}" / f"{name}.jsonl") == records
    scores = result.results["variants"]["fast"]
    assert scores["R"] == [scores["zero_shot"]] * 3


def test_zero_shot_takes_no_step(
    tiny_model: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(sessions, "optimizer_step", refuse)
    result = run(make_config(method="zero_shot"), tmp_path / "run", quiet=True)
    assert not METHODS["zero_shot"].trains
    cost = result.results["cost"]
    assert [cost[key] for key in ("steps", "trained_tokens", "forward_rows", "backward_rows")] == [0, 0, 0, 0]
    assert not (result.path / "metrics.jsonl").exists()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    for label in LABELS:
        folder = result.path / "adapters" / label / "fast"
        saved = load_file(folder / "adapter_model.safetensors")
        assert {key.rpartition("lora_")[2][0] for key in saved} == {"A", "B"}
        assert all(bool(value.any()) == ("lora_A" in key) for key, value in saved.items())
        with torch.no_grad():
            found = PeftModel.from_pretrained(plain(tiny_model), folder).eval()(input_ids=ids).logits
            assert torch.equal(found, plain(tiny_model)(input_ids=ids).logits)


# -- joint ---------------------------------------------------------------------------------------------------------


def test_joint_trains_every_training_row_once_an_epoch_and_nothing_else(
    tiny_model: Path, data: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, list[Example]]] = []
    original = sessions.optimizer_step

    def watching(method: object, optimizer: object, examples: list[Example]) -> StepReport:
        steps.append((method.position.epoch, list(examples)))  # type: ignore[attr-defined]
        assert method.extend_batch(examples) == examples  # type: ignore[attr-defined]
        return original(method, optimizer, examples)  # type: ignore[arg-type]

    monkeypatch.setattr(sessions, "optimizer_step", watching)
    result = run(make_config(stream="joint", method="sequential"), tmp_path / "run", quiet=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    wanted = Counter(
        (name, *tokenizer(f"{row['prompt']} {row['answer']}").input_ids, tokenizer.eos_token_id)
        for name in NAMES
        for row in json.loads((data / name / "train.json").read_text(encoding="utf-8"))
    )
    assert wanted.total() == 3 * 24
    orders = []
    for epoch in (0, 1):
        rows = [row for number, examples in steps if number == epoch for row in examples]
        assert Counter((row.task, *row.prompt, *row.answer) for row in rows) == wanted
        assert {row.id for row in rows} == {f"{name}/train/{number}" for name in NAMES for number in range(24)}
        orders.append([row.id for row in rows])
    assert orders[0] != orders[1]
    assert len(steps) == 2 * 3 * 24 / 8
    assert sum(len({row.task for row in examples}) > 1 for _, examples in steps) > len(steps) / 2  # mixed
    assert result.results["phases"] == ["joint"]
    assert [path.name for path in (result.path / "adapters").iterdir()] == ["01-joint"]
    (scores,) = result.results["variants"]["fast"]["R"]
    assert len(scores) == 3
    assert None not in scores
