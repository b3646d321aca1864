"""A base model for several runs: who can compute together, and a copy for each around the very same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ilora.kernels.attention import PLAIN
from ilora.kernels.lora import FusedLinear
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.joint import sharing_copy
from ilora.model.load import GivenModel
from ilora.model.together import Meeting, Seat, decoder_layers
from ilora.model.turns import Player


def obstacle(engine: Engine) -> str | None:
    """Why a run's passes cannot be computed together with others, in words; None: they can."""
    config: Any = engine.core.config
    layers = [layer for _, layer in decoder_layers(engine)]
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    found = {
        f"models of type {config.model_type}": config.model_type not in PLAIN,
        "a sliding window": window is not None,
        "layers that attend in different ways": len(set(getattr(config, "layer_types", None) or [])) > 1,
        "model.dropout": getattr(config, "attention_dropout", 0.0) > 0,
        "compiled layers (model.kernels)": engine.compiled,
        "model.gradient_checkpointing": engine.recomputes,
        "evaluation.merge": engine.merge,
        "adapters other than plain LoRA of linear layers": any(
            not isinstance(layer, FusedLinear) or layer.lora_variant for layer in layers
        ),
        "no adapter in the decoder": not layers,
        "adapter.dropout on a GPU": engine.device.type == "cuda" and adapters.dropout(engine.model) > 0,
    }
    return next((words for words, there in found.items() if there), None)


@dataclass(frozen=True)
class SharedModel(GivenModel):
    """A copy of the base model for the run of one thread at a meeting."""

    meeting: Meeting
    player: Player

    @staticmethod
    def at(meeting: Meeting, player: Player) -> SharedModel:
        """The copy has modules of its own around the very same weights."""
        return SharedModel(sharing_copy(meeting.base.model), meeting.base.tokenizer, meeting, player)

    def ready(self, engine: Engine) -> None:
        """Have the engine's passes meet the others', where they can."""
        reason = obstacle(engine)
        if reason is not None:
            engine.notices.append(f"its passes are computed alone: {reason}")
            return
        if engine.graphs is not None:  # the joint passes are recorded instead
            engine.graphs.remove()
            engine.graphs = None
        engine.seat = Seat(self.meeting, engine, self.player)
