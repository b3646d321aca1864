"""A model that is given as an object: the run is that of its name, and the object can be used again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoTokenizer, LlamaForCausalLM

from ilora import InputError, add, load_config, resume, run
from tests.helpers import MakeConfig, difference, run_killed, weights


def objects(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, AutoTokenizer]:
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)


SHORT = ("training.epochs=1", "data.tasks=[one, two]")


def test_a_run_is_that_of_the_name(tiny_model: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    named = run(make_config(*SHORT, contrast=["sequential", "l2p"]), tmp_path / "named", quiet=True)
    model, _ = objects(tiny_model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = make_config(*SHORT, contrast=["sequential", "l2p"], model={"name": "nowhere"})
    made = run(config, tmp_path / "object", model=model, quiet=True)
    for folder in ("", "contrast/sequential", "contrast/l2p"):
        assert difference(weights(named.path / folder), weights(made.path / folder)) == 0.0
    assert made.results["variants"] == named.results["variants"]
    assert load_config(made.path / "config.yaml").model.name == str(tiny_model)
    after = model.state_dict()  # the adapters are gone
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert add(made.path, ["three"], quiet=True).results["complete"]  # by its name


def test_a_model_without_a_name_is_asked_for_again(
    tiny_model: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = objects(tiny_model)
    model.name_or_path = model.config._name_or_path = ""
    with pytest.raises(InputError, match="tokenizer"):
        run(make_config(*SHORT), tmp_path / "run", model=model, quiet=True)
    whole = run(make_config(*SHORT), tmp_path / "whole", model=model, tokenizer=tokenizer, quiet=True)
    run_killed(make_config(*SHORT), tmp_path / "run", monkeypatch, at="step", count=5, model=model, tokenizer=tokenizer)
    with pytest.raises(InputError, match="`model` and `tokenizer`"):
        resume(tmp_path / "run", quiet=True)
    resumed = resume(tmp_path / "run", model=model, tokenizer=tokenizer, quiet=True)
    assert difference(weights(whole.path), weights(resumed.path)) == 0.0


def test_what_does_not_fit_is_refused(tiny_model: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    model, tokenizer = objects(tiny_model, torch.float16)
    with pytest.raises(InputError, match="float16"):
        run(make_config(), tmp_path / "run", model=model, quiet=True)
    with pytest.raises(InputError, match="tokenizer"):
        run(make_config(), tmp_path / "run", tokenizer=tokenizer, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_lora_config_is_the_adapters_section(tiny_model: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, lora_alpha=6, lora_dropout=0.1, target_modules=["v_proj"], task_type="CAUSAL_LM")
    values = make_config(*SHORT).dump() | {"adapter": lora, "method": "sequential"}
    made = run(values, tmp_path / "run", quiet=True)
    assert made.adapter is not None
    found = PeftModel.from_pretrained(objects(tiny_model)[0], made.adapter).peft_config["default"]
    assert (found.r, found.lora_alpha, found.lora_dropout, found.target_modules) == (2, 6, 0.1, {"v_proj"})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (LoraConfig(bias="all"), "bias"),
        ({"alpha": 8, "lora_alpha": 8}, "adapter: alpha and lora_alpha"),
        ({"lora_dropout": 2}, "adapter"),
    ],
)
def test_an_adapter_section_that_cannot_be_taken(section: object, message: str, make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=message) as error:
        make_config(adapter=section)
    assert len(str(error.value)) < 300
