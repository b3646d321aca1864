"""Zero-shot: the base model as it is, never trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ilora.methods.base import METHODS, Method
from ilora.model import adapters


@METHODS("zero_shot")
class ZeroShot(Method):
    """No step is taken; the saved adapter is an untouched one, whose B is zero."""

    title = "zero-shot"
    trains = False
    fixed_answers = True

    def stored(self) -> dict[str, int]:
        """Nothing."""
        return {}

    @contextmanager
    def inference(self, task: str, variant: str) -> Iterator[None]:
        """The base model."""
        del task, variant
        with adapters.active(self.engine.model, None):
            yield
