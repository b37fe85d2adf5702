"""Range checks that name the key, the value and what is allowed, as functions and as annotations of fields."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Annotated, Any, Literal, get_args, get_origin


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


def within(low: float, high: float, *, low_open: bool = False) -> Callable[[str, float], None]:
    """``closed`` as a mark for ``Annotated``."""
    return partial(closed, low=low, high=high, low_open=low_open)


Count = Annotated[int, within(0, 1 << 30)]
PositiveInt = Annotated[int, positive]
PositiveFloat = Annotated[float, positive]
Share = Annotated[float, within(0.0, 1.0)]
PositiveShare = Annotated[float, within(0.0, 1.0, low_open=True)]
NonNegativeFloat = Annotated[float, within(0.0, 1e6)]


def check_fields(section: str, options: object) -> None:
    """Hold the fields of a dataclass to their annotations.

    Args:
        section: Full key of the section, for messages; empty at the top.
        options: ``Literal`` fields must hold one of its values, ``Annotated`` ones pass the checks that they are marked
            with, and a field that may be None passes with None. Other fields are not looked at.

    Raises:
        ValueError: A value is not allowed; the message has its full key.

    Example:
        >>> @dataclass
        ... class Options:
        ...     draws: Annotated[int, within(1, 8)] = 9
        >>> check_fields("probe", Options())
        Traceback (most recent call last):
        ValueError: probe.draws must lie in [1, 8], got 9
    """
    cls: Any = type(options)
    for name, kind in _kinds(cls).items():
        _check(f"{section}.{name}" if section else name, getattr(options, name), kind)


@cache
def _kinds(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _check(name: str, value: Any, kind: Any) -> None:
    origin = get_origin(kind)
    if origin in (types.UnionType, typing.Union) and value is not None:
        for part in get_args(kind):
            _check(name, value, part)
    elif origin is Literal:
        choice(name, value, get_args(kind))
    elif origin is Annotated:
        for check in kind.__metadata__:
            check(name, value)
