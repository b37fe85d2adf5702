"""Range checks that name the key, the value and what is allowed; shared by the configuration classes."""

from __future__ import annotations

from collections.abc import Sequence


def choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` > 0."""
    if not value > 0:
        raise ValueError(f"{name} must be greater than 0, got {value}")


def closed(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    """Raise ValueError unless ``value`` lies in [low, high], or (low, high] with ``low_open``."""
    inside = low < value <= high if low_open else low <= value <= high
    if not inside:
        bracket = "(" if low_open else "["
        raise ValueError(f"{name} must lie in {bracket}{low}, {high}], got {value}")
