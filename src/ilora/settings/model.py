"""The base model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ilora.section import Section
from ilora.settings.fields import Name


class ModelConfig(Section):
    """The base model, which stays frozen."""

    name: Name = Field("smollm2-135m", description="an alias (`ilora list models`), a hub id or a local folder")
    revision: str | None = Field(None, description="branch, tag or commit of a model on the hub")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="type of the frozen weights; adapters are trained in float32; auto: bfloat16, and float32 on a "
        "device without bfloat16 arithmetic, where it takes twice the memory and is several times as fast",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="auto: our own for short bfloat16 rows on a CPU, where it is faster; sdpa elsewhere"
    )
    dropout: bool = Field(False, description="keep the base model's own dropout in training (GPT-2, OPT and others)")
    gradient_checkpointing: Literal["auto"] | bool = Field(
        "auto",
        description="recompute activations in the backward pass: less memory, more time, the same result; auto: where "
        "not even one row fits without",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="of the frozen weights, with bitsandbytes; 4bit: NF4 with double quantization (QLoRA)"
    )
    shard: Literal["auto", "none", "full", "hybrid"] = Field(
        "auto",
        description="of several processes, each keeps a part of the frozen weights; full: of all processes; hybrid: of "
        "a machine's, each machine has the model once; none: each has the whole; auto: none where that leaves half of "
        "a device's memory free",
    )
    kernels: Literal["auto", "plain", "compiled"] = Field(
        "auto",
        description="of the decoder's layers; compiled: fused by torch.compile (auto: on a GPU, from 1B parameters)",
    )
    graphs: Literal["auto", "off"] = Field(
        "auto",
        description="auto: on a GPU, record as CUDA graphs the passes of a model under 1B parameters, and the "
        "steps in which answers are generated",
    )
    liger: bool = Field(False, description="use liger-kernel's fused norms, rotary positions and gated MLPs (on a GPU)")
    trust_remote_code: bool = Field(False, description="run the Python code that comes with a model on the hub")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
