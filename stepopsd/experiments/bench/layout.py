"""What reports share: figures, units and Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stepopsd.experiments.bench.timing import typical


def seconds_of(result: dict[str, Any], report: dict[str, Any]) -> float:
    """The figure that stands for a contender; graph replays, the device's own time, where there are any."""
    return typical(result.get("replay_seconds", result["seconds"]), report["device"], report.get("threads"))


def timed(case: dict[str, Any], report: dict[str, Any]) -> dict[str, float]:
    """Contender -> seconds, of those that were timed, the read included."""
    return {r["contender"]: seconds_of(r, report) for r in case["results"] if "seconds" in r}


def as_long(case: dict[str, Any], report: dict[str, Any], other: str | None, than: str) -> float | None:
    """How many times as long as ``than`` the other takes: from pairs of one round where there are any."""
    paired = next(r.get("as_long", {}) for r in case["results"] if r["contender"] == than)
    found = timed(case, report)
    return paired.get(other, found[other] / found[than]) if other in found else None


def title(case: dict[str, Any]) -> str:
    """What a case is, in words."""
    width = f", H = {case['hidden']:,}" if case.get("hidden") else ""
    masked = f", {case['masked']:.0%} masked" if case["masked"] else ""
    return f"{case['op']}, N = {case['rows']:,}, V = {case['vocab']:,}, {case['dtype']}{width}{masked}"


def table(columns: Iterable[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; the first column and words to the left, figures to the right."""
    columns, lines = list(columns), [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = [":--" if name in ("what", "op", "dtype", "ours", "best of others", "stage", "backend", "limit") else "--:"
            for name in columns]  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, rule, *lines])


def duration(seconds: float) -> str:
    """Three digits in the unit that fits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.{max(0, 2 - len(str(int(seconds * scale))) + 1)}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def size(count: int | None) -> str:
    """Bytes in MiB."""
    return "" if count is None else f"{count / 2**20:,.1f} MiB"


def times(ratio: float | None) -> str:
    """How many times as long, empty where not measured."""
    return "" if ratio is None else f"{ratio:.2f}×" if ratio < 9.95 else f"{ratio:.1f}×"


def digits(value: float | None) -> str:
    """Two digits of a small difference."""
    return "" if value is None else f"{value:.1e}"
