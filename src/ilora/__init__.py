"""ilora: continual fine-tuning of large language models that does not forget.

>>> from ilora import load_config, run
>>> result = run(load_config("configs/demo.yaml"), "runs/demo")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ilora.config import Config, load_config
from ilora.errors import IloraError, InputError
from ilora.settings import MethodConfig

if TYPE_CHECKING:
    from ilora.commands.compare import compare
    from ilora.commands.connect import connect, evaluate
    from ilora.commands.export import export
    from ilora.commands.gate import gate, read_gate
    from ilora.commands.predict import predict
    from ilora.commands.releases import forget, history, promote, rollback
    from ilora.commands.sweep import sweep
    from ilora.commands.tune import tune
    from ilora.data.examples import Batch, Example, Totals
    from ilora.data.task import Row, Task
    from ilora.methods.base import METHODS, Method
    from ilora.methods.view import RunView
    from ilora.model import adapters
    from ilora.runner import RunResult, add, resume, run

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "Batch",
    "Config",
    "Example",
    "IloraError",
    "InputError",
    "Method",
    "MethodConfig",
    "Row",
    "RunResult",
    "RunView",
    "Task",
    "Totals",
    "adapters",
    "add",
    "compare",
    "connect",
    "evaluate",
    "export",
    "forget",
    "gate",
    "history",
    "load_config",
    "predict",
    "promote",
    "read_gate",
    "resume",
    "rollback",
    "run",
    "sweep",
    "tune",
]

_LATE = {
    "run": "runner",
    "resume": "runner",
    "add": "runner",
    "RunResult": "runner",
    "compare": "commands.compare",
    "connect": "commands.connect",
    "predict": "commands.predict",
    "sweep": "commands.sweep",
    "tune": "commands.tune",
    "gate": "commands.gate",
    "read_gate": "commands.gate",
    "forget": "commands.releases",
    "history": "commands.releases",
    "promote": "commands.releases",
    "rollback": "commands.releases",
    "evaluate": "commands.connect",
    "export": "commands.export",
    "Batch": "data.examples",
    "Example": "data.examples",
    "Totals": "data.examples",
    "Row": "data.task",
    "Task": "data.task",
    "Method": "methods.base",
    "METHODS": "methods.base",
    "RunView": "methods.view",
}


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when something that needs them is asked for."""
    import importlib

    if name == "adapters":
        return importlib.import_module("ilora.model.adapters")
    if name not in _LATE:
        raise AttributeError(f"module 'ilora' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ilora.{_LATE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
