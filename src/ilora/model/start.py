"""The adapter that a run starts from: a PEFT LoRA folder of any trainer, as if it were of a task before the first."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ilora.errors import InputError
from ilora.model import adapters
from ilora.model.identity import FILE, BaseModel
from ilora.settings import AdapterConfig

_SETTINGS, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What gives an adapter its form. Dropout is a setting of the training to come, and stays the section's own.
_FORM = (
    "r", "alpha", "target_modules", "layers_to_transform", "exclude_modules", "use_rslora", "use_dora", "rank_pattern",
    "alpha_pattern",
)  # fmt: skip


def with_form(section: AdapterConfig) -> AdapterConfig:
    """The section with the form of the adapter that it starts from, wherever it is at its defaults.

    Raises InputError for a folder that is no LoRA adapter, and naming a setting that says something else.
    """
    folder = section.start_from
    if folder is None:
        return section
    theirs, plain, taken = _form(folder), AdapterConfig(), {}
    for name in _FORM:
        ours, there = getattr(section, name), getattr(theirs, name)
        if name == "layers_to_transform" and section.layers is not None:
            continue  # the same in other words, or else the weights do not fit, which is said by name
        if _unordered(ours) == _unordered(there):
            continue
        if ours != getattr(plain, name):
            raise InputError(
                f"adapter.{name}: {ours!r}, but the adapter of adapter.start_from, {folder}, has {there!r}; "
                "leave the setting out"
            )
        taken[name] = there
    return section.model_copy(update=taken)


def _unordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _form(folder: Path) -> AdapterConfig:
    """The settings in an adapter's folder, in our terms."""
    file = folder / _SETTINGS
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"adapter.start_from: {folder}: not a PEFT adapter folder (no {_SETTINGS} in it)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    kind = content.get("peft_type") if isinstance(content, dict) else None
    if kind != "LORA":
        raise InputError(f"{file}: peft_type is {kind!r}; a run can start from a LORA adapter")
    targets = content.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        raise InputError(f"{file}: target_modules is the pattern {targets!r}; write the names as a list")
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.fan_in_fan_out = False  # of the layer's kind, which PEFT finds out again
        made = AdapterConfig.model_validate(config)
    except ValidationError as error:
        raise InputError(f"{file}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    return made


@dataclass(frozen=True)
class Start:
    """The weights of an adapter's folder, under PEFT's names, with the SHA-256 of their file."""

    folder: Path
    weights: dict[str, Tensor]
    sha256: str

    @staticmethod
    def read(folder: Path) -> Start:
        """Raises InputError where there are no weights, or they are damaged or not finite."""
        file = folder / _WEIGHTS
        if not file.is_file():
            raise InputError(f"{folder}: no {_WEIGHTS} in it (other formats are not read; PEFT can convert them)")
        data = file.read_bytes()
        try:
            weights = load(data)
        except SafetensorError as error:
            raise InputError(f"{file}: cannot be read: {error}") from None
        for key, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"{file}: {key!r} holds values that are not finite (NaN or infinity)")
        return Start(folder, weights, hashlib.sha256(data).hexdigest())

    def refuse_other_base(self, base: BaseModel | None) -> None:
        """Raises InputError where the folder says that it belongs to other base weights (`base_model.json`)."""
        file = self.folder / FILE
        if base is None or not file.is_file():
            return
        try:
            then = BaseModel(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{file}: cannot be read: {error}") from None
        if then.weights_sha256 != base.weights_sha256:
            raise InputError(
                f"{self.folder}: an adapter of {then.name} (weights {then.weights_sha256[:12]}…); "
                f"{base.name} has other weights ({base.weights_sha256[:12]}…)"
            )

    @torch.no_grad()
    def fill(self, model: PeftModel, name: str) -> None:
        """Put the weights into an adapter of the model. Raises InputError where they are of other layers or shapes."""
        theirs = {f"{key}.weight" if key.endswith("_magnitude_vector") else key: w for key, w in self.weights.items()}
        ours = adapters.parameters(model, name)
        for key in [*(ours.keys() - theirs.keys()), *(theirs.keys() - ours.keys())]:
            whose = "has no weights for" if key in ours else "has weights for"
            raise InputError(
                f"{self.folder}: the adapter {whose} {key}, the run's adapter {'has' if key in ours else 'has none'}; "
                "adapter.layers, target_modules or exclude_modules say something else, or it is of another model"
            )
        for key, parameter in ours.items():
            if parameter.shape != theirs[key].shape:
                raise InputError(
                    f"{self.folder}: {key} has the shape {tuple(theirs[key].shape)}, this model's adapter "
                    f"{tuple(parameter.shape)}; it is of another base model"
                )
        for key, parameter in ours.items():
            parameter.copy_(theirs[key])
