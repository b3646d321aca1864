"""Looking into a forward pass, for methods that need more than its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ilora.errors import InputError
from ilora.kernels.attention import PLAIN, WATCHED, watched_attention
from ilora.model import adapters
from ilora.model.engine import Engine

Look = Callable[[str, Tensor, Tensor, Tensor], None]


@contextmanager
def observed(engine: Engine, look: Look) -> Iterator[None]:
    """Inside the block, call look(name, x, y, counts) behind every layer with an adapter, in each pass.

    name: as the adapter's parameters begin. x: (tokens, in), what the layer reads. y: (tokens, out), what it makes.
    counts: (tokens,), at how many places of the batch a token stands: 0 for padding, above 1 where rows share it.
    Passes are then computed as written, neither recorded nor compiled. Not for generation, nor for routes.
    """
    counts: list[Tensor] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def seen(_: nn.Module, inputs: Any, output: Tensor) -> None:
            look(name, inputs[0].detach().flatten(0, -2), output.detach().flatten(0, -2), counts[-1])

        return seen

    handles = [layer.register_forward_hook(hook(name)) for name, layer in adapters.adapted(engine.model)]
    engine.told = lambda found: counts.append(found.to(engine.device))
    try:
        with engine.graphs.paused() if engine.graphs else nullcontext(), engine.as_written():
            yield
    finally:
        engine.told = None
        for handle in handles:
            handle.remove()


@contextmanager
def attention_observed(engine: Engine) -> Iterator[list[Tensor]]:
    """Inside the block, passes leave their attention weights here: (rows, heads, length, length), one tensor a layer.

    In float32, with their gradient; 0 for later tokens and for padding, arbitrary where padding itself asks. Rows are
    not packed then, and nothing is computed again in the backward pass: such a pass takes more time and memory.
    """
    maps: list[Tensor] = []
    config: Any = engine.core.config
    implementation = config._attn_implementation
    checkpointed = [module for module in engine.core.modules() if getattr(module, "gradient_checkpointing", False)]
    ALL_ATTENTION_FUNCTIONS[WATCHED] = watched_attention(maps)
    try:
        config._attn_implementation = WATCHED
        for module in checkpointed:
            vars(module)["gradient_checkpointing"] = False
        with engine.as_written():
            yield maps
    finally:
        config._attn_implementation = implementation
        for module in checkpointed:
            vars(module)["gradient_checkpointing"] = True
        del ALL_ATTENTION_FUNCTIONS[WATCHED]


def refuse_unseen_attention(engine: Engine, *, method: str) -> None:
    """Raises InputError for an architecture whose attention is not known to `attention_observed`."""
    kind = engine.core.config.model_type  # type: ignore[union-attr]
    if kind not in PLAIN:
        raise InputError(
            f"method '{method}': it reads attention weights, and not those of models of type {kind}; "
            f"it knows {', '.join(sorted(PLAIN))}"
        )
