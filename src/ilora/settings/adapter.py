"""The LoRA adapter, in the terms of PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ilora.section import Section
from ilora.settings.fields import Place, PositiveInt

_PEFT_NAMES = ("lora_alpha", "lora_dropout")
_MORE_OF_PEFT = (
    "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform",
    "init_lora_weights",
)  # fmt: skip


_SHARED_BASE = "changes the base weights, which every adapter of a run shares and which stay frozen"
_REFUSED_INITS = ("pissa", "olora", "loftq", "eva", "corda", "mica", "lora_ga")  # or need data before training
_REFUSED_SETTINGS = {
    "trainable_token_indices": "trains rows of the embedding, which stays frozen here",
    "modules_to_save": "trains whole layers, which stay frozen here",
    "bias": "trains biases, which stay frozen here",
    "lora_bias": "is a bias, which merging and averaging adapters do not know",
}


def _of_lora_config(config: Any) -> dict[str, Any]:
    """The settings of a `peft.LoraConfig`. Raises ValueError for one that is no setting here."""
    taken = ("r", *_PEFT_NAMES, "target_modules", *_MORE_OF_PEFT)
    describing = ("task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
    values, plain = config.to_dict(), type(config)().to_dict()
    changed = [key for key, item in values.items() if item != plain.get(key) and key not in (*taken, *describing)]
    if changed:
        raise ValueError(f"these settings of {type(config).__name__} are not supported: {', '.join(sorted(changed))}")
    found = {key: sorted(item) if isinstance(item, set) else item for key, item in values.items() if key in taken}
    return {key: item for key, item in found.items() if item is not None}


class AdapterConfig(Section):
    """The LoRA adapter (rank r, scaling alpha / r), in the terms of PEFT's LoraConfig."""

    r: PositiveInt = 8
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["auto", "all-linear"] = Field(
        "auto", description="names of linear layers; auto: the attention's query and value projections"
    )
    layers: PositiveInt | None = Field(
        None, description="number of layers with the adapter, counted from the last one; None: all"
    )
    layers_to_transform: Annotated[list[int], Field(min_length=1)] | None = Field(
        None, description="numbers of the layers with the adapter; None: all, or those of `layers`"
    )
    exclude_modules: list[str] = Field([], description="names of layers that get no adapter")
    use_rslora: bool = Field(False, description="scaling alpha / √r (rank-stabilised LoRA)")
    use_dora: bool = Field(False, description="a trained magnitude for each output beside the update (DoRA)")
    rank_pattern: dict[str, PositiveInt] = Field({}, description="layer names or patterns: another rank there")
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="layer names or patterns: another alpha there"
    )
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = Field(
        True, description="how A and B begin; true: A as a linear layer (Kaiming), B zero"
    )
    start_from: Place | None = Field(
        None, description="a PEFT LoRA folder of any trainer, with whose weights the first task begins"
    )
    keep_below: bool = Field(
        False,
        description="with `layers`: compute what is below the adapter once for each row, and keep it in $ILORA_CACHE",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_peft_writes_it(cls, value: Any) -> Any:
        """Takes a `peft.LoraConfig`, and PEFT's names `lora_alpha` and `lora_dropout`."""
        values = _of_lora_config(value) if hasattr(value, "peft_type") else value
        if not isinstance(values, Mapping):
            return values
        for name in _REFUSED_SETTINGS.keys() & values.keys():
            raise ValueError(f"{name} is not supported: it {_REFUSED_SETTINGS[name]}")
        init = values.get("init_lora_weights")
        if isinstance(init, str) and init.startswith(_REFUSED_INITS):
            raise ValueError(f"init_lora_weights: {init} is not supported: it {_SHARED_BASE}")
        targets = values.get("target_modules")
        if isinstance(targets, str) and targets not in ("auto", "all-linear"):
            values = {**values, "target_modules": [targets]}
        twice = [name for name in ("alpha", "dropout") if {name, f"lora_{name}"} <= values.keys()]
        if twice:
            raise ValueError(f"{twice[0]} and lora_{twice[0]} are the same setting; give one of them")
        return {str(key).removeprefix("lora_") if key in _PEFT_NAMES else key: item for key, item in values.items()}

    @model_validator(mode="after")
    def _something_below(self) -> AdapterConfig:
        if self.keep_below and self.layers is None:
            raise ValueError("keep_below: needs `layers`; where all layers carry the adapter, nothing below them stays")
        if self.layers is not None and self.layers_to_transform is not None:
            raise ValueError("layers and layers_to_transform say the same thing; give one of them")
        return self
