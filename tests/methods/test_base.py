"""The settings of a method: typed by `Method[...]`, or nested, or inherited."""

from __future__ import annotations

from typing import Generic

from pydantic import Field
from typing_extensions import TypeVar

from ilora import Method, MethodConfig, load_config
from ilora.methods.er import ExperienceReplay, ReplayConfig
from ilora.methods.ilora import ILoRA, ILoRAConfig


class OwnConfig(ReplayConfig):
    strength: float = Field(1.0, ge=0)


class Typed(ExperienceReplay[OwnConfig]):
    """Its settings are named in the base."""


class Nested(Method):
    """Its settings are a class inside."""

    class Config(MethodConfig):
        memory_size: int = 7


class Inherited(Typed):
    """Its settings are its parent's."""


T = TypeVar("T", bound=OwnConfig, default=OwnConfig)


class Open(ExperienceReplay[T], Generic[T]):
    """Its settings may be extended again."""


def test_where_the_settings_come_from() -> None:
    assert Method.Config is MethodConfig
    assert Typed.Config is OwnConfig
    assert Inherited.Config is OwnConfig
    assert Open.Config is OwnConfig
    assert Nested.Config(name="x").memory_capacity == 7
    assert ExperienceReplay.Config is ReplayConfig
    assert ILoRA.Config is ILoRAConfig
    assert Method.Config(name="x").memory_capacity == 0


def test_a_configuration_takes_them() -> None:
    values = {"data": {"benchmark": "mini8"}, "method": {"name": f"{__name__}:Typed", "strength": 3}}
    found = load_config(values).method
    assert isinstance(found, OwnConfig)
    assert (found.strength, found.memory_capacity) == (3, 500)
