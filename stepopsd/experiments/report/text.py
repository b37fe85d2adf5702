"""Numbers and names as people read them."""

from __future__ import annotations

import math
from html import escape

from stepopsd.experiments.statistics import Interval

ABSENT = "–"
# ALFWorld's own task names, shortened the way its result tables do.
KINDS = {
    "pick_and_place_simple": "Pick",
    "look_at_obj_in_light": "Look",
    "pick_clean_then_place_in_recep": "Clean",
    "pick_heat_then_place_in_recep": "Heat",
    "pick_cool_then_place_in_recep": "Cool",
    "pick_two_obj_and_place": "Pick two",
}


def kind_name(kind: str) -> str:
    """Short name of an ALFWorld task type; any other type as it is."""
    return KINDS.get(kind, kind)


def kind_order(kind: str) -> tuple[int, str]:
    """Sort key: ALFWorld's types in the order of its result tables, others behind them by name."""
    return (list(KINDS).index(kind) if kind in KINDS else len(KINDS), kind)


def percent(value: float) -> str:
    return ABSENT if math.isnan(value) else f"{100 * value:.1f} %"


def rate(interval: Interval) -> str:
    """A success rate with its limits."""
    if math.isnan(interval.estimate):
        return ABSENT
    return f"{percent(interval.estimate)} <small>{100 * interval.low:.0f} to {100 * interval.high:.0f}</small>"


def points(interval: Interval) -> str:
    """A difference of rates in percentage points with its limits."""
    if math.isnan(interval.estimate):
        return ABSENT
    return (
        f"{signed(100 * interval.estimate, 1)} "
        f"<small>{signed(100 * interval.low, 1)} to {signed(100 * interval.high, 1)}</small>"
    )


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign and a real minus; zero has no sign."""
    if math.isnan(value):
        return ABSENT
    plain = f"{abs(value):.{digits}f}"
    return plain if not float(plain) else f"{'+' if value > 0 else '−'}{plain}"


def seconds(value: float) -> str:
    if math.isnan(value):
        return ABSENT
    if value < 120:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def amount(value: float) -> str:
    """A count with a thousands unit."""
    if math.isnan(value):
        return ABSENT
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f} {unit}"
    return f"{value:,.0f}"


def table(
    head: list[str], rows: list[list[str]], *, numeric_from: int = 1, quoted_from: int | None = None,
    tight: bool = False,
) -> str:  # fmt: skip
    """An HTML table.

    Args:
        head, rows: HTML already.
        numeric_from: Columns from here on align right.
        quoted_from: Rows from here on are others' figures and look it; None has none.
        tight: For many columns.
    """
    style = [' class="n"' if i >= numeric_from else "" for i in range(len(head))]
    header = "".join(f"<th{s}>{cell}</th>" for s, cell in zip(style, head, strict=True))
    body = "".join(
        ('<tr class="quoted">' if quoted_from is not None and i >= quoted_from else "<tr>")
        + "".join(f"<td{s}>{cell}</td>" for s, cell in zip(style, row, strict=True)) + "</tr>"
        for i, row in enumerate(rows)
    )
    around = "scroll tight" if tight else "scroll"
    return f'<div class="{around}"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def html(value: object) -> str:
    """Escaped text."""
    return escape(str(value), quote=True)
