"""Adapters as points of a vector space: read from PEFT folders, combined, measured, written back.

Two spaces, which are not the same: `factors`, where A and B are coordinates of their own, and `delta`, where the update
ΔW = scale · B A is. Between two points (1 − t)·B₀ + t·B₁ times (1 − t)·A₀ + t·A₁ has cross terms that
(1 − t)·ΔW₀ + t·ΔW₁ has not. The latter is exact as a LoRA of the ranks' sum, by concatenation, so no ΔW is ever formed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ilora.early import ADAPTER, refuse_no_adapter
from ilora.errors import IloraError, InputError
from ilora.model.adapters import LowRank
from ilora.model.identity import FILE

SPACES = ("factors", "delta")
_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "lora_bias": "LoRA with biases",
    "alora_invocation_tokens": "activated LoRA (a part of the prompt goes without the update)",
    "layer_replication": "layer_replication",
    "target_parameters": "target_parameters",
}
# Others (PiSSA, OLoRA, CorDA, LoftQ) change the base weights, too: there the update alone is not the model.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: one low-rank update for each changed layer, by module name. `label` is what pictures call it."""

    label: str
    updates: Mapping[str, LowRank]
    base: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)  # of adapter_config.json


def read(folder: str | Path, *, label: str | None = None) -> Adapter:
    """Read an ordinary PEFT LoRA folder. Raises InputError naming what is missing or cannot be interpolated."""
    folder = Path(folder)
    settings = _read_settings(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise InputError(f"{folder}: no adapter_model.safetensors (other formats are not read; PEFT can convert them)")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    if not tensors:
        raise InputError(f"{file}: it holds no weights")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or tensor.dim() != 2:
            raise InputError(f"{file}: {key!r} is not the A or B of a linear layer; only such LoRA can be interpolated")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{file}: {key!r} holds values that are not finite (NaN or infinity)")
        parts.setdefault(found["layer"], {})[found["part"]] = tensor.float()
    for layer, pair in parts.items():
        if len(pair) < 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise InputError(f"{file}: A and B of {layer} do not fit together")
    try:
        updates = {
            layer: LowRank(parts[layer]["A"], parts[layer]["B"], _scale(layer, len(parts[layer]["A"]), settings))
            for layer in sorted(parts, key=_natural)
        }
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise InputError(
            f"{folder / 'adapter_config.json'}: lora_alpha or alpha_pattern cannot be used: {error}"
        ) from None
    base = str(settings.get("base_model_name_or_path") or "")
    return Adapter(label or folder.name, updates, base, settings)


def base_alias(folder: Path) -> str | None:
    """The short name of the base model of an adapter that ilora trained: it may stand for a copy of the hub's model."""
    file = folder / FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    alias = content.get("alias") if isinstance(content, dict) else None
    return alias if isinstance(alias, str) else None


def _read_settings(folder: Path) -> dict[str, Any]:
    refuse_no_adapter(folder)
    file = folder / ADAPTER
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or kind != "LORA":
        raise InputError(f"{file}: peft_type is {kind!r}; paths are defined between LORA adapters")
    for key, name in _REFUSED.items():
        if settings.get(key):
            raise InputError(f"{file}: {name} is not supported: its weights are not a low-rank update alone")
    if settings.get("init_lora_weights", True) not in _PLAIN_BEGINNINGS:
        raise InputError(
            f"{file}: init_lora_weights is {settings['init_lora_weights']!r}, which also changes the base weights; "
            "PEFT can save such an adapter as a plain one (path_initial_model_for_weight_conversion)"
        )
    if settings.get("bias", "none") != "none":
        raise InputError(f"{file}: bias is {settings['bias']!r}; only 'none' is a low-rank update alone")
    return settings


def _scale(layer: str, rank: int, settings: Mapping[str, Any]) -> float:
    """PEFT's rule: alpha / r, or alpha / √r for rank-stabilised LoRA; patterns match the end of a module's name."""
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = value
            break
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def layers(adapters: Iterable[Adapter]) -> list[str]:
    """Every layer that one of the adapters changes, in the model's order."""
    return sorted({layer for adapter in adapters for layer in adapter.updates}, key=_natural)


def check_space(adapters: Sequence[Adapter], space: str) -> None:
    """Raise InputError where the adapters are not points of one such space."""
    if space not in SPACES:
        raise InputError(f"unknown space {space!r}; there are {', '.join(SPACES)}")
    first = adapters[0]
    for other in adapters[1:]:
        for layer in set(first.updates) & set(other.updates):
            ours, theirs = _shape(first.updates[layer]), _shape(other.updates[layer])
            if ours != theirs:
                raise InputError(
                    f"{first.label} and {other.label} belong to different base models: layer {layer} is "
                    f"{ours[0]} x {ours[1]} in one and {theirs[0]} x {theirs[1]} in the other"
                )
        if space == "factors" and _form(first) != _form(other):
            raise InputError(
                f"{first.label} and {other.label} differ in layers, rank or scale, so their A and B cannot be "
                "interpolated apart; the space `delta` takes any two adapters of one base model"
            )


def common_spaces(adapters: Sequence[Adapter]) -> list[str]:
    """`delta`, and `factors` where all have one form. Raises InputError where they are of different base models."""
    check_space(adapters, "delta")
    return [space for space in SPACES if space == "delta" or len({str(_form(adapter)) for adapter in adapters}) == 1]


def _shape(update: LowRank) -> tuple[int, int]:
    return update.up.shape[0], update.down.shape[1]


def _form(adapter: Adapter) -> dict[str, tuple[int, float]]:
    return {layer: (len(update.down), update.scale) for layer, update in adapter.updates.items()}


def combine(adapters: Sequence[Adapter], weights: Sequence[float], *, space: str, label: str = "") -> Adapter:
    """The point Σ weight · adapter of a space. An adapter of weight 1, all others 0, comes back as it is, bit for bit.

    The adapters must pass `check_space`.
    """
    parts = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if weight]
    if len(parts) == 1 and parts[0][1] == 1.0:
        return parts[0][0]
    mix = _sum_of_factors if space == "factors" else _concatenation
    updates = {}
    for layer in layers(adapter for adapter, _ in parts):
        there = [(adapter.updates[layer], weight) for adapter, weight in parts if layer in adapter.updates]
        updates[layer] = mix(there)
    same = all(adapter.updates.keys() == adapters[0].updates.keys() for adapter in adapters)
    # Of different layers, no adapter's own settings (target_modules, layers_to_transform) describe the union.
    return Adapter(label, updates, adapters[0].base, adapters[0].settings if same else {})


def _sum_of_factors(parts: Sequence[tuple[LowRank, float]]) -> LowRank:
    down, up = (
        torch.stack([weight * getattr(update, side) for update, weight in parts]).sum(0) for side in ("down", "up")
    )
    return LowRank(down, up, parts[0][0].scale)


def _concatenation(parts: Sequence[tuple[LowRank, float]]) -> LowRank:
    down = torch.cat([update.down for update, _ in parts])
    return LowRank(down, torch.cat([weight * update.scale * update.up for update, weight in parts], dim=1), 1.0)


def reduced(adapter: Adapter, like: Adapter) -> Adapter:
    """The nearest adapter (in ΔW, Frobenius) with the ranks and scales of another one, layer by layer.

    A layer's update is cut to its largest singular values, whose roots go to A and to B; where it has the form already,
    it stays as it is. The adapters change the same layers.
    """
    updates = {}
    for layer, update in adapter.updates.items():
        rank, scale = len(like.updates[layer].down), like.updates[layer].scale
        updates[layer] = update if (len(update.down), update.scale) == (rank, scale) else _cut(update, rank, scale)
    return Adapter(adapter.label, updates, like.base, like.settings)


def _cut(update: LowRank, rank: int, scale: float) -> LowRank:
    """By the singular values of a matrix of the ranks' size: ΔW itself is never formed."""
    up, core_up = torch.linalg.qr(update.up.double())
    down, core_down = torch.linalg.qr(update.down.double().T)
    left, values, right = torch.linalg.svd(core_up @ core_down.T * (update.scale / scale))
    roots = values[:rank].sqrt()
    return LowRank(
        (roots[:, None] * (right[:rank] @ down.T)).to(update.down.dtype),
        (up @ left[:, :rank] * roots).to(update.up.dtype),
        scale,
    )


def product(first: LowRank, second: LowRank) -> float:
    """⟨ΔW, ΔW'⟩ (Frobenius) of one layer from matrices of the ranks' size: Σ (Bᵀ B') ∘ (A A'ᵀ)."""
    ups = first.up.double().T @ second.up.double()
    downs = first.down.double() @ second.down.double().T
    return first.scale * second.scale * float((ups * downs).sum())


def inner(first: Adapter, second: Adapter, *, space: str) -> float:
    """The scalar product of two adapters as vectors, over all layers, in float64."""
    total = 0.0
    for layer in set(first.updates) & set(second.updates):
        one, two = first.updates[layer], second.updates[layer]
        if space == "delta":
            total += product(one, two)
        else:
            total += float((one.down.double() * two.down.double()).sum() + (one.up.double() * two.up.double()).sum())
    return total


def gram(adapters: Sequence[Adapter], *, space: str) -> Tensor:
    """(n, n) scalar products of n adapters, float64: all that distances, angles and projections need."""
    table = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for row, first in enumerate(adapters):
        for column in range(row + 1):
            table[row, column] = table[column, row] = inner(first, adapters[column], space=space)
    return table


def write(adapter: Adapter, folder: Path, *, replace: bool = False) -> None:
    """Write an ordinary PEFT folder: one rank and one scale for all layers, complete or not there at all.

    Raises InputError where the folder exists (and may not be replaced), IloraError where it cannot be written.
    """
    if folder.exists() and not replace:
        raise InputError(f"{folder}: exists already; give another name, or move it away")
    updates = _uniform(adapter.updates)
    one = next(iter(updates.values()))
    settings = {
        **adapter.settings,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": len(one.down),
        "lora_alpha": one.scale * len(one.down),
        "use_rslora": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": adapter.settings.get("target_modules") or list(updates),
        "inference_mode": True,
    }
    scratch = folder.with_name(f".{folder.name}-writing")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        _write_weights(updates, scratch)
        (scratch / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise IloraError(f"{folder}: cannot write the adapter: {error}") from error


def write_like(adapter: Adapter, own: Path, folder: Path) -> None:
    """Write a PEFT folder with the settings of another one, whose ranks and scales the adapter has."""
    folder.mkdir(parents=True)
    _write_weights(adapter.updates, folder)
    for name in (ADAPTER, FILE):
        if (own / name).is_file():
            shutil.copyfile(own / name, folder / name)


def _write_weights(updates: Mapping[str, LowRank], folder: Path) -> None:
    tensors = {}
    for layer, update in updates.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = update.down.contiguous()
        tensors[f"base_model.model.{layer}.lora_B.weight"] = update.up.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _uniform(updates: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Updates of one rank (padded with zeros) and one scale (1, taken into B, where they differ)."""
    ranks = {len(update.down) for update in updates.values()}
    scales = {update.scale for update in updates.values()}
    if len(ranks) == len(scales) == 1:
        return dict(updates)
    rank, made = max(ranks), {}
    for layer, update in updates.items():
        gap = rank - len(update.down)
        down = torch.cat([update.down, update.down.new_zeros(gap, update.down.shape[1])])
        up = torch.cat([update.scale * update.up, update.up.new_zeros(update.up.shape[0], gap)], dim=1)
        made[layer] = LowRank(down, up, 1.0)
    return made
