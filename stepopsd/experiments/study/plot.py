"""Learning curves of a study: success over sampled tokens, so that no method is shown at another's expense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from stepopsd.experiments.report import theme
from stepopsd.experiments.report.load import Run
from stepopsd.experiments.report.summary import outcomes, panels, success_of

MOST_TOGETHER = 3  #: methods whose bands can be told apart in one chart
COLUMNS = 4


def draw_curves(methods: dict[str, list[Run]], path: Path, *, baseline: str) -> Path:
    """Mean over training seeds with a 95 % band, each seed as a thin line: one chart per panel.

    The n-th evaluation of all seeds makes one point; its place is their mean of sampled tokens. More methods than
    ``MOST_TOGETHER`` get a chart each, all of a panel at one scale, with the baseline behind.

    Args:
        methods: Method -> runs.
        path: The PNG.
        baseline: One of the methods.
    """
    names = panels(methods)
    if len(methods) > MOST_TOGETHER and baseline in methods:
        return _draw_apart(methods, names, path, baseline)
    sheet, axes = theme.figure(1, len(names), row_height=3.7)
    with theme.applied():
        for axis, panel in zip(axes, names, strict=True):
            for index, runs in enumerate(methods.values()):
                _curve(axis, index, runs, panel)
            axis.set_title(theme.plain(f"{panel.capitalize()} panel"))
            axis.set_ylabel("success" if axis is axes[0] else "")
            axis.set_xlabel("tokens sampled in training")
            axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
            theme.percent_axis(axis)
        handles = [theme.method_handle(i, f"{name} × {len(runs)}") for i, (name, runs) in enumerate(methods.items())]
        theme.legend_below(sheet, [*handles, Patch(color=theme.MUTED, alpha=0.2, label="95 % interval")])
    return theme.save(sheet, path)


def _draw_apart(methods: dict[str, list[Run]], names: list[str], path: Path, baseline: str) -> Path:
    places = list(methods)
    others = [method for method in places if method != baseline]
    rows = -(-len(others) // COLUMNS)
    sheet, axes = theme.figure(rows * len(names), COLUMNS, row_height=1.85)
    with theme.applied():
        for number, panel in enumerate(names):
            block = axes[number * rows * COLUMNS : (number + 1) * rows * COLUMNS]
            for axis, method in zip(block, others, strict=False):
                for shown in (baseline, method):
                    _curve(axis, places.index(shown), methods[shown], panel)
                axis.set_title(theme.plain(f"{method} × {len(methods[method])}"), fontsize=9)
                axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
                axis.xaxis.set_major_locator(MaxNLocator(4))
                axis.tick_params(labelsize=8)
                theme.percent_axis(axis)
            _align(block[: len(others)], panel)
            for axis in block[len(others) :]:
                axis.set_axis_off()
        behind = theme.method_handle(places.index(baseline), f"{baseline} × {len(methods[baseline])}, in every chart")
        band = Patch(color=theme.MUTED, alpha=0.2, label="95 % interval")
        theme.legend_below(sheet, [behind, band])
    return theme.save(sheet, path)


def _align(block: Sequence[Axes], panel: str) -> None:
    """One scale for all charts of a panel, and its numbers at the left edge and at the bottom alone."""
    bottom, top = min(axis.get_ylim()[0] for axis in block), max(axis.get_ylim()[1] for axis in block)
    right = max(axis.get_xlim()[1] for axis in block)
    for place, axis in enumerate(block):
        axis.set_ylim(max(bottom, -0.03), min(top, 1.03))
        axis.set_xlim(-0.04 * right, right)
        first = place % COLUMNS == 0
        axis.set_ylabel(theme.plain(f"success, {panel}") if first else "", fontsize=9)
        last = place + COLUMNS >= len(block)
        axis.set_xlabel("tokens sampled" if last else "", fontsize=9)
        axis.tick_params(labelleft=first, labelbottom=last)


def _curve(axis: Axes, index: int, runs: list[Run], panel: str) -> None:
    curves = [_points(run, panel) for run in runs]
    length = min((len(curve) for curve in curves), default=0)
    if not length:
        return
    colour = theme.colour(index)
    for curve in curves if len(curves) > 1 else []:
        places = [tokens for tokens, _ in curve]
        rates = [np.mean([won for flags in games.values() for won in flags]) for _, games in curve]
        axis.plot(places, rates, color=colour, alpha=0.3, linewidth=0.8)
    places = [float(np.mean([curve[i][0] for curve in curves])) for i in range(length)]
    bands = [success_of([curve[i][1] for curve in curves]) for i in range(length)]
    axis.fill_between(places, [b.low for b in bands], [b.high for b in bands], color=colour, alpha=0.13, linewidth=0)
    axis.plot(places, [b.estimate for b in bands], color=colour, marker=theme.marker(index), markersize=4.5)


def _points(run: Run, panel: str) -> list[tuple[float, dict[str, list[bool]]]]:
    """(tokens sampled so far, success flags of every game) per evaluation."""
    updates, tokens = run.series("tokens/generated")
    played = sorted({e["update"] for e in run.episodes if e["panel"] == panel})
    return [(float(tokens[updates <= u].sum()), outcomes(run, panel, u)) for u in played]
