"""What is tried: every method's scales give settings that it takes, spread evenly, and none twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilora.config import Config
from ilora.methods import METHODS
from ilora.settings import Around, Choices, Linear, Log, Scale
from ilora.sweeps.trials import spread
from tests.helpers import MakeConfig

DOCS = Path(__file__).parents[2] / "docs"


def with_method(make_config: MakeConfig, name: str, **settings: object) -> Config:
    return make_config("training.learning_rate=0.01", method={"name": name, **settings})


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_takes_all_that_is_tried(make_config: MakeConfig, name: str) -> None:
    config = with_method(make_config, name)
    trials = spread(config, set(), 16)
    assert len(trials) == (16 if METHODS[name].trains else 1)
    for settings in trials:
        own = {key.removeprefix("method."): value for key, value in settings.items()}
        taken = METHODS[name].Config.model_validate({"name": name, **own})
        assert {key: getattr(taken, key) for key in own} == own
        assert set(own) == (set(METHODS[name].Config.search) if METHODS[name].trains else set())
    assert len({str(settings) for settings in trials}) == len(trials)
    assert spread(config, set(), 4) == trials[: min(4, len(trials))]  # more trials go on where fewer end


def test_the_first_trial_is_the_methods_own_and_the_others_lie_around_it(make_config: MakeConfig) -> None:
    trials = spread(with_method(make_config, "sequential"), set(), 8)
    rates = [trial["method.learning_rate"] for trial in trials]
    assert rates[0] == 0.01
    assert sorted(rates[1:]) == [0.00133, 0.00178, 0.00316, 0.00562, 0.0178, 0.0316, 0.0562]  # 0.01 stands once


def test_what_the_file_gives_is_not_searched(make_config: MakeConfig) -> None:
    ilora = with_method(make_config, "ilora", ema_decay=0.9)
    assert set(spread(ilora, {"ema_decay"}, 3)[1]) == {"method.learning_rate", "method.strength"}
    assert spread(ilora, {"ema_decay", "learning_rate", "strength"}, 3) == [{}]
    inflora = with_method(make_config, "inflora")
    tried = [trial["method.threshold"] for trial in spread(inflora, {"learning_rate"}, 16)]
    assert sorted(tried) == [0.8, 0.9, 0.95, 0.98, 0.995]  # all that there are


def test_scales() -> None:
    assert [Log(1, 100).at(share, None) for share in (0, 0.5, 0.75)] == [1, 10, 31.6]
    assert [Around(10).at(share, 0.03) for share in (0, 0.5)] == [0.003, 0.03]
    assert [Linear(0, 1).at(share, None) for share in (0, 1 / 3)] == [0, 0.333]
    assert [Choices(("a", "b")).at(share, None) for share in (0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]


def range_of(scale: Scale) -> str:
    if isinstance(scale, Choices):
        return ", ".join(map(str, scale.values))
    assert isinstance(scale, Log | Linear)
    return f"{scale.low:g} to {scale.high:g}, {type(scale).__name__.lower()}"


def test_the_docs_have_every_scale() -> None:
    text = (
        (DOCS / "methods.md")
        .read_text(encoding="utf-8")
        .partition("## What `ilora tune` searches")[2]
        .partition("\n## ")[0]
    )
    told = {tuple(cell.strip("` ") for cell in line.split("|")[1:4]) for line in text.splitlines() if "| `" in line}
    assert told == {
        (name, key, range_of(scale))
        for name, method in ((name, METHODS[name]) for name in METHODS)
        for key, scale in method.Config.search.items()
        if key != "learning_rate"
    }
    assert {method.Config.search["learning_rate"] for method in map(METHODS.__getitem__, METHODS)} == {Around(10)}
