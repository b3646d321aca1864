"""Where `ilora tune` looks for a setting's best value: each method's settings name their own scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Scale(Protocol):
    """The values that one setting may take."""

    def at(self, share: float, given: Any) -> Any:
        """The value at a share (0..1, without 1) of the scale. given: the setting's value before tuning."""


@dataclass(frozen=True)
class Log:
    """From `low` to `high`, evenly in the logarithm."""

    low: float
    high: float

    def at(self, share: float, given: Any) -> float:
        """As `Scale.at`."""
        del given
        return rounded(self.low * (self.high / self.low) ** share)


@dataclass(frozen=True)
class Around:
    """From the given value ÷ `factor` to the given value · `factor`, evenly in the logarithm."""

    factor: float

    def at(self, share: float, given: Any) -> float:
        """As `Scale.at`."""
        return Log(given / self.factor, given * self.factor).at(share, given)


@dataclass(frozen=True)
class Linear:
    """From `low` to `high`, evenly."""

    low: float
    high: float

    def at(self, share: float, given: Any) -> float:
        """As `Scale.at`."""
        del given
        return rounded(self.low + (self.high - self.low) * share)


@dataclass(frozen=True)
class Choices:
    """These values, each as often as the others."""

    values: tuple[Any, ...]

    def at(self, share: float, given: Any) -> Any:
        """As `Scale.at`."""
        del given
        return self.values[int(share * len(self.values))]


def rounded(value: float) -> float:
    """To three digits: what is tried is what a person would write."""
    return float(f"{value:.3g}")
