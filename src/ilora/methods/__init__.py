"""The methods: each one short file. A new one: its file, one import here, one row of docs/methods.md."""

from __future__ import annotations

import importlib
from difflib import get_close_matches

from ilora.errors import InputError
from ilora.methods import (
    agem,
    derpp,
    er,
    ewc,
    forever,
    gem,
    ilora,
    ilora_plus,
    individual,
    inflora,
    l2p,
    lwf,
    migu,
    olora,
    osft,
    progressive_prompts,
    router,
    sd_lora,
    sdft,
    seekr,
    sequential,
    slao,
    sure,
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
    "forever",
    "gem",
    "ilora",
    "ilora_plus",
    "individual",
    "inflora",
    "l2p",
    "lwf",
    "method_class",
    "migu",
    "olora",
    "osft",
    "progressive_prompts",
    "router",
    "sd_lora",
    "sdft",
    "seekr",
    "sequential",
    "slao",
    "sure",
    "wise_ft",
    "zero_shot",
]


# What the loop calls or reads; a misspelled one would be passed over without a word.
HOOKS = (
    "begin_task",
    "extend_batch",
    "loss",
    "penalty",
    "before_step",
    "after_step",
    "end_task",
    "inference",
    "in_training",
    "trainable",
    "variants",
    "state_dict",
    "load_state_dict",
)


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
    for written in {key for part in found.__mro__ if not part.__module__.startswith("ilora.") for key in vars(part)}:
        near = get_close_matches(written, HOOKS, n=1, cutoff=0.85)
        if near and written not in dir(Method):
            raise InputError(f"method '{name}': nothing calls `{written}`; is `{near[0]}` meant?")
    return found
