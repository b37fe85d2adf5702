"""Learning curves of a study: success over sampled tokens, so that no method is shown at another's expense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from stepopsd.experiments.report import theme
from stepopsd.experiments.report.load import Run
from stepopsd.experiments.report.summary import outcomes, panels, success_of


def draw_curves(methods: dict[str, list[Run]], path: Path) -> Path:
    """One chart per panel: mean over training seeds with a 95 % band, each seed as a thin line.

    The n-th evaluation of all seeds makes one point; its place is their mean of sampled tokens.
    """
    names = panels(methods)
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
