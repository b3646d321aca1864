"""Sequential fine-tuning: one adapter, one task after the other, nothing done against forgetting (the lower bound)."""

from __future__ import annotations

from ilora.methods.base import METHODS, Method


@METHODS("sequential")
class Sequential(Method):
    """Plain fine-tuning, as `Method` itself has it."""
