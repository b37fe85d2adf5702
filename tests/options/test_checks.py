"""Fields say what they may hold, and are held to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from stepopsd.options.checks import Count, PositiveFloat, PositiveShare, check_fields, within


@dataclass(frozen=True)
class Options:
    kind: Literal["a", "b"] = "a"
    free: str = ""
    draws: Annotated[int, within(1, 8)] = 1
    count: Count = 0
    scale: PositiveFloat = 1.0
    share: PositiveShare = 1.0
    maybe: Literal["c"] | None = None
    bound: Annotated[int, within(2, 4)] | None = None


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("kind", "c", "must be one of a, b, got 'c'"),
        ("draws", 9, "must lie in [1, 8], got 9"),
        ("count", -1, "must lie in [0, 1073741824], got -1"),
        ("scale", 0.0, "must be greater than 0, got 0.0"),
        ("scale", float("nan"), "must be greater than 0, got nan"),
        ("share", 0.0, "must lie in (0.0, 1.0], got 0.0"),
        ("maybe", "d", "must be one of c, got 'd'"),
        ("bound", 5, "must lie in [2, 4], got 5"),
    ],
)
@pytest.mark.parametrize("section", ["probe", ""])
def test_a_value_outside_its_annotation_is_named_with_its_section(section, field, value, allowed):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_fields(section, Options(**{field: value}))
    assert str(error.value) == f"{section}{'.' * bool(section)}{field} {allowed}"


@pytest.mark.parametrize(
    "options", [Options(), Options(kind="b", maybe="c", bound=2, free="anything"), Options(draws=8, scale=1e-9)]
)
def test_values_at_the_bounds_and_none_pass(options):
    check_fields("probe", options)
