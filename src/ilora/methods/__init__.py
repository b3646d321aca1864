"""The methods: each one short file. A new one: its file, one import here, one row of docs/methods.md."""

from __future__ import annotations

import importlib

from ilora.errors import InputError
from ilora.methods import (
    agem,
    derpp,
    er,
    ewc,
    gem,
    ilora,
    ilora_plus,
    individual,
    l2p,
    lwf,
    olora,
    progressive_prompts,
    router,
    sequential,
    slao,
    wise_ft,
    zero_shot,
)
from ilora.methods.base import METHODS, Method

__all__ = [
    "METHODS",
    "Method",
    "agem",
    "derpp",
    "er",
    "ewc",
    "gem",
    "ilora",
    "ilora_plus",
    "individual",
    "l2p",
    "lwf",
    "method_class",
    "olora",
    "progressive_prompts",
    "router",
    "sequential",
    "slao",
    "wise_ft",
    "zero_shot",
]


def method_class(name: str) -> type[Method]:
    """A registered method, or `module:Class` for one outside the package."""
    if ":" not in name:
        return METHODS[name]
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a module of the user's may fail in any way
        raise InputError(f"method '{name}': {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise InputError(f"method '{name}': not a subclass of ilora.methods.Method")
    return found
