"""The kernels against the plain way: transformers, PEFT and `cross_entropy`, in float32 and in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch.nn import functional

from ilora.kernels.attention import GROUPED
from ilora.kernels.lora import FusedLinear, LowRankUpdate, fuse
from ilora.kernels.losses import token_losses
from tests.kernels.helpers import CLOSE, apart, llama, rows


def settings(dropout: float = 0.0) -> LoraConfig:
    names = ["q_proj", "v_proj", "down_proj"]
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM")


def wrapped(config: LoraConfig, dtype: torch.dtype = torch.float32) -> PeftModel:
    """Fresh model, adapter far from zero."""
    model = get_peft_model(llama(dtype), config)
    randomise(model, "default", seed=2)
    return model.train()


def randomise(model: PeftModel, adapter: str, *, seed: int) -> None:
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if adapter in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.3


@pytest.mark.parametrize(
    ("dtype", "dropout"),
    # In bfloat16 PEFT draws the dropout mask for float32 numbers: another one.
    [(torch.float32, 0.0), (torch.float32, 0.3), (torch.bfloat16, 0.0)],
)
def test_the_fused_layer_is_pefts(dtype: torch.dtype, dropout: float) -> None:
    results = []
    for config, layer in ((fuse(settings(dropout)), FusedLinear), (settings(dropout), Linear)):
        model = wrapped(config, dtype)
        assert {type(module) for module in model.modules() if isinstance(module, Linear)} == {layer}
        torch.manual_seed(3)
        logits = model(**rows()).logits
        (logits.float() ** 2).mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert gradients.dtype == torch.float32
        results.append((logits.detach(), gradients))
    for ours, theirs in zip(*results, strict=True):
        assert apart(ours, theirs) < CLOSE[dtype]


def test_the_update_has_the_gradients_of_finite_differences() -> None:
    torch.manual_seed(0)
    sizes = ((2, 3, 4), (2, 3, 5), (2, 5), (4, 2))
    inputs = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]
    torch.autograd.gradcheck(lambda base, *rest: LowRankUpdate.apply(base * 1, *rest, 0.7), inputs)


def test_what_is_not_the_plain_case_goes_pefts_way() -> None:
    """An adapter for each row, two at once, none: the numbers that PEFT's own layer gives."""
    ours, theirs = (wrapped(config).eval() for config in (fuse(settings()), settings()))
    for model in (ours, theirs):
        model.add_adapter("second", settings())
        randomise(model, "second", seed=4)
    names = ["default", "second", "default"]
    found = [[model(**rows()).logits, model(**rows(), adapter_names=names).logits] for model in (ours, theirs)]
    for model, results in zip((ours, theirs), found, strict=True):
        model.base_model.set_adapter(["default", "second"])
        results.append(model(**rows()).logits)
        with model.disable_adapter():
            results.append(model(**rows()).logits)
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)
    assert all(apart(other, found[0][0]) > 1e-3 for other in found[0][1:])


def test_the_adapter_on_disk_says_nothing_of_the_layer() -> None:
    assert wrapped(fuse(settings())).peft_config["default"].to_dict() == (
        wrapped(settings()).peft_config["default"].to_dict()
    )


@pytest.mark.parametrize("dtype", CLOSE)
def test_grouped_attention_is_eager_attention(dtype: torch.dtype) -> None:
    inputs = rows()
    real = inputs["attention_mask"].bool()
    rest = {key: inputs[key] for key in ("attention_mask", "position_ids")}
    results = []
    for attention in (GROUPED, "eager"):
        model = llama(dtype, attention)
        embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, **rest).logits[real]
        (gradient,) = torch.autograd.grad((logits.float() ** 2).mean(), [embedded])
        results.append((logits, gradient[real]))
    for ours, theirs in zip(*results, strict=True):
        assert apart(ours, theirs) < CLOSE[dtype]


def test_grouped_attention_reads_a_cache() -> None:
    """Greedy generation from left-padded prompts, token by token."""
    inputs = {key: value for key, value in rows().items() if key != "position_ids"}
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = [llama(attention=name).generate(**inputs, **options) for name in (GROUPED, "eager", "sdpa")]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


@pytest.mark.parametrize("dtype", CLOSE)
def test_token_losses_are_cross_entropy(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(3, 4, 40) * 5).to(dtype).requires_grad_()
    twin = copy.deepcopy(logits.detach()).requires_grad_()
    labels = torch.randint(0, 40, (3, 4))
    labels[0, :3] = labels[2, 1] = -100
    weights = torch.rand(3, 4)
    ours = token_losses(logits, labels)
    theirs = functional.cross_entropy(twin.float().flatten(0, 1), labels.flatten(), reduction="none").view(3, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)  # both are computed in float32
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert logits.grad is not None
    assert twin.grad is not None
    assert apart(logits.grad, twin.grad) < CLOSE[dtype]
    assert not logits.grad[0, :3].any()


def test_no_label_at_all_is_no_loss() -> None:
    logits = torch.randn(2, 3, 7, requires_grad=True)
    losses = token_losses(logits, torch.full((2, 3), -100))
    losses.sum().backward()
    assert logits.grad is not None
    assert not losses.any()
    assert not logits.grad.any()
