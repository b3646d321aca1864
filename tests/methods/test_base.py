"""The settings of a method: typed by `Method[...]`, or nested, or inherited."""

from __future__ import annotations

from pathlib import Path
from typing import Generic

import pytest
from pydantic import Field
from typing_extensions import TypeVar

from ilora import InputError, Method, MethodConfig, load_config
from ilora.methods import method_class
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


def test_a_misspelled_hook_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "class {}(Method):\n    def {}(self): return None\n    def helper(self): ...\n"
    text = "from ilora import Method\n" + source.format("Wrong", "penalti") + source.format("Right", "penalty")
    (tmp_path / "hooks_of_mine.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="nothing calls `penalti`; is `penalty` meant"):
        method_class("hooks_of_mine:Wrong")
    assert method_class("hooks_of_mine:Right").__name__ == "Right"
