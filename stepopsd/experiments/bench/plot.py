"""The roofline: bandwidth that each contender achieves against the number of rows, under the memory's limits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stepopsd.experiments.bench.contenders import COMPILED, EAGER
from stepopsd.experiments.bench.layout import timed
from stepopsd.experiments.bench.limits import READ
from stepopsd.experiments.bench.rows import OPS
from stepopsd.experiments.report import theme

QUIET = (*EAGER, COMPILED)


def draw_roofline(report: dict[str, Any], path: Path) -> Path | None:
    """Bandwidth over rows for the op, vocabulary and dtype measured at most sizes; None below two sizes.

    Masked cases and variants with entropies are left out.
    """
    cases = [case for case in report["cases"] if "results" in case and not case["masked"] and case["op"] in OPS]
    shapes = Counter((case["op"], case["vocab"], case["dtype"]) for case in cases)
    if not shapes or shapes.most_common(1)[0][1] < 2:
        return None
    op, vocab, dtype = shapes.most_common(1)[0][0]
    chosen = [case for case in cases if (case["op"], case["vocab"], case["dtype"]) == (op, vocab, dtype)]
    sheet, (axis,) = theme.figure(1, 1, row_height=4.6)
    with theme.applied():
        handles = _lines(axis, sorted(chosen, key=lambda case: case["rows"]), report)
        handles += _ceilings(axis, report["limits"])
        axis.set_xscale("log", base=2)
        sizes = sorted({case["rows"] for case in chosen})
        axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel("rows N")
        axis.set_ylabel("GB/s of logits")
        threads = f", threads: {report['threads']}" if report.get("threads") else ""
        axis.set_title(theme.plain(f"{op}, V = {vocab:,}, {dtype}: {report['chip']}{threads}, {report['date']}"))
        theme.legend_below(sheet, handles)
    return theme.save(sheet, path)


def _lines(axis: Axes, cases: list[dict[str, Any]], report: dict[str, Any]) -> list[Line2D]:
    """One line per contender; ours in strong colours, eager PyTorch and torch.compile in quiet ones."""
    names = dict.fromkeys(r["contender"] for case in cases for r in case["results"] if "seconds" in r)
    shown = [name for name in names if not name.endswith("entropies")]
    handles, strong = [], 0
    for name in shown:
        points = [(c["rows"], c["bytes"] / timed(c, report)[name] / 1e9) for c in cases if name in timed(c, report)]
        style: dict[str, Any] = {"color": theme.MUTED, "linestyle": "--", "marker": ""}
        if name in QUIET:
            style = {"color": theme.COLOURS[0], "marker": theme.marker(QUIET.index(name)), "linewidth": 1.2}
        elif name != READ:
            strong += 1
            style = {"color": theme.colour(strong), "marker": theme.marker(strong)}
        (line,) = axis.plot(*zip(*points, strict=True), markersize=5, label=theme.plain(name), **style)
        handles.append(line)
    return handles


def _ceilings(axis: Axes, limits: dict[str, float]) -> list[Line2D]:
    return [
        axis.axhline(limits[kind] / 1e9, color=theme.INK, linewidth=1.1, linestyle=style, label=f"large {kind}")
        for kind, style in (("read", "-"), ("copy", ":"))
    ]
