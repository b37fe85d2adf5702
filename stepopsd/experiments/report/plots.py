"""Figures of what was won: success over updates, per task type, and the paired difference between methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from stepopsd.experiments.report import theme
from stepopsd.experiments.report.load import Run
from stepopsd.experiments.report.summary import (
    Comparison,
    Method,
    evaluated_updates,
    kind_rates,
    outcomes,
    panels,
    success_curve,
)
from stepopsd.experiments.report.text import kind_name, kind_order
from stepopsd.experiments.statistics import Interval


def draw_success(methods: Method, path: Path) -> Path | None:
    """Success with a 95 % band per method, one chart per panel; None when nothing was evaluated."""
    names = panels(methods)
    if not names:
        return None
    sheet, axes = theme.figure(1, len(names), row_height=3.7)
    lines = []
    with theme.applied():
        for axis, panel in zip(axes, names, strict=True):
            ends = [_success_line(axis, i, runs, panel) for i, runs in enumerate(methods.values())]
            lines.append(ends)
            axis.set_title(theme.plain(f"{panel.capitalize()} games{_panel_size(methods, panel)}"))
            axis.set_ylabel("success" if axis is axes[0] else "")
            theme.percent_axis(axis)
            theme.update_axis(axis)
        _share_heights(axes)
        for axis, ends in zip(axes, lines, strict=True):
            _label_ends(axis, ends)
        handles = [theme.method_handle(i, _with_seeds(*item)) for i, item in enumerate(methods.items())]
        theme.legend_below(sheet, [*handles, Patch(color=theme.MUTED, alpha=0.2, label="95 % interval")])
    return theme.save(sheet, path)


def draw_kinds(methods: Method, path: Path) -> Path | None:
    """Success per task type at the first and last evaluation, with intervals; None without evaluations."""
    names = panels(methods)
    if not names:
        return None
    kinds = sorted({e["kind"] for runs in methods.values() for run in runs for e in run.episodes}, key=kind_order)
    sheet, axes = theme.figure(1, len(names), row_height=max(2.2, 0.2 * len(kinds) * (len(methods) + 0.8)))
    with theme.applied():
        for axis, panel in zip(axes, names, strict=True):
            for index, runs in enumerate(methods.values()):
                _kind_rows(axis, index, len(methods), runs, panel, kinds)
            axis.set_title(theme.plain(f"{panel.capitalize()} games"))
            axis.set_yticks(range(len(kinds)), [theme.plain(kind_name(kind)) for kind in kinds])
            axis.set_ylim(len(kinds) - 0.45, -0.55)
            axis.set_xlim(-0.02, 1.02)
            axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            axis.set_xlabel("success: ring first, filled last")
            axis.tick_params(axis="y", length=0, labelcolor=theme.INK)
        theme.legend_below(sheet, [theme.method_handle(i, label) for i, label in enumerate(methods)])
    return theme.save(sheet, path)


def draw_differences(comparisons: Sequence[Comparison], labels: Sequence[str], path: Path) -> Path | None:
    """Paired difference to the baseline over updates with its bootstrap interval, one chart per panel."""
    names = list(dict.fromkeys(c.panel for c in comparisons))
    if not names:
        return None
    candidates = list(dict.fromkeys(c.candidate for c in comparisons))
    sheet, axes = theme.figure(1, len(names), row_height=3.0)
    with theme.applied():
        for axis, panel in zip(axes, names, strict=True):
            axis.axhline(0.0, color=theme.INK, linewidth=1.0)
            for order, candidate in enumerate(candidates):
                points = [c for c in comparisons if c.panel == panel and c.candidate == candidate]
                shift = (order - (len(candidates) - 1) / 2) * 0.12
                _difference_points(axis, points, list(labels).index(candidate), shift)
            axis.set_title(theme.plain(f"{panel.capitalize()} games"))
            axis.set_ylabel(theme.plain(f"success minus {comparisons[0].baseline} (points)") if axis is axes[0] else "")
            theme.update_axis(axis)
        limit = max(10.0, *(abs(edge) for axis in axes for edge in axis.get_ylim()))
        for axis in axes:
            axis.set_ylim(-limit, limit)
        shown = [theme.method_handle(i, label) for i, label in enumerate(labels) if label in candidates]
        theme.legend_below(sheet, shown)
    return theme.save(sheet, path)


def _success_line(axis: Axes, index: int, runs: list[Run], panel: str) -> tuple[float, float, str] | None:
    """Draw one method; returns where its line ends and in which colour."""
    updates, intervals = success_curve(runs, panel)
    if not updates:
        return None
    colour = theme.colour(index)
    rates = [i.estimate for i in intervals]
    axis.fill_between(
        updates, [i.low for i in intervals], [i.high for i in intervals], color=colour, alpha=0.15, linewidth=0
    )
    if len(runs) > 1:
        for run in runs:
            means = [np.mean([won for flags in outcomes(run, panel, u).values() for won in flags]) for u in updates]
            axis.plot(updates, means, color=colour, linewidth=0.8, alpha=0.45)
    mark = theme.marker(index)
    axis.plot(updates, rates, color=colour, marker=mark, markersize=5, markeredgecolor="white", clip_on=False)
    return float(updates[-1]), rates[-1], colour


def _label_ends(axis: Axes, ends: Sequence[tuple[float, float, str] | None]) -> None:
    """Write each line's last value beside it, pushed apart where two would overlap."""
    gap = 0.062 * axis.get_ylim()[1]
    placed: list[float] = []
    for update, rate, colour in sorted((end for end in ends if end), key=lambda end: end[1]):
        height = max([rate, *(p + gap for p in placed[-1:])])
        placed.append(height)
        axis.annotate(
            f"{100 * rate:.0f} %", (update, height), xytext=(9, 0), textcoords="offset points",
            va="center", color=colour, fontweight="bold", annotation_clip=False,
        )


def _share_heights(axes: Sequence[Axes]) -> None:
    top = min(1.0, max(axis.get_ylim()[1] for axis in axes))
    for axis in axes:
        axis.set_ylim(0.0, top if top < 0.9 else 1.0)


def _panel_size(methods: Method, panel: str) -> str:
    games = {e["task_id"] for runs in methods.values() for r in runs for e in r.episodes if e["panel"] == panel}
    return f" ({len(games)})"


def _with_seeds(label: str, runs: list[Run]) -> str:
    return f"{label} ({len(runs)} seed{'s' * (len(runs) != 1)})"


def _kind_rows(axis: Axes, index: int, methods: int, runs: list[Run], panel: str, kinds: list[str]) -> None:
    updates = evaluated_updates(runs, panel)
    if not updates:
        return
    first, last = kind_rates(runs, panel, updates[0]), kind_rates(runs, panel, updates[-1])
    offset = (index - (methods - 1) / 2) * (0.82 / (methods + 0.8))  # as the figure's height grows
    colour, mark = theme.colour(index), theme.marker(index)
    for row, kind in enumerate(kinds):
        if kind not in last:
            continue
        end: Interval = last[kind]
        axis.plot([end.low, end.high], [row + offset] * 2, color=colour, alpha=0.45, linewidth=2.2)
        if kind in first:
            start = first[kind].estimate
            axis.plot(start, row + offset, mark, markersize=8, color=colour, markerfacecolor="white", markeredgewidth=1)
        axis.plot(end.estimate, row + offset, mark, markersize=5, color=colour)


def _difference_points(axis: Axes, points: list[Comparison], index: int, shift: float) -> None:
    if not points:
        return
    estimates = np.array([p.difference.estimate for p in points]) * 100
    limits = np.array([[p.difference.low, p.difference.high] for p in points]) * 100
    axis.errorbar(
        np.array([p.update for p in points]) + shift, estimates,
        yerr=[estimates - limits[:, 0], limits[:, 1] - estimates],
        color=theme.colour(index), marker=theme.marker(index), markersize=5.5, linewidth=1.2, elinewidth=2.2, capsize=0,
    )
