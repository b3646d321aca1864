"""Adapters as vectors: combinations and products against formed matrices, PEFT folders read and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from ilora.connectivity import space
from ilora.errors import InputError
from tests.connectivity.conftest import LAYERS, random_adapter, update

A, B, WIDE = random_adapter("a", 1), random_adapter("b", 2), random_adapter("wide", 3, rank=6, scale=0.7)


@pytest.mark.parametrize("other", [B, WIDE])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.83])
def test_delta_is_the_interpolated_product(other: space.Adapter, t: float) -> None:
    point = space.combine((A, other), (1 - t, t), space="delta")
    for layer in LAYERS:
        expected = (1 - t) * update(A, layer) + t * update(other, layer)
        assert float((update(point, layer) - expected).abs().max()) < 1e-6
        assert len(point.updates[layer].down) == len(A.updates[layer].down) + len(other.updates[layer].down)


def test_factors_have_cross_terms_that_delta_has_not() -> None:
    point = space.combine((A, B), (0.5, 0.5), space="factors")
    layer = LAYERS[0]
    one, two = A.updates[layer], B.updates[layer]
    cross = 0.5 * (one.up @ two.down + two.up @ one.down)  # scale 2 · ½ · ½
    expected = 0.25 * (update(A, layer) + update(B, layer)) + cross
    assert torch.allclose(update(point, layer), expected.double(), atol=1e-6)


@pytest.mark.parametrize("kind", space.SPACES)
def test_corners_come_back_bit_for_bit(kind: str) -> None:
    assert space.combine((A, B), (1.0, 0.0), space=kind) is A
    assert space.combine((A, B), (0.0, 1.0), space=kind) is B


def test_scalar_products_equal_those_of_the_formed_vectors() -> None:
    def formed(adapter: space.Adapter) -> torch.Tensor:
        return torch.cat([update(adapter, layer).flatten() for layer in LAYERS])

    def stacked(adapter: space.Adapter) -> torch.Tensor:
        parts = adapter.updates.values()
        return torch.cat([side.flatten().double() for part in parts for side in (part.down, part.up)])

    vectors = torch.stack([formed(A), formed(B), formed(WIDE)])
    assert torch.allclose(space.gram([A, B, WIDE], space="delta"), vectors @ vectors.T, rtol=1e-10)
    vectors = torch.stack([stacked(A), stacked(B)])
    assert torch.allclose(space.gram([A, B], space="factors"), vectors @ vectors.T, rtol=1e-10)


def test_layers_that_only_one_changes() -> None:
    half = space.Adapter("half", {layer: B.updates[layer] for layer in LAYERS[:2]})
    point = space.combine((A, half), (0.5, 0.5), space="delta")
    assert list(point.updates) == LAYERS
    assert torch.allclose(update(point, LAYERS[3]), 0.5 * update(A, LAYERS[3]), atol=1e-7)
    assert space.layers([half, A]) == LAYERS
    with pytest.raises(InputError, match="half differ in layers"):
        space.check_space((A, half), "factors")


def test_layer_ten_stands_after_layer_nine() -> None:
    names = [f"model.layers.{number}.q_proj" for number in (10, 2, 9)]
    adapter = space.Adapter("x", dict.fromkeys(names, A.updates[LAYERS[0]]))
    assert [name.split(".")[2] for name in space.layers([adapter])] == ["2", "9", "10"]


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saved_is_read_as_peft_computes(rslora: bool, tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"v_proj": 5}, init_lora_weights=False, use_rslora=rslora,
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), config)
    model.save_pretrained(tmp_path / "adapter")
    found = space.read(tmp_path / "adapter")
    for layer in LAYERS:
        theirs = model.get_submodule(f"base_model.model.{layer}").get_delta_weight("default")
        assert torch.allclose(update(found, layer), theirs.double(), atol=1e-6), layer


@pytest.mark.parametrize("kind", ["factors", "delta", "mixed"])
def test_what_is_written_loads_in_peft(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    if kind == "mixed":  # other layers and other ranks: padded to one rank
        half = space.Adapter("half", {LAYERS[0]: WIDE.updates[LAYERS[0]]}, "tiny", {"target_modules": ["q_proj"]})
        point = space.combine((A, half), (0.4, 0.6), space="delta")
    else:
        point = space.combine((A, B), (0.4, 0.6), space=kind)
    space.write(point, tmp_path / "point")
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "point")
    assert {file.suffix for file in (tmp_path / "point").iterdir()} == {".json", ".safetensors"}
    for layer in LAYERS:
        theirs = model.get_submodule(f"base_model.model.{layer}").get_delta_weight("default")
        assert torch.allclose(update(point, layer), theirs.double(), atol=1e-6)
    assert json.loads((tmp_path / "point/adapter_config.json").read_text())["init_lora_weights"] is True
    again = space.read(tmp_path / "point")
    assert torch.allclose(space.gram([again], space="delta"), space.gram([point], space="delta"), rtol=1e-6)
    with pytest.raises(InputError, match="exists already"):
        space.write(point, tmp_path / "point")
    space.write(B, tmp_path / "point", replace=True)
    assert torch.equal(space.read(tmp_path / "point").updates[LAYERS[0]].up, B.updates[LAYERS[0]].up)


def _damage(folder: Path, **settings: object) -> None:
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | settings))


def _retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
    "torn configuration": (lambda f: (f / "adapter_config.json").write_text("{") and None, "cannot be read"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]") and None, "peft_type is None"),
    "another kind": (lambda f: _damage(f, peft_type="PROMPT_TUNING"), "'PROMPT_TUNING'; paths are defined"),
    "DoRA": (lambda f: _damage(f, use_dora=True), "DoRA is not supported"),
    "bias": (lambda f: _damage(f, bias="all"), "bias is 'all'"),
    "pickle": (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin") and None, "other formats"),
    "torn weights": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 9) and None, "cannot be read"),
    "embedding": (lambda f: _retensor(f, lambda t: t | {"base_model.model.e.lora_embedding_A": torch.ones(1, 1)}),
                  "not the A or B of a linear layer"),
    "half": (lambda f: _retensor(f, lambda t: dict(list(t.items())[:1])), "do not fit together"),
    "NaN": (lambda f: _retensor(f, lambda t: {key: value / 0 * 0 for key, value in t.items()}), "not finite"),
    "no alpha": (lambda f: _damage(f, lora_alpha=None), "lora_alpha or alpha_pattern cannot be used"),
    "a pattern list": (lambda f: _damage(f, alpha_pattern=["x"]), "lora_alpha or alpha_pattern cannot be used"),
    "no regex": (lambda f: _damage(f, alpha_pattern={"(": 2}), "lora_alpha or alpha_pattern cannot be used"),
    "PiSSA": (lambda f: _damage(f, init_lora_weights="pissa"), "'pissa', which also changes the base weights"),
    "OLoRA": (lambda f: _damage(f, init_lora_weights="olora"), "'olora', which also changes the base weights"),
    "CorDA": (lambda f: _damage(f, init_lora_weights="corda"), "'corda', which also changes the base weights"),
    "LoftQ": (lambda f: _damage(f, init_lora_weights="loftq"), "'loftq', which also changes the base weights"),
    "aLoRA": (lambda f: _damage(f, alora_invocation_tokens=[1, 2]), "activated LoRA"),
    "replication": (lambda f: _damage(f, layer_replication=[[0, 2]]), "layer_replication is not supported"),
    "empty": (lambda f: _retensor(f, lambda t: {}), "no weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_cannot_be_read_is_refused(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    space.write(A, folder)
    damage, message = BAD[case]
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        space.read(folder)
    assert str(folder) in str(error.value)


def test_spaces_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"differ in layers, rank or scale.*`delta`"):
        space.check_space((A, WIDE), "factors")
    space.check_space((A, WIDE), "delta")
    with pytest.raises(InputError, match="unknown space 'weights'"):
        space.check_space((A, B), "weights")
    other = {LAYERS[0]: space.LowRank(torch.ones(4, 8), torch.ones(32, 4), 1.0)}
    with pytest.raises(InputError, match=r"different base models.*32 x 32 in one and 32 x 8"):
        space.check_space((A, space.Adapter("other", other)), "delta")
