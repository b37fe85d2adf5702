"""The probe's picture: where each method's credit lies, and how well it agrees with the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from stepopsd.experiments.credit_probe.probe import Finding
from stepopsd.experiments.credit_probe.setting import Kind
from stepopsd.experiments.report import theme
from stepopsd.experiments.statistics import Interval


def draw_probe(findings: Mapping[Kind, Sequence[Finding]], length: int, path: Path) -> Path:
    """One row of points per method, one colour per kind of teacher.

    Args:
        findings: Kind of teacher -> findings; not every kind need have all methods.
        length: Turns of an episode.
        path: The PNG.
    """
    methods = list(dict.fromkeys(finding.method for found in findings.values() for finding in found))
    sheet, axes = theme.figure(1, 2, row_height=0.42 * len(methods) + 0.6)
    with theme.applied():
        _points(axes[0], findings, methods, lambda f: f.share)
        axes[0].axvline(1 / length, color=theme.MUTED, linewidth=1, linestyle=":")
        axes[0].set_xlim(0, 1)
        axes[0].xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes[0].set_title("|advantage| on the turn that decided")
        _points(axes[1], findings, methods, lambda f: f.agreement)
        axes[1].axvline(0, color=theme.MUTED, linewidth=1, linestyle=":")
        axes[1].set_xlim(-0.2, 1)
        axes[1].set_title("correlation with Monte-Carlo advantages")
        for axis in axes:
            axis.set_yticks(range(len(methods)), methods if axis is axes[0] else [""] * len(methods))
            axis.set_ylim(len(methods) - 0.5, -0.5)
        handles = [theme.method_handle(i, f"teacher {kind}") for i, kind in enumerate(findings)]
        theme.legend_below(sheet, handles)
    return theme.save(sheet, path)


def _points(
    axis: Axes, findings: Mapping[Kind, Sequence[Finding]], methods: Sequence[str],
    figure: Callable[[Finding], Interval],
) -> None:  # fmt: skip
    for index, found in enumerate(findings.values()):
        shift = (index - (len(findings) - 1) / 2) * 0.22
        for finding in found:
            interval = figure(finding)
            if np.isnan(interval.estimate):
                continue
            colour, height = theme.colour(index), methods.index(finding.method) + shift
            axis.plot([interval.low, interval.high], [height, height], color=colour, linewidth=1.6)
            axis.plot([interval.estimate], [height], color=colour, marker=theme.marker(index), markersize=5)
