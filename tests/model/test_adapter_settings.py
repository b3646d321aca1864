"""The adapter section takes what PEFT's LoraConfig takes: trained, resumed, and the same in plain PEFT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoTokenizer

from ilora import InputError, resume, run
from ilora.methods import METHODS
from ilora.model import adapters
from tests.helpers import SMALL, MakeConfig, begin, difference, plain, run_killed, settings, train, trained, weights

SPECIAL: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pattern": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    "layers": {"layers_to_transform": [1], "exclude_modules": ["v_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


def adapter(special: str) -> dict[str, Any]:
    return {"r": 4, "alpha": 8, "dropout": 0.1} | SPECIAL[special]


@pytest.mark.parametrize("special", SPECIAL)
def test_trained_resumed_and_the_same_in_plain_peft(
    special: str, make_config: MakeConfig, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*SMALL, "data.tasks=[one, two]", "training.learning_rate=0.02", adapter=adapter(special))
    whole = run(config, tmp_path / "whole", quiet=True)
    run_killed(config, tmp_path / "killed", monkeypatch, at="step", count=7)
    resumed = resume(tmp_path / "killed", quiet=True)
    assert difference(weights(whole.path), weights(resumed.path)) == 0.0
    assert whole.adapter is not None
    theirs = PeftModel.from_pretrained(plain(tiny_model), whole.adapter).eval()
    ids = AutoTokenizer.from_pretrained(tiny_model)("one 1 small red :", return_tensors="pt").input_ids
    with torch.no_grad():
        changed = theirs(ids).logits
        with theirs.disable_adapter():
            base = theirs(ids).logits
    assert float((changed - base).abs().max()) > 1e-3
    session = begin(config, tmp_path / "by hand")
    for _ in train(session):
        pass
    engine = session.method.engine
    engine.model.eval()
    with torch.no_grad(), session.method.inference("two", session.method.variants[0]):
        ours = engine.model(ids.to(engine.device)).logits.cpu()
    assert float((ours - changed).abs().max()) <= 1e-4


@pytest.mark.parametrize("special", ["rslora", "dora", "pattern"])
@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].trains])
def test_every_method_supports_a_setting_or_refuses_it(
    name: str, special: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    def made() -> Any:
        return make_config(
            *SMALL,
            "data.tasks=[one, two]",
            "data.limit.train=8",
            "training.epochs=1",
            method=settings(name),
            adapter=adapter(special),
        )

    if set(SPECIAL[special]) & set(METHODS[name].without):
        with pytest.raises(InputError, match=f"the method {re.escape(name)} does not work with it"):
            made()
    else:
        left = trained(made(), tmp_path / "run")
        assert left
        assert all(bool(value.isfinite().all()) for value in left.values())


def test_a_dora_adapter_begins_again_as_the_base_model(make_config: MakeConfig, tmp_path: Path) -> None:
    session = begin(make_config(adapter=adapter("dora")), tmp_path / "run")
    model = session.method.engine.model
    fresh = {key: value.detach().clone() for key, value in adapters.parameters(model, "fast").items()}
    assert any("magnitude" in key for key in fresh)
    with torch.no_grad():
        for value in adapters.parameters(model, "fast").values():
            value += 1.0
    adapters.begin_again(model, "fast", seed=session.config.seed)
    for key, value in adapters.parameters(model, "fast").items():
        if "lora_A" not in key:
            torch.testing.assert_close(value, fresh[key])


def test_a_lora_config_of_peft_is_taken(make_config: MakeConfig) -> None:
    theirs = LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, rank_pattern={"v_proj": 2}, exclude_modules=["k_proj"],
        init_lora_weights="gaussian", target_modules=["v_proj", "q_proj"],
    )  # fmt: skip
    config = make_config(adapter=theirs).adapter
    assert (config.use_rslora, config.rank_pattern, config.exclude_modules) == (True, {"v_proj": 2}, ["k_proj"])
    assert (config.init_lora_weights, config.target_modules) == ("gaussian", ["q_proj", "v_proj"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa is not supported: it changes the base weights"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is not supported: it trains rows of the embedding"),
        ({"layers": 1, "layers_to_transform": [0]}, "layers and layers_to_transform say the same thing"),
        ({"use_dora": "perhaps"}, "use_dora"),
        ({"rank_pattern": {"v_proj": 0}}, "rank_pattern"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(given: dict[str, Any], says: str, make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=says):
        make_config(adapter=given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"exclude_modules": ["v_porj"]}, "adapter.exclude_modules: no layer with an adapter is called 'v_porj'"),
        ({"rank_pattern": {"o_porj": 2}}, "adapter.rank_pattern: no layer with an adapter is called 'o_porj'"),
        ({"alpha_pattern": {"down_proj": 2}}, "the layers with one are q_proj, v_proj"),
        ({"rank_pattern": {"(": 2}}, r"adapter.rank_pattern: '\(' is no pattern of layer names"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "'embed_tokens' is no linear layer"),
        ({"r": 3, "init_lora_weights": "orthogonal"}, "adapter: PEFT refuses .* rank to be even"),
        ({"layers_to_transform": [2]}, "adapter.layers_to_transform: 2, but this model's layers are 0 to 1"),
    ],
)
def test_layers_that_are_not_there(given: dict[str, Any], says: str, make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        run(make_config(adapter=given), tmp_path / "run", quiet=True)


def test_all_linear_layers_of_some_numbers(make_config: MakeConfig, tmp_path: Path) -> None:
    given = {"r": 4, "alpha": 8, "target_modules": "all-linear", "layers_to_transform": [1]}
    left = trained(make_config("data.tasks=[one]", "training.epochs=1", adapter=given), tmp_path / "run")
    assert {key.partition("layers.")[2][0] for key in left} == {"1"}
    assert len({key.split(".")[-3] for key in left}) == 7
