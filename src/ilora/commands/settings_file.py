"""A configuration file for people to edit: every setting on a line, with the reason for its value behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ilora.present.numbers import plain

_COLUMN = 44  # where comments begin, if the setting leaves room


@dataclass(frozen=True)
class Setting:
    """A dotted key with its value and the reason for it; `off`: written as a comment, for people to turn on."""

    key: str
    value: Any
    why: str = ""
    off: bool = False


def settings_file(head: Iterable[str], settings: Sequence[Setting], given: Mapping[str, Any]) -> str:
    """YAML with comments. head: lines of comment above all.

    given: nested settings that were asked for by key; those without a line of their own stand at their section's end.
    """
    asked = dict(_flat(given))
    every = [_as_asked(setting, asked) for setting in settings]
    lined = {setting.key for setting in settings}
    every += [Setting(key, value, "as given") for key, value in asked.items() if key not in lined]
    lines = [f"# {plain(line)}".rstrip() for line in head]
    lines += [_line(one) for one in every if "." not in one.key]
    for section in dict.fromkeys(one.key.partition(".")[0] for one in every if "." in one.key):
        inside = [one for one in every if one.key.startswith(f"{section}.")]
        empty = all(one.off for one in inside)
        lines += ["", f"{'# ' if empty else ''}{section}:", *map(_line, inside)]
    return "\n".join(lines) + "\n"


def _as_asked(setting: Setting, asked: Mapping[str, Any]) -> Setting:
    if setting.key not in asked:
        return setting
    value = asked[setting.key]
    return Setting(setting.key, value, setting.why if value == setting.value and not setting.off else "as given")


def _line(setting: Setting) -> str:
    _, dot, name = setting.key.rpartition(".")
    text = f"{'# ' if setting.off else ''}{'  ' if dot else ''}{name}: {_yaml(setting.value)}"
    return f"{text:<{_COLUMN}} # {plain(setting.why)}" if setting.why else text


def _yaml(value: Any) -> str:
    """A value in one line, as YAML reads it back: single words as they are, all other texts in quotes."""
    word = isinstance(value, str) and value.isascii() and value.replace("-", "").isalnum() and value[0].isalpha()
    if word and yaml.safe_load(value) == value:
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """Settings by dotted key, a section deep: what lies deeper is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not above:
            yield from _flat(value, f"{key}.")
        else:
            yield f"{above}{key}", value
