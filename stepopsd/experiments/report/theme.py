"""One look for all figures: fonts, colours that survive colour blindness and greyscale, and saving."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

DPI = 140
WIDTH = 10.0  # inches; 1400 pixels
INK = "#1f2933"
MUTED = "#66727f"
# The first method is the baseline: a quiet colour. The others follow in order of contrast to it.
COLOURS = (
    "#5b6b7d", "#d9541e", "#1769aa", "#2c8c4a", "#8a4fa3", "#b8860b", "#0d8b8b", "#c2185b", "#1f2933", "#8c564b",
    "#7f9f2f", "#4b5bd6", "#e07bb5", "#4fa9c9", "#6b4226", "#a3b18a",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PARTS = ("#34526f", "#86b0d1", "#e0a63f", "#cfd6dc")

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e8ec",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def applied() -> AbstractContextManager[None]:
    """The look as a context, for everything that is drawn."""
    return matplotlib.rc_context(STYLE)


def figure(rows: int, columns: int, *, row_height: float) -> tuple[Figure, list[Axes]]:
    """A figure of README width and its axes in reading order; not registered with pyplot, so nothing leaks."""
    with applied():
        spacing = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.08, wspace=0.04, hspace=0.06)
        sheet = Figure(figsize=(WIDTH, rows * row_height + 0.45), dpi=DPI, layout=spacing, facecolor="white")
        FigureCanvasAgg(sheet)
        axes = sheet.subplots(rows, columns, squeeze=False)
    return sheet, [axis for row in axes for axis in row]


def save(sheet: Figure, path: Path) -> Path:
    """Write the PNG; equal data gives equal bytes."""
    with applied():
        sheet.savefig(path, metadata={"Software": None})
    return path


def legend_below(sheet: Figure, handles: Sequence[Artist]) -> None:
    """One legend for the whole figure, outside the axes."""
    sheet.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), handlelength=2.4)


def method_handle(index: int, label: str, *, marked: bool = True) -> Line2D:
    """A method's legend entry."""
    mark = marker(index) if marked else ""
    return Line2D([], [], color=colour(index), marker=mark, markersize=5.5, linewidth=2.2, label=plain(label))


def plain(text: str) -> str:
    """Text that is not read as a formula."""
    return text.replace("$", r"\$")


def colour(index: int) -> str:
    return COLOURS[(index - 1) % (len(COLOURS) - 1) + 1 if index else 0]  # the baseline's is nobody else's


def marker(index: int) -> str:
    return MARKERS[(index + index // len(MARKERS)) % len(MARKERS)]  # a second round of colours gets other markers


def percent_axis(axis: Axes, *, decimals: int | None = 0) -> None:
    """Label shares 0..1 as per cent."""
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals, symbol=" %"))


def update_axis(axis: Axes) -> None:
    """Whole updates on the horizontal axis."""
    axis.set_xlabel("policy update")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
