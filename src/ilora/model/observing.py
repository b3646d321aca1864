"""Looking into a forward pass, for methods that need more than its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

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
