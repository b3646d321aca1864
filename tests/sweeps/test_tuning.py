"""The orders and seeds to tune on, which are never those that are reported, and presets made from them."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from ilora.errors import InputError
from ilora.sweeps.presets import Presets, filled, read_presets, refuse_tuned
from ilora.sweeps.tuning import TuneConfig, orders_to_tune, seeds_to_tune

NAMES = ["one", "two", "three"]


def test_seeds_are_none_that_is_reported() -> None:
    assert seeds_to_tune(TuneConfig(seeds=3), [1, 1001]) == [1000, 1002, 1003]
    assert seeds_to_tune(TuneConfig(seeds=[7, 9]), [1, 2]) == [7, 9]
    with pytest.raises(InputError, match=r"tune\.seeds: 2 is tuned on and reported"):
        seeds_to_tune(TuneConfig(seeds=[7, 2]), [1, 2])


def test_orders_are_none_that_is_reported_and_always_the_same() -> None:
    reported = [NAMES, ["two", "one", "three"]]
    free = [list(order) for order in permutations(NAMES) if list(order) not in reported]
    found = orders_to_tune(TuneConfig(orders=4), NAMES, reported)
    assert sorted(found) == sorted(free)
    assert orders_to_tune(TuneConfig(orders=2), NAMES, reported) == found[:2]
    with pytest.raises(InputError, match="5 asked for, but of the 6 orders of 3 tasks only 4 are not reported"):
        orders_to_tune(TuneConfig(orders=5), NAMES, reported)


def test_a_short_stream_is_not_the_beginning_of_a_reported_one() -> None:
    found = orders_to_tune(TuneConfig(orders=4, tasks=2), NAMES, [NAMES, ["two", "one", "three"]])
    assert sorted(found) == [["one", "three"], ["three", "one"], ["three", "two"], ["two", "three"]]
    with pytest.raises(InputError, match=r"tune\.orders: one, two is tuned on and one, two, three is reported"):
        orders_to_tune(TuneConfig(orders=[["one", "two"]]), NAMES, [NAMES])


@pytest.mark.parametrize("order", [["one"], ["one", "four"], ["one", "one"]])
def test_an_order_of_other_tasks_is_refused(order: list[str]) -> None:
    with pytest.raises(InputError, match="is not an order of at least two of the tasks one, two, three"):
        orders_to_tune(TuneConfig(orders=[order]), NAMES, [NAMES])


PRESETS = Presets(
    tuned_on={"orders": [["two", "one", "three"]], "seeds": [1000]},
    methods={"er": {"name": "er", "learning_rate": 0.01}, "lwf": {"name": "lwf", "learning_rate": 0.1, "strength": 3}},
)


def test_a_sweep_takes_what_it_does_not_say_itself(tmp_path: Path) -> None:
    PRESETS.write(tmp_path)
    again = read_presets(tmp_path / "presets.yaml")
    assert again == PRESETS
    entries = {
        "er": {"method": {"name": "er", "memory_size": 3}},
        "lwf": {"method": {"name": "lwf", "strength": 1}, "training": {"learning_rate": 2}},
    }
    assert filled(entries, again, tmp_path) == {
        "er": {"method": {"name": "er", "learning_rate": 0.01, "memory_size": 3}},
        "lwf": {"method": {"name": "lwf", "strength": 1}, "training": {"learning_rate": 2}},
    }


def test_presets_of_other_methods_orders_and_seeds_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "presets.yaml"
    with pytest.raises(InputError, match=r"ewc: not in .*presets\.yaml, which has er, lwf"):
        filled({"ewc": {"method": "ewc"}}, PRESETS, place)
    with pytest.raises(InputError, match=r"er: lwf, but in .*presets\.yaml it is er"):
        filled({"er": {"method": "lwf"}}, PRESETS, place)
    refuse_tuned(PRESETS, [NAMES], [1], place)
    with pytest.raises(InputError, match=r"seeds: .*1000 is tuned on and reported"):
        refuse_tuned(PRESETS, [NAMES], [1, 1000], place)
    with pytest.raises(InputError, match=r"orders: .*two, one, three is tuned on and two, one, three is reported"):
        refuse_tuned(PRESETS, [NAMES, ["two", "one", "three"]], [1], place)
    with pytest.raises(InputError, match=r"presets\.yaml: no such file; `ilora tune`"):
        read_presets(place)
    place.write_text("methods: {}\n", encoding="utf-8")
    with pytest.raises(InputError, match="tuned_on: Field required"):
        read_presets(place)
