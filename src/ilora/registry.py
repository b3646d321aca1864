"""Names that a user types, mapped to the objects that implement them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from ilora.errors import InputError


def did_you_mean(name: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known name, or an empty string."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


T = TypeVar("T")


class Registry(Generic[T]):
    """A decorator that files objects under a name; a name is taken once."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def __call__(self, name: str) -> Callable[[T], T]:
        def register(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._items[name] = item
            return item

        return register

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            known = ", ".join(self)
            raise InputError(f"unknown {self.kind} '{name}'{did_you_mean(name, list(self))}; known: {known}")
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __contains__(self, name: object) -> bool:
        return name in self._items
