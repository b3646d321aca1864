"""Settings that are typed: `a.b=value`, under our name or a word of other tools, into nested sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from ilora.errors import InputError
from ilora.settings import DEFAULT_METHOD
from ilora.words import SAME


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set every `a.b=value` in nested settings, in place, the later one where a key is given again.

    Raises InputError for what is not such a thing, and for two names of one setting with different values.
    """
    for override, key, value in read_overrides(overrides):
        _apply(values, override, key, value)


def read_overrides(overrides: Iterable[str]) -> list[tuple[str, str, Any]]:
    """Each as it was typed, its key under our name, and its value.

    Raises InputError as `apply_overrides` does.
    """
    found: list[tuple[str, str, Any]] = []
    known: dict[str, tuple[str, Any]] = {}
    for override in overrides:
        word = override.partition("=")[0].strip()
        key, value = _read(override)
        other, before = known.setdefault(key, (word, value))
        if other != word and before != value:
            raise InputError(
                f"{other}={before} and {word}={value}: both are the setting {key}, with different values; give one of "
                "them"
            )
        found.append((override, key, value))
    return found


def _read(override: str) -> tuple[str, Any]:
    """The key of `a.b=value`, under our name for it, and the value. Raises InputError for what is not such a thing."""
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise InputError(f"override {override!r}: expected key=value, for example training.epochs=2")
    ours = _our_name(key.strip())
    if ("columns." in ours and text.startswith("{")) or text.startswith("#"):  # {title} {text} is no YAML, # no comment
        return ours, text
    try:
        value = yaml.safe_load(text)
        return ours, text if ours.endswith("marker") and not isinstance(value, str) else value  # A: is no mapping
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"override {override!r}: {text!r} is not a YAML value") from None


def _our_name(key: str) -> str:
    """A setting's name here: `columns.prompt` is `data.columns.prompt`."""
    head, dot, rest = key.partition(".")
    return SAME.get(key) or f"{SAME.get(head, head)}{dot}{rest}"


def _apply(values: dict[str, Any], override: str, key: str, value: Any) -> None:
    """Set one value. override: what was typed, for messages."""
    *parents, leaf = key.split(".")
    section = values
    if parents == ["method"]:
        values.setdefault("method", DEFAULT_METHOD)
    for number, parent in enumerate(parents):
        inner = section.get(parent)
        if isinstance(inner, list):
            _apply_to_item(inner, [*parents[number + 1 :], leaf], override, value)
            return
        if not isinstance(inner, Mapping | str | None):
            raise InputError(f"override {override!r}: '{parent}' is {inner!r}, not a section with keys of its own")
        # `method: ilora` and `method.gamma=1` together mean the mapping form.
        section[parent] = {"name": inner} if isinstance(inner, str) else dict(inner or {})
        section = section[parent]
    section[leaf] = value


def _apply_to_item(items: list[Any], keys: list[str], override: str, value: Any) -> None:
    """Set a value in the n-th section of a list: `data.tasks.0.path=my/data`."""
    place, *rest = keys
    if not place.isdecimal() or int(place) >= len(items) or not rest:
        raise InputError(
            f"override {override!r}: '{place}' is not a section of the list, which has {len(items)} of them"
        )
    item = items[int(place)]
    items[int(place)] = {"name": item} if isinstance(item, str) else dict(item)
    _apply(items[int(place)], override, ".".join(rest), value)
