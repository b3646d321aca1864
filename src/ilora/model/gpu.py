"""What suits an engine to a GPU: a large model's kernels are fused, a small one's passes recorded, answers replayed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn

from ilora.files import cache_folder
from ilora.kernels.attention import GROUPED
from ilora.kernels.graphs import CudaRecorder, DecoderGraphs, Recorder
from ilora.model import adapters
from ilora.model.adapted import scalings
from ilora.model.decoding import Decoding
from ilora.model.engine import Engine
from ilora.settings import ModelConfig

LARGE = 1_000_000_000  # parameters: from here on kernels take longer than their launches
FORMS = 64  # compiled forms of a layer, at most: one for each adapter, with and without gradient and dropout
KEPT = 0.9  # of what a compiled layer would keep for its backward pass; the cheapest of it is computed again


def suit_the_device(engine: Engine, config: ModelConfig) -> None:
    """As `model.kernels` and `model.graphs` say; by themselves they leave a CPU as it is."""
    if engine.sharding is not None:  # its layers wait for their weights, which no recording can
        return
    fast, still = _packed_on_gpu(engine), stands_still(engine.core, config)
    large = sum(parameter.numel() for parameter in engine.core.parameters()) >= LARGE
    if config.kernels == "compiled" or (config.kernels == "auto" and fast and large):
        compile_layers(engine)
    if config.graphs == "auto" and fast and still and not large and config.gradient_checkpointing is not True:
        record_passes(engine, CudaRecorder())
    suit_answers(engine, config)


def suit_answers(engine: Engine, config: ModelConfig) -> None:
    """As `model.graphs` says, for generation and ranking alone; for models of any size, unless quantized."""
    fits = _packed_on_gpu(engine) and stands_still(engine.core, config) and config.quantization != "4bit"
    if config.graphs == "auto" and engine.sharding is None and fits:
        record_answers(engine, CudaRecorder)


def _packed_on_gpu(engine: Engine) -> bool:
    ours = engine.core.config._attn_implementation == GROUPED  # type: ignore[union-attr]
    return ours and engine.device.type == "cuda"


def stands_still(core: Any, config: ModelConfig) -> bool:
    """Whether a pass never waits for the device, which no recording can.

    8bit looks for outliers in each layer, and some rotary positions for the longest row.
    """
    rotary = getattr(core.get_decoder(), "rotary_emb", None)
    kind = getattr(rotary, "rope_type", "default")
    return config.quantization != "8bit" and "dynamic" not in kind and kind != "longrope"


def compile_layers(engine: Engine, backend: str = "inductor") -> None:
    """Fuse the small operations of every layer, at its first pass, by torch.compile. What it makes is kept on disk."""
    torch._dynamo.config.recompile_limit = FORMS
    torch._functorch.config.activation_memory_budget = KEPT
    kept = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "kernels"))
    engine.notices.append(f"the first steps compile the layers' kernels; they are kept in {kept}")
    for layer in engine.core.get_decoder().layers:  # type: ignore[operator]
        layer.compile(dynamic=True, backend=backend)
    # The first layer then is like the others, whose input has a gradient: one form less to compile.
    engine.core.get_input_embeddings().register_forward_hook(_asks_for_gradient)  # type: ignore[operator]
    engine.compiled = True


def _asks_for_gradient(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def record_passes(engine: Engine, recorder: Recorder) -> None:
    """Replay the decoder's passes from now on, instead of launching their kernels one by one."""
    model, decoder = engine.model, engine.core.get_decoder()  # type: ignore[operator]

    def parameters() -> list[nn.Parameter]:
        names = adapters.active_names(model)
        return [value for name in names for value in adapters.parameters(model, name).values()]

    def state() -> tuple[Any, ...]:
        return adapters.active_names(model), model.training, id(decoder.layers)

    engine.graphs = DecoderGraphs(decoder, recorder, state, parameters)


def record_answers(engine: Engine, recorder: Callable[[], Recorder]) -> None:
    """Generate answers by replayed steps from now on, and rank in few passes."""
    model = engine.model

    def weights() -> tuple[Any, list[Tensor]]:
        names = adapters.active_names(model)
        tensors = [part.data for name in names for part in adapters.parameters(model, name).values()]
        places = tuple((part.data_ptr(), part.shape) for part in tensors)
        return (names, places, scalings(model, names)), tensors

    engine.decoding = Decoding(engine.core, recorder, weights)
