"""LoRA adapters on one frozen model: add, activate, copy, average, merge, save.

Where PEFT's internals are known, but for the layer itself (`kernels/lora.py`), adapter folders (`connectivity/`) and
the names lora_A and lora_B, which two methods ask for. The trap it exists for: `set_adapter` and `disable_adapter`
move activity and trainability together, so activating "slow" freezes "fast", and its gradient silently stays away.
Here activity is changed alone, and restored.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ilora.errors import InputError
from ilora.kernels.lora import fuse
from ilora.model.identity import BaseModel
from ilora.model.sharding import part_of
from ilora.model.targets import beside_the_text, last_layers, linear_layers, refuse_unknown, target_modules
from ilora.settings import AdapterConfig

WRAPPER = "base_model.model."  # what PEFT puts before the base model's own module names


def attach(
    model: nn.Module, config: AdapterConfig, *, name: str, seed: int, base: BaseModel | None = None
) -> PeftModel:
    """Wrap the model and add the first adapter, trainable, initialised from `seed` (A random, B zero: no change).

    base: what adapter folders name as their base model.
    """
    modules, last = target_modules(model, config.target_modules), last_layers(model, config.layers)
    some = last is not None or config.layers_to_transform is not None
    if some and modules == "all-linear":  # PEFT takes its own name for all of them in all layers only
        modules = linear_layers(model, head=False)
    refuse_unknown(model, config, modules)
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=modules,
        layers_to_transform=last or config.layers_to_transform,
        exclude_modules=[*config.exclude_modules, *beside_the_text(model)] or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        init_lora_weights=config.init_lora_weights,
        task_type="CAUSAL_LM",
    )
    with _initialising(seed):
        try:
            wrapped = get_peft_model(model, fuse(lora), adapter_name=name)
        except ValueError as error:
            raise InputError(
                f"adapter: PEFT refuses these settings for this model: {str(error).splitlines()[0]} "
                f"(its linear layers are {', '.join(linear_layers(model))})"
            ) from error
    if base is not None:
        wrapped.peft_config[name].base_model_name_or_path = base.name
        wrapped.peft_config[name].revision = base.revision
    return wrapped


def tied(model: PeftModel) -> list[str]:
    """The layers with an adapter whose weights another layer shares, as a tied output head does."""
    base = model.get_base_model()
    shared = [id(part.weight) for part in (base.get_input_embeddings(), base.get_output_embeddings())]
    if len(set(shared)) == len(shared):
        return []
    return [path for path, layer in adapted(model) if id(layer.get_base_layer().weight) in shared]


def add(model: PeftModel, name: str, *, like: str, seed: int = 0) -> None:
    """Add one more adapter of the same form, frozen, without dropout, initialised from `seed`.

    The active adapter stays active; of several PEFT leaves the last one.
    """
    with _initialising(seed):
        model.add_adapter(name, replace(model.peft_config[like], lora_dropout=0.0))
    for parameter in parameters(model, name).values():
        parameter.requires_grad_(False)


@torch.no_grad()
def begin_again(model: PeftModel, name: str, *, seed: int) -> None:
    """Put an adapter back to its initialisation, from `seed`: A random, B zero."""
    with _initialising(seed):
        for _, layer in adapted(model):
            layer.reset_lora_parameters(name, init_lora_weights=model.peft_config[name].init_lora_weights)
            if name in layer.lora_magnitude_vector:  # DoRA: norms of the base's weights, as B is 0
                magnitude, base = layer.lora_magnitude_vector[name], layer.get_base_layer().weight
                magnitude.weight.copy_(magnitude.get_weight_norm(base, 0.0, layer.scaling[name]))


@torch.no_grad()
def keep_copy(model: PeftModel, source: str, name: str) -> None:
    """A frozen copy of an adapter under a further name (which is added where it is missing)."""
    if name not in names(model):
        add(model, name, like=source)
    copy(model, source, name)


@contextmanager
def _initialising(seed: int) -> Iterator[None]:
    """Random numbers from `seed` inside the block, the global state as before after it."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 under a name that the latter is about to drop; nothing a user could do.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        yield


def names(model: PeftModel) -> list[str]:
    """The adapters that the model holds."""
    return list(model.peft_config)


def dropout(model: PeftModel) -> float:
    """The dropout of the adapter in training."""
    return max(float(config.lora_dropout) for config in model.peft_config.values())


def parameters(model: PeftModel, name: str) -> dict[str, nn.Parameter]:
    """An adapter's parameters under names without the adapter's: the same keys for every adapter of one form.

    They are looked for once: a step asks several times, and a model has hundreds of layers.
    """
    known = _PARAMETERS.setdefault(model, {})
    if name not in names(model):
        raise KeyError(f"no adapter '{name}': there are {names(model)}")
    if name not in known:
        known[name] = _find(model, name)
    return dict(known[name])


def _find(model: PeftModel, name: str) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for path, layer in adapted(model):
        for part in layer.adapter_layer_names:
            container = getattr(layer, part)
            if name not in container:
                continue
            item = container[name]
            if isinstance(item, nn.Parameter):
                found[f"{path}.{part}"] = item
            else:
                found |= {f"{path}.{part}.{key}": value for key, value in item.named_parameters()}
    return found


def active_names(model: PeftModel) -> tuple[str, ...]:
    """The adapters that the model computes with at present (their sum); none: the base model."""
    _, layer = adapted(model)[0]
    return () if layer.disable_adapters else tuple(layer.active_adapters)


def activate(model: PeftModel, chosen: str | Sequence[str] | None) -> None:
    """Compute with these adapters (their sum; None: the base model) from now on; trainability is untouched."""
    wanted = _known(model, chosen)
    for _, layer in adapted(model):
        attributes = vars(layer)  # a module's own way to set one takes ten times as long, for hundreds of layers
        attributes["_disable_adapters"] = not wanted
        if wanted:
            attributes["_active_adapter"] = wanted


@contextmanager
def active(model: PeftModel, chosen: str | Sequence[str] | None) -> Iterator[None]:
    """`activate` inside the block; what was active before comes back."""
    layers = [layer for _, layer in adapted(model)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        activate(model, chosen)
        yield
    finally:
        for layer, (adapters, disabled) in zip(layers, before, strict=True):
            vars(layer).update(_active_adapter=adapters, _disable_adapters=disabled)


@contextmanager
def merged(model: PeftModel, chosen: str | Sequence[str]) -> Iterator[None]:
    """Compute with the adapters added into the frozen weights; they come back bit for bit, from a copy."""
    wanted = _known(model, chosen)
    layers = [layer for _, layer in adapted(model) if wanted[0] in layer.lora_A]
    originals = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                weight = layer.get_base_layer().weight
                weight += part_of(sum(layer.get_delta_weight(name) for name in wanted).to(weight.dtype), weight)
        with active(model, None):
            yield
    finally:
        with torch.no_grad():
            for layer, original in zip(layers, originals, strict=True):
                layer.get_base_layer().weight.copy_(original)


def _known(model: PeftModel, chosen: str | Sequence[str] | None) -> list[str]:
    """The names as a list; a wrong one must not pass silently as the base model."""
    wanted = [] if chosen is None else [chosen] if isinstance(chosen, str) else list(chosen)
    for name in wanted:
        parameters(model, name)
    return wanted


@torch.no_grad()
def copy(model: PeftModel, source: str, target: str) -> None:
    """target <- source."""
    theirs = parameters(model, source)
    for key, parameter in parameters(model, target).items():
        parameter.copy_(theirs[key])


@torch.no_grad()
def interpolate(model: PeftModel, target: str, towards: str, *, by: float) -> None:
    """target <- (1 - by) · target + by · towards, for A and B each on their own (not for their product)."""
    theirs, mine = parameters(model, towards), parameters(model, target)
    torch._foreach_lerp_(list(mine.values()), [theirs[key] for key in mine], by)


def state(model: PeftModel) -> dict[str, Tensor]:
    """All adapters, as `<adapter>:<parameter>`."""
    return {f"{name}:{key}": value.detach() for name in names(model) for key, value in parameters(model, name).items()}


@torch.no_grad()
def load_state(model: PeftModel, tensors: dict[str, Tensor], *, first: str) -> None:
    """Inverse of `state`: adds the adapters that are missing, frozen, and fills all.

    They are added by name: a safetensors file gives its tensors in an order of its own at every reading, and the
    order in which a method adds up its adapters shows in the last bits of the result.
    """
    for name in sorted({key.partition(":")[0] for key in tensors}):
        if name not in names(model):
            add(model, name, like=first)
    for name in names(model):
        for key, parameter in parameters(model, name).items():
            parameter.copy_(tensors[f"{name}:{key}"])


def save(model: PeftModel, folder: Path, adapters: Sequence[str]) -> None:
    """Write each adapter as an ordinary PEFT folder, `folder/<adapter>`."""
    model.save_pretrained(str(folder), selected_adapters=list(adapters), save_embedding_layers=False)
    (folder / "README.md").unlink(
        missing_ok=True
    )  # PEFT's empty form; `ilora export` writes a card that says something


def save_sum(model: PeftModel, folder: Path, chosen: Sequence[str], *, name: str) -> None:
    """Write the sum of adapters as one PEFT folder `folder/<name>`: exact, by concatenation, of their ranks' sum."""
    total = "sum"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        model.add_weighted_adapter(list(chosen), [1.0] * len(chosen), total, combination_type="cat")
    try:
        save(model, folder, [total])
    finally:
        model.delete_adapter(total)
        _PARAMETERS.pop(model, None)
    (folder / total).rename(folder / name)


def save_soft_prompt(model: PeftModel, folder: Path, prompt: Tensor, *, like: str) -> None:
    """Write a soft prompt (length, features) as an ordinary PEFT prompt-tuning folder."""
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(prompt),
        token_dim=prompt.shape[1],
        num_transformer_submodules=1,
        base_model_name_or_path=model.peft_config[like].base_model_name_or_path,
        inference_mode=True,
    )
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    tensors = {"prompt_embeddings": prompt.detach().float().cpu().contiguous()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@dataclass(frozen=True)
class LowRank:
    """One linear layer's update, scale · up @ down. down: (rank, in), up: (out, rank)."""

    down: Tensor
    up: Tensor
    scale: float


def attach_slot(model: nn.Module, layers: Sequence[str], *, name: str) -> PeftModel:
    """Wrap the model with an empty place for an adapter, frozen and without dropout: `place` fills it.

    layers: module names in the base model, each a linear layer. Raises InputError where the model has no such layer.
    """
    known = {key for key, _ in model.named_modules()}
    missing = [layer for layer in layers if layer not in known]
    if missing:
        raise InputError(
            f"the adapter changes {missing[0]} (and {len(missing) - 1} more), which this model does not have; "
            "it belongs to another base model"
        )
    with _initialising(0):
        slot = LoraConfig(r=1, lora_alpha=1, target_modules=list(layers), task_type="CAUSAL_LM")
        wrapped = get_peft_model(model, fuse(slot), adapter_name=name)
    return wrapped.requires_grad_(False)


@torch.no_grad()
def place(model: PeftModel, name: str, updates: Mapping[str, LowRank]) -> None:
    """Compute with these updates from now on: the tensors themselves, of whatever rank, without a copy.

    updates: by module name in the base model; a layer that is not among them is left unchanged by the adapter.
    """
    for path, layer in adapted(model):
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        update = updates.get(path.removeprefix(WRAPPER))
        if update is None:
            update = LowRank(down.new_zeros(1, down.shape[1]), up.new_zeros(up.shape[0], 1), 1.0)
        down.grad = up.grad = None
        down.data, up.data = update.down.detach().to(down.device), update.up.detach().to(up.device)
        layer.scaling[name] = update.scale


def placed_gradients(model: PeftModel, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What `backward` left at the placed updates: (down, up) by module name in the base model."""
    return {
        path.removeprefix(WRAPPER): (layer.lora_A[name].weight.grad, layer.lora_B[name].weight.grad)
        for path, layer in adapted(model)
    }


def adapted(model: PeftModel) -> list[tuple[str, BaseTunerLayer]]:
    """The layers that carry adapters, by name. They stay, while the modules inside them grow with every adapter."""
    if model not in _FOUND:
        _FOUND[model] = [(path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return _FOUND[model]


_FOUND: WeakKeyDictionary[PeftModel, list[tuple[str, BaseTunerLayer]]] = WeakKeyDictionary()
_PARAMETERS: WeakKeyDictionary[PeftModel, dict[str, dict[str, nn.Parameter]]] = WeakKeyDictionary()
