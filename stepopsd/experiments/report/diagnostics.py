"""Figures of how training went: metrics over updates, time and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stepopsd.experiments.report import theme
from stepopsd.experiments.report.load import Run
from stepopsd.experiments.report.summary import Method

DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True)
class Chart:
    """One small chart over updates.

    Attributes:
        title: What is shown.
        lines: (metric key, name of the line); one line needs no name.
        bands: (low key, high key) pairs, shaded.
        share: Values are shares and are labelled as per cent.
        log: Logarithmic axis; values at or below 0 are not drawn.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    bands: tuple[tuple[str, str], ...] = ()
    share: bool = False
    log: bool = False

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.lines] + [key for band in self.bands for key in band]


DELTA = (
    Chart(
        "Δ: median, quartiles, 5 to 95 %",
        (("delta/median", ""),),
        bands=(("delta/p05", "delta/p95"), ("delta/p25", "delta/p75")),
    ),
    Chart("Std(Δ)", (("delta/std", ""),)),
    Chart("Mean |Δ|", (("delta/abs_mean", ""),)),
    Chart("Sign of Δ", (("delta/positive", "> 0"), ("delta/negative", "< 0"), ("delta/unchanged", "0")), share=True),
    Chart("Weights at a clip edge", (("weight/at_high", "1 + α"), ("weight/at_low", "1 − α")), share=True),
    Chart("Mixing coefficient λ", (("lambda", ""),)),
)
STEPS = (
    Chart("Step scale c", (("step_scale/max", "largest"), ("step_scale/min", "smallest"))),
    Chart("Steps with a clamped scale", (("step_scale/clamped", ""),), share=True),
    Chart("Cosine of shaped and plain advantage", (("advantage/cosine", ""),)),
)
OPTIMISATION = (
    Chart("Success of training episodes", (("success", ""),), share=True),
    Chart("Groups with wins and losses", (("mixed_groups", ""),)),
    Chart("Invalid actions", (("invalid_share", ""),), share=True),
    Chart("KL to the start", (("kl", ""),)),
    Chart("Entropy per token (nats)", (("entropy", ""),)),
    Chart("Sampler–trainer gap, largest |Δ log p|", (("sampler_gap_max", ""),), log=True),
    Chart("Tokens at the ratio clip", (("clip_share", ""),), share=True),
    Chart("Gradient norm", (("grad_norm", ""),)),
    Chart("Loss", (("loss", ""),)),
)
TIME = (("rollout_seconds", "rollout"), ("train_seconds", "training"), ("teacher_seconds", "teacher scoring"))
TOKENS = (("tokens/generated", "generated"), ("tokens/student", "student passes"), ("tokens/teacher", "teacher passes"))


def draw_charts(methods: Method, charts: tuple[Chart, ...], path: Path) -> Path | None:
    """Metrics over updates, a line per method (thin lines: single seeds); charts without data are left out.

    Returns:
        The path, or None when no chart has data.
    """
    shown = [chart for chart in charts if not chart_keys_absent(methods, chart)]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    sheet, axes = theme.figure(rows, columns, row_height=2.35)
    drawn: set[str] = set()
    with theme.applied():
        for axis, chart in zip(axes, shown, strict=False):
            for index, (label, runs) in enumerate(methods.items()):
                if _draw_chart(axis, index, runs, chart):
                    drawn.add(label)
            _finish(axis, chart)
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        handles = [
            Line2D([], [], color=theme.colour(i), linewidth=2.4, label=label)
            for i, label in enumerate(methods)
            if label in drawn
        ]
        sheet.legend(handles=handles, loc="outside lower center", ncols=5)
    return theme.save(sheet, path)


def chart_keys_absent(methods: Method, chart: Chart) -> list[str]:
    """Keys of the chart's lines that no run recorded, when that leaves the chart empty; else nothing."""
    keys = [key for key, _ in chart.lines]
    recorded = any(np.isfinite(run.series(k)[1]).any() for runs in methods.values() for run in runs for k in keys)
    return [] if recorded else keys


def draw_cost(methods: Method, path: Path) -> Path | None:
    """Mean seconds and tokens per update of each method; None when neither was recorded."""
    seconds = per_update(methods, [key for key, _ in TIME])
    tokens = per_update(methods, [key for key, _ in TOKENS])
    if np.isnan(seconds).all() and np.isnan(tokens).all():
        return None
    sheet, axes = theme.figure(1, 2, row_height=0.9 + 0.42 * len(methods))
    with theme.applied():
        _bars(axes[0], list(methods), seconds, [name for _, name in TIME], "Seconds per update")
        _bars(axes[1], list(methods), tokens / 1e3, [name for _, name in TOKENS], "Thousand tokens per update")
    return theme.save(sheet, path)


def per_update(methods: Method, keys: list[str]) -> np.ndarray:
    """Mean of each metric over the updates of all runs of a method, (methods, keys), NaN where never recorded."""
    means = np.full((len(methods), len(keys)), np.nan)
    for row, runs in enumerate(methods.values()):
        for column, key in enumerate(keys):
            values = np.concatenate([run.series(key)[1] for run in runs])
            if np.isfinite(values).any():
                means[row, column] = np.nanmean(values)
    return means


def mean_series(runs: list[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs at every update that any run recorded a finite value for."""
    sums: dict[int, list[float]] = {}
    for run in runs:
        for update, value in zip(*run.series(key), strict=True):
            if np.isfinite(value):
                sums.setdefault(int(update), []).append(float(value))
    updates = sorted(sums)
    return np.array(updates), np.array([np.mean(sums[update]) for update in updates])


def _draw_chart(axis: Axes, index: int, runs: list[Run], chart: Chart) -> bool:
    colour = theme.colour(index)
    drawn = False
    for low, high in chart.bands:
        updates, lower = mean_series(runs, low)
        upper_updates, upper = mean_series(runs, high)
        if updates.size and np.array_equal(updates, upper_updates):
            axis.fill_between(updates, lower, upper, color=colour, alpha=0.15, linewidth=0)
    for dash, (key, _) in zip(DASHES, chart.lines, strict=False):
        updates, values = mean_series(runs, key)
        if not updates.size:
            continue
        drawn = True
        axis.plot(updates, values, dash, color=colour, linewidth=1.7, marker="o" if updates.size == 1 else "")
        if len(runs) > 1:
            for run in runs:
                axis.plot(*run.series(key), dash, color=colour, linewidth=0.6, alpha=0.4)
    return drawn


def _finish(axis: Axes, chart: Chart) -> None:
    axis.set_title(chart.title)
    theme.update_axis(axis)
    if chart.log and any((np.asarray(line.get_ydata(), dtype=float) > 0).any() for line in axis.get_lines()):
        axis.set_yscale("log")
    if chart.share:
        theme.percent_axis(axis, decimals=None)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    if len(chart.lines) > 1:
        handles = [
            Line2D([], [], color=theme.MUTED, linestyle=dash, linewidth=1.6, label=name)
            for dash, (_, name) in zip(DASHES, chart.lines, strict=False)
        ]
        axis.legend(handles=handles, loc="best", fontsize=8, handlelength=2.2)


def _bars(axis: Axes, labels: list[str], values: np.ndarray, parts: list[str], title: str) -> None:
    left = np.zeros(len(labels))
    for column, (name, colour) in enumerate(zip(parts, theme.PARTS, strict=False)):
        width = np.nan_to_num(values[:, column])
        axis.barh(labels, width, left=left, color=colour, height=0.58, label=name, edgecolor="white", linewidth=0.8)
        left += width
    for row, total in enumerate(left):
        axis.annotate(
            f"{total:,.1f}", (total, row), xytext=(5, 0), textcoords="offset points", va="center", color=theme.MUTED
        )
    axis.invert_yaxis()
    axis.set_title(title)
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0, labelcolor=theme.INK)
    axis.margins(x=0.14)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, fontsize=8.5, handlelength=1.2)
