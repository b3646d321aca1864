"""presets.yaml, the settings that `ilora tune` found, and a sweep that takes its methods' settings from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from ilora.config import problems, read_yaml, refusal
from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.section import Section
from ilora.sweeps.tuning import SPLIT, Seed, refuse_reported_orders, refuse_reported_seeds

NAME = "presets.yaml"
_HEAD = "# The best settings that `ilora tune` found; a sweep file takes them with `presets: FILE`.\n"


class TunedOn(Section):
    """What a tuning was scored on. A sweep that takes its presets reports none of it."""

    split: Literal["eval"] = SPLIT
    orders: list[list[str]] = Field(min_length=1)
    seeds: list[Seed] = Field(min_length=1)


class Presets(Section):
    """presets.yaml. methods: as in a sweep file, label: {name: ..., settings of the method}."""

    tuned_on: TunedOn
    methods: dict[str, dict[str, Any]]

    def write(self, folder: Path) -> None:
        """presets.yaml in this folder."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomic(folder / NAME, _HEAD + text)


def read_presets(path: Path) -> Presets:
    """Raises InputError for a file that is not there, or is not such a file."""
    if not path.is_file():
        raise InputError(f"presets: {path}: no such file; `ilora tune` of the sweep file makes it")
    values = read_yaml(path)
    try:
        return Presets(**values)
    except ValidationError as error:
        raise refusal(path, problems(error, values, Presets)) from None


def method_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The method of a sweep file's entry, as a mapping with `name`."""
    method = entry.get("method")
    return dict(method) if isinstance(method, Mapping) else {"name": method}


def given(entry: Mapping[str, Any]) -> set[str]:
    """The settings of the method that a sweep file's entry gives: they are not tuned."""
    found = set(method_of(entry)) - {"name"}
    training = entry.get("training")
    rate = isinstance(training, Mapping) and "learning_rate" in training
    return found | ({"learning_rate"} if rate else set())


def filled(methods: Mapping[str, Mapping[str, Any]], presets: Presets, place: Path) -> dict[str, dict[str, Any]]:
    """The entries of a sweep file with the settings found for their labels, but for those that they give themselves.

    Raises InputError for a label that was not tuned, or that is another method there.
    """
    made = {}
    for label, entry in methods.items():
        own = method_of(entry)
        if label not in presets.methods:
            known = ", ".join(presets.methods) or "none"
            raise InputError(f"methods.{label}: not in {place}, which has {known}; `ilora tune` finds its settings")
        found = presets.methods[label]
        if found.get("name") != own["name"]:
            raise InputError(f"methods.{label}: {own['name']}, but in {place} it is {found.get('name')}")
        kept = {key: value for key, value in found.items() if key not in given(entry)}
        made[label] = {**entry, "method": {**kept, **own}}
    return made


def refuse_tuned(presets: Presets, orders: Sequence[Sequence[str]], seeds: Sequence[int], place: Path) -> None:
    """Raises InputError where a sweep reports what its presets were tuned on."""
    refuse_reported_seeds(presets.tuned_on.seeds, seeds, f"seeds: with the presets of {place}")
    refuse_reported_orders(presets.tuned_on.orders, orders, f"orders: with the presets of {place}")
