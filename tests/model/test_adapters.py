"""Adapters: activity apart from trainability, exact merge and restore, the EMA of A and B, and plain PEFT folders."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora.errors import InputError
from ilora.model import adapters
from ilora.settings import AdapterConfig

CONFIG = AdapterConfig(r=4, alpha=8, dropout=0.0)
IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 21, 22, 23, 24]])


def base(tiny_model: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)


def fill(model: PeftModel, name: str, seed: int) -> None:
    """Random A and B, so that the adapter changes the output."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(model, name).values():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)


@pytest.fixture
def model(tiny_model: Path) -> PeftModel:
    """`fast` in training and `slow` frozen, both far from zero and from each other."""
    wrapped = adapters.attach(base(tiny_model), CONFIG, name="fast", seed=0)
    adapters.add(wrapped, "slow", like="fast", seed=0)
    fill(wrapped, "fast", 1)
    fill(wrapped, "slow", 2)
    return wrapped


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model.eval()(IDS).logits


def trainable(model: PeftModel) -> dict[str, bool]:
    return {key: parameter.requires_grad for key, parameter in model.named_parameters()}


def snapshot(model: PeftModel, name: str) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in adapters.parameters(model, name).items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# -- initialisation ----------------------------------------------------------------------------------------------------


def test_a_fresh_adapter_computes_as_the_base_model(tiny_model: Path) -> None:
    wrapped = adapters.attach(base(tiny_model), CONFIG, name="fast", seed=0)
    adapters.add(wrapped, "slow", like="fast", seed=0)
    expected = logits(base(tiny_model))
    assert torch.equal(logits(wrapped), expected)
    with adapters.active(wrapped, "slow"):
        assert torch.equal(logits(wrapped), expected)
    fresh = adapters.parameters(wrapped, "fast")
    assert all(bool(value.any()) == ("lora_A" in key) for key, value in fresh.items())


def test_initialisation_depends_on_the_seed_only(tiny_model: Path) -> None:
    made = []
    for noise, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        wrapped = adapters.attach(base(tiny_model), CONFIG, name="fast", seed=seed)
        adapters.add(wrapped, "slow", like="fast", seed=seed)
        assert torch.equal(torch.get_rng_state(), before)  # and costs the caller no random numbers
        made.append((snapshot(wrapped, "fast"), snapshot(wrapped, "slow")))
    assert same(made[0][0], made[1][0])
    assert same(made[0][1], made[1][1])
    assert not same(made[0][0], made[2][0])
    assert not same(made[0][1], made[2][1])


def test_only_the_first_adapter_trains_and_adding_changes_nothing_else(model: PeftModel) -> None:
    flags, output = trainable(model), logits(model)
    assert {key for key, flag in flags.items() if flag} == {key for key in flags if ".fast." in key}
    adapters.add(model, "third", like="fast", seed=3)
    assert torch.equal(logits(model), output)
    assert {key: flag for key, flag in trainable(model).items() if key in flags} == flags
    assert not any(value.requires_grad for value in adapters.parameters(model, "third").values())
    assert adapters.names(model) == ["fast", "slow", "third"]


def test_wrong_target_modules_name_the_linear_layers(tiny_model: Path) -> None:
    wrong = AdapterConfig(target_modules=["query"])
    with pytest.raises(InputError, match=r"adapter\.target_modules: .*'query'.* down_proj, .* q_proj, .*'all-linear'"):
        adapters.attach(base(tiny_model), wrong, name="fast", seed=0)


def test_all_linear_takes_every_layer_but_the_head(tiny_model: Path) -> None:
    wrapped = adapters.attach(base(tiny_model), AdapterConfig(target_modules="all-linear"), name="fast", seed=0)
    assert len(adapters.parameters(wrapped, "fast")) == 2 * 2 * 7  # A and B; layers; q k v o gate up down


# -- activity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slow", "fast", None])
def test_active_changes_activity_only(model: PeftModel, name: str | None) -> None:
    flags, output = trainable(model), logits(model)
    with adapters.active(model, name):
        assert trainable(model) == flags
        assert torch.equal(logits(model), output) == (name == "fast")
    assert trainable(model) == flags
    assert torch.equal(logits(model), output)


@pytest.mark.parametrize("name", ["slow", None])
def test_active_is_undone_after_an_exception(model: PeftModel, name: str | None) -> None:
    flags, output = trainable(model), logits(model)
    with pytest.raises(RuntimeError, match="stop"), adapters.active(model, name):
        raise RuntimeError("stop")
    assert trainable(model) == flags
    assert torch.equal(logits(model), output)


def test_active_nests(model: PeftModel) -> None:
    with adapters.active(model, "slow"):
        slow = logits(model)
        with adapters.active(model, None), adapters.active(model, "fast"):
            fast = logits(model)
        assert torch.equal(logits(model), slow)
    assert torch.equal(logits(model), fast)


def test_active_none_is_the_base_model(model: PeftModel, tiny_model: Path) -> None:
    with adapters.active(model, None):
        assert torch.equal(logits(model), logits(base(tiny_model)))


def test_a_pass_with_slow_in_between_leaves_the_gradient_of_fast(model: PeftModel) -> None:
    def gradients(*, between: bool) -> dict[str, Tensor]:
        model.zero_grad()
        output = model(IDS).logits
        if between:
            with torch.no_grad(), adapters.active(model, "slow"):
                model(IDS)
        (output.square().mean() + model(IDS).logits.mean()).backward()
        assert all(value.grad is None for value in adapters.parameters(model, "slow").values())
        return {key: value.grad.clone() for key, value in adapters.parameters(model, "fast").items()}

    plain = gradients(between=False)
    assert all(value.any() for value in plain.values())
    assert same(gradients(between=True), plain)


def test_an_unknown_name_raises(model: PeftModel) -> None:
    message = "no adapter 'medium': there are .*fast.*slow"
    with pytest.raises(KeyError, match=message), adapters.active(model, "medium"):
        pass
    with pytest.raises(KeyError, match=message), adapters.merged(model, "medium"):
        pass
    with pytest.raises(KeyError, match=message):
        adapters.parameters(model, "medium")
    with pytest.raises(KeyError, match=message):
        adapters.copy(model, "medium", "slow")


# -- merging -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slow", "fast"])
def test_merged_computes_as_active_and_restores_every_bit(model: PeftModel, name: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags, output = trainable(model), logits(model)
    with adapters.active(model, name):
        expected = logits(model)
    with adapters.merged(model, name):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
        assert not same(model.state_dict(), before)
    assert same(model.state_dict(), before)
    assert trainable(model) == flags
    assert torch.equal(logits(model), output)


def test_merged_restores_after_an_exception_and_in_bfloat16(model: PeftModel) -> None:
    for _, module in model.named_modules():
        if hasattr(module, "base_layer"):
            module.base_layer.to(torch.bfloat16)  # W + BA - BA would not come back in so few digits
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with adapters.merged(model, "slow"):
        assert not same(model.state_dict(), before)
    assert same(model.state_dict(), before)
    with pytest.raises(RuntimeError, match="stop"), adapters.merged(model, "slow"):
        raise RuntimeError("stop")
    assert same(model.state_dict(), before)


# -- arithmetic and storage --------------------------------------------------------------------------------------------


def test_interpolation_is_of_a_and_b_each_and_not_of_their_product(model: PeftModel) -> None:
    fast, slow = snapshot(model, "fast"), snapshot(model, "slow")
    adapters.interpolate(model, "slow", "fast", by=0.2)
    now = snapshot(model, "slow")
    assert len(now) == 2 * 2 * 2  # A and B; layers; q and v
    for key, value in now.items():
        torch.testing.assert_close(value, 0.2 * fast[key] + 0.8 * slow[key])
    assert same(snapshot(model, "fast"), fast)
    key_a = next(key for key in now if "lora_A" in key)
    key_b = key_a.replace("lora_A", "lora_B")
    products = 0.2 * fast[key_b] @ fast[key_a] + 0.8 * slow[key_b] @ slow[key_a]
    assert not torch.allclose(now[key_b] @ now[key_a], products, rtol=1e-2)


@pytest.mark.parametrize(("decay", "equal"), [(1.0, "slow"), (0.0, "fast")])
def test_interpolation_at_its_ends_is_exact(model: PeftModel, decay: float, equal: str) -> None:
    expected = snapshot(model, equal)
    adapters.interpolate(model, "slow", "fast", by=1.0 - decay)
    assert same(snapshot(model, "slow"), expected)


def test_copy_copies_values_one_way(model: PeftModel) -> None:
    fast, flags = snapshot(model, "fast"), trainable(model)
    adapters.copy(model, "fast", "slow")
    assert same(snapshot(model, "slow"), fast)
    fill(model, "fast", 3)
    assert same(snapshot(model, "slow"), fast)  # its own storage
    assert trainable(model) == flags


def test_state_round_trip_adds_missing_adapters_frozen(model: PeftModel, tiny_model: Path) -> None:
    stored = {key: value.clone() for key, value in adapters.state(model).items()}
    assert {key.partition(":")[0] for key in stored} == {"fast", "slow"}
    other = adapters.attach(base(tiny_model), CONFIG, name="fast", seed=9)
    adapters.load_state(other, stored, first="fast")
    assert same(adapters.state(other), stored)
    assert trainable(other) == trainable(model)
    for name in ("fast", "slow"):
        with adapters.active(model, name), adapters.active(other, name):
            assert torch.equal(logits(other), logits(model))


def test_loaded_adapters_stand_in_one_order_however_the_tensors_came(model: PeftModel, tiny_model: Path) -> None:
    for number in (1, 2, 3):
        adapters.add(model, f"task-{number:04d}", like="fast", seed=number)
    stored = {key: value.clone() for key, value in adapters.state(model).items()}
    for seed in range(4):
        keys = list(stored)
        random.Random(seed).shuffle(keys)
        other = adapters.attach(base(tiny_model), CONFIG, name="fast", seed=9)
        adapters.load_state(other, {key: stored[key] for key in keys}, first="fast")
        assert adapters.names(other) == ["fast", "slow", "task-0001", "task-0002", "task-0003"]


def test_saved_folders_are_plain_peft(model: PeftModel, tiny_model: Path, tmp_path: Path) -> None:
    adapters.save(model, tmp_path, ["fast", "slow"])
    for name in ("fast", "slow"):
        with adapters.active(model, name):
            expected = logits(model)
        loaded = PeftModel.from_pretrained(base(tiny_model), tmp_path / name)
        assert torch.equal(logits(loaded), expected)


def test_save_writes_the_named_adapters_only(model: PeftModel, tmp_path: Path) -> None:
    adapters.save(model, tmp_path, ["slow"])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["slow"]
