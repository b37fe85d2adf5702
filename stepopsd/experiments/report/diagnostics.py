"""Figures of how training went: metrics over updates, time and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

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
        log: Logarithmic axis over whole decades; values at or below 0 are not drawn.
        ceiling: Largest value there can be; the axis ends there.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    bands: tuple[tuple[str, str], ...] = ()
    share: bool = False
    log: bool = False
    ceiling: float | None = None


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
    Chart("Cosine of Ã and A", (("advantage/cosine", ""),), ceiling=1.0),
)
OPTIMISATION = (
    Chart("Success of training episodes", (("success", ""),), share=True),
    Chart("Groups with wins and losses", (("mixed_groups", ""),), share=True),
    Chart("Invalid actions", (("invalid_share", ""),), share=True),
    Chart("KL to the start", (("kl", ""),)),
    Chart("Entropy per token (nats)", (("entropy", ""),)),
    Chart("Largest sampler–trainer gap", (("sampler_gap_max", ""),), log=True),
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
        handles = [theme.method_handle(i, m, marked=False) for i, m in enumerate(methods) if m in drawn]
        theme.legend_below(sheet, handles)
    return theme.save(sheet, path)


def chart_keys_absent(methods: Method, chart: Chart) -> list[str]:
    """Keys of the chart's lines that no run recorded, when that leaves the chart empty; else nothing."""
    keys = [key for key, _ in chart.lines]
    recorded = any(np.isfinite(run.series(k)[1]).any() for runs in methods.values() for run in runs for k in keys)
    return [] if recorded else keys


def draw_cost(methods: Method, path: Path) -> Path | None:
    """Mean seconds and tokens per update of each method; None when neither was recorded."""
    seconds = per_update(methods, [*(key for key, _ in TIME), "seconds"])
    seconds[:, -1] = np.maximum(seconds[:, -1] - np.nansum(seconds[:, :-1], axis=1), 0.0)
    tokens = per_update(methods, [key for key, _ in TOKENS])
    if np.isnan(seconds).all() and np.isnan(tokens).all():
        return None
    sheet, axes = theme.figure(1, 2, row_height=0.9 + 0.5 * len(methods))
    with theme.applied():
        _stacked_bars(axes[0], list(methods), seconds, [*(name for _, name in TIME), "other"])
        axes[0].set_title("Seconds per update")
        _grouped_bars(axes[1], list(methods), tokens / 1e3, [name for _, name in TOKENS])
        axes[1].set_title("Thousand tokens per update")
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
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axis.get_lines()])
    positive = values[values > 0]
    if chart.log and positive.size:
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
        low, high = np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max()))
        axis.set_ylim(10.0**low, 10.0 ** max(high, low + 1))
    if chart.share:
        theme.percent_axis(axis, decimals=None)
        top = max(1.08 * np.nanmax(values), 0.01)
        axis.set_ylim(-0.02 * top, top)
    if chart.ceiling is not None:
        room = max(chart.ceiling - np.nanmin(values), 1e-3)
        axis.set_ylim(chart.ceiling - 1.1 * room, chart.ceiling + 0.04 * room)
    if len(chart.lines) > 1:
        handles = [
            Line2D([], [], color=theme.MUTED, linestyle=dash, linewidth=1.6, label=name)
            for dash, (_, name) in zip(DASHES, chart.lines, strict=False)
        ]
        axis.legend(handles=handles, loc="best", fontsize=8, handlelength=2.2)


def _stacked_bars(axis: Axes, labels: list[str], values: np.ndarray, parts: list[str]) -> None:
    left = np.zeros(len(labels))
    for part, name in enumerate(parts):
        width = np.nan_to_num(values[:, part])
        if width.any():
            axis.barh(range(len(labels)), width, left=left, color=theme.PARTS[part], height=0.58, label=name)
        left += width
    _finish_bars(axis, labels, [(row, total) for row, total in enumerate(left)])


def _grouped_bars(axis: Axes, labels: list[str], values: np.ndarray, parts: list[str]) -> None:
    height = 0.72 / len(parts)
    ends = []
    for part, name in enumerate(parts):
        rows = np.arange(len(labels)) + (part - (len(parts) - 1) / 2) * height
        axis.barh(rows, np.nan_to_num(values[:, part]), color=theme.PARTS[part], height=0.9 * height, label=name)
        ends += [(row, value) for row, value in zip(rows, values[:, part], strict=True) if value > 0]
    _finish_bars(axis, labels, ends)


def _finish_bars(axis: Axes, labels: list[str], ends: list[tuple[float, float]]) -> None:
    for row, value in ends:
        axis.annotate(
            f"{value:,.1f}", (value, row), xytext=(5, 0), textcoords="offset points", va="center", color=theme.MUTED,
            fontsize=8,
        )
    axis.set_yticks(range(len(labels)), [theme.plain(label) for label in labels])
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0, labelcolor=theme.INK)
    axis.set_xlim(0.0, 1.16 * max([value for _, value in ends] or [1.0]) or 1.0)
    below = -0.5 / (0.9 + 0.5 * len(labels))  # half an inch under the axis, however many methods there are
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=4, fontsize=8.5, handlelength=1.2)
