"""The number type of the frozen weights, where the configuration leaves it to the machine."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ilora.settings import ModelConfig


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether torch has products of bfloat16 matrices for this device, made of its own instructions.

    Without them they are several times as slow as in float32: on CPUs before AVX-512 (docs/performance.md), on Apple's
    CPUs, and on GPUs before Ampere.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # What torch's own compiler asks before it hands such a product to oneDNN; there is no public question. Builds
        # without oneDNN have no such operation.
        found: Callable[[], bool] = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
        return found()
    return True


def dtype_of(config: ModelConfig) -> torch.dtype:
    """The type in which this process has the frozen weights."""
    found: torch.dtype = getattr(torch, with_dtype(config).dtype)
    return found


def with_dtype(config: ModelConfig) -> ModelConfig:
    """The configuration, in which `dtype: auto` is written out as what suits the device of this process."""
    if config.dtype != "auto":
        return config
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return config.model_copy(update={"dtype": "bfloat16" if computes_in_bfloat16(device) else "float32"})
