"""The sections of a run's configuration, and the values that are allowed in them; config.py puts them together."""

from ilora.settings.adapter import AdapterConfig
from ilora.settings.data import Columns, DataConfig, LimitConfig, SplitConfig, TaskConfig
from ilora.settings.fields import LEAST_LENGTH, Fraction, Name, Place, PositiveInt, method_label
from ilora.settings.method import DEFAULT_METHOD, MethodConfig
from ilora.settings.model import ModelConfig
from ilora.settings.search import Around, Choices, Linear, Log, Scale
from ilora.settings.training import EvaluationConfig, TrainingConfig

__all__ = [
    "DEFAULT_METHOD",
    "LEAST_LENGTH",
    "AdapterConfig",
    "Around",
    "Choices",
    "Columns",
    "DataConfig",
    "EvaluationConfig",
    "Fraction",
    "LimitConfig",
    "Linear",
    "Log",
    "MethodConfig",
    "ModelConfig",
    "Name",
    "Place",
    "PositiveInt",
    "Scale",
    "SplitConfig",
    "TaskConfig",
    "TrainingConfig",
    "method_label",
]
