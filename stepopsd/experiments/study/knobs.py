"""The map of StepOPSD's two knobs: how wide weights may swing, how much of them is mixed in, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from stepopsd.experiments.report import theme
from stepopsd.experiments.report.load import Run
from stepopsd.experiments.report.text import signed
from stepopsd.experiments.statistics import Interval
from stepopsd.experiments.study.table import final_difference


@dataclass(frozen=True, slots=True)
class Setting:
    """One method of a study as a point of the map.

    Attributes:
        method: Its name in the study.
        alpha, mix: α_clip and λ0.
        difference: Success minus the baseline's, paired; None without a common seed.
    """

    method: str
    alpha: float
    mix: float
    difference: Interval | None

    @property
    def most(self) -> float:
        """λ0·α: the largest relative change of an advantage before the step budget."""
        return self.alpha * self.mix

    @property
    def saturates_at(self) -> float:
        """|Δ| from which the sigmoid's weight is clipped: ln((1 + α)/(1 - α))."""
        return math.log((1 + self.alpha) / (1 - self.alpha)) if self.alpha < 1 else math.inf


def settings(methods: dict[str, list[Run]], baseline: str, panel: str) -> list[Setting]:
    """The study's methods that differ from each other in nothing but the two knobs.

    Where several methods have the same knobs, as controls do, the plainest one stands for them: the fewest settings
    other than the knobs that differ from the defaults.
    """
    found: dict[tuple[float, float], tuple[int, Setting]] = {}
    for method, runs in methods.items():
        credit = runs[0].setting("credit", {})
        if credit.get("name") != "stepopsd" or credit.get("control", "none") != "none":
            continue
        point = float(credit.get("alpha_clip", 0.2)), float(credit.get("lambda_mix", 0.2))
        odd = sum(_odd(credit).values())
        difference = final_difference(methods.get(baseline, []), runs, panel)
        if point not in found or odd < found[point][0]:
            found[point] = odd, Setting(method, *point, difference)
    plainest = min((odd for odd, _ in found.values()), default=0)
    return [setting for odd, setting in found.values() if odd == plainest]


def _odd(credit: dict) -> dict[str, bool]:
    hindsight = credit.get("hindsight") or {}
    return {
        "weight_fn": credit.get("weight_fn", "sigmoid") != "sigmoid",
        "step_norm": credit.get("step_norm", "equal_step_mean_abs") != "equal_step_mean_abs",
        "peer": not hindsight.get("peer", True),
        "peer_of": hindsight.get("peer_of", "own") not in ("own", "group"),
    }


def draw_knobs(points: Mapping[str, Sequence[Setting]], baseline: str, path: Path) -> Path | None:
    """A chart per panel, a field per setting, coloured by the difference to the baseline; None without any.

    Args:
        points: Panel -> settings.
        baseline: Its name, for the title.
        path: The PNG.
    """
    known = {panel: [p for p in own if _is_known(p.difference)] for panel, own in points.items()}
    everything = [p for own in known.values() for p in own]
    if not everything:
        return None
    alphas, mixes = sorted({p.alpha for p in everything}), sorted({p.mix for p in everything})
    limit = max(10.0, *(abs(100 * p.difference.estimate) for p in everything if p.difference))
    sheet, axes = theme.figure(1, len(known), row_height=max(2.3, 0.72 * len(mixes) + 1.1))
    with theme.applied():
        for axis, (panel, own) in zip(axes, known.items(), strict=True):
            values = np.full((len(mixes), len(alphas)), np.nan)
            axis.set_facecolor("#f1f3f5")
            for p in own:
                assert p.difference is not None
                at = alphas.index(p.alpha), mixes.index(p.mix)
                values[at[1], at[0]] = 100 * p.difference.estimate
                low, high = signed(100 * p.difference.low, 0), signed(100 * p.difference.high, 0)
                text = f"{signed(100 * p.difference.estimate, 1)}\n{low} to {high}"
                axis.annotate(text, at, ha="center", va="center", color=theme.INK, fontsize=9)
            image = axis.imshow(values, cmap=_COLOURS, vmin=-limit, vmax=limit, aspect="auto", origin="lower")
            for row, column in zip(*np.nonzero(np.isnan(values)), strict=True):
                corner = column - 0.5, row - 0.5
                axis.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="//", edgecolor="#cfd6dc", linewidth=0))
            axis.set_xticks(range(len(alphas)), [f"{a:g}" for a in alphas])
            axis.set_yticks(range(len(mixes)), [f"{m:g}" for m in mixes])
            axis.set_xlabel("α, half width of the clip")
            axis.set_ylabel("λ0, mixing" if axis is axes[0] else "")
            axis.grid(False)
            axis.set_title(theme.plain(f"{panel.capitalize()} games"))
        bar = sheet.colorbar(image, ax=axes, pad=0.02, aspect=14)
        bar.set_label(theme.plain(f"success minus {baseline}'s (points)"))
    return theme.save(sheet, path)


def _is_known(difference: Interval | None) -> bool:
    return difference is not None and not math.isnan(difference.estimate)


_COLOURS = LinearSegmentedColormap.from_list("below and above", ["#e79574", "#ffffff", "#7aaad1"])
