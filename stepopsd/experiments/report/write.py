"""Writes the report: all sections in order, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepopsd.experiments.report import sections
from stepopsd.experiments.report.browser import transcripts_html
from stepopsd.experiments.report.load import load_runs
from stepopsd.experiments.report.page import Section, page
from stepopsd.experiments.report.text import html


def write_report(
    runs: dict[str, list[Path]], out_dir: Path, *, title: str = "StepOPSD report", notes: Sequence[str] = ()
) -> Path:
    """Write ``report.html`` and its figures as PNG.

    Args:
        runs: Method label -> run directories, one per training seed. The first method is the baseline that the
            others are compared with; runs of two methods are paired by their configured seed.
        out_dir: Where to write; made when it does not exist. Files of an earlier report are overwritten.
        title: Heading of the page, plain text.
        notes: Sentences shown under the heading, plain text: what the runs do and do not show.

    Returns:
        Path of ``report.html``. The page embeds its figures and opens without network; ``success.png`` beside it is
        the picture for a README.

    Raises:
        ValueError: ``runs`` is empty, or a file of a run is broken; the message names the file and line.
        FileNotFoundError: A run directory does not exist.

    Files or metrics that a run lacks are named in the section that would show them; NaN values leave gaps.

    Example:
        >>> write_report({"GRPO": [Path("runs/grpo-0")], "StepOPSD": [Path("runs/stepopsd-0")]}, Path("runs/report"))
    """
    methods = load_runs(runs)
    out_dir.mkdir(parents=True, exist_ok=True)
    lead = [sections.headline(methods), *map(html, notes)]
    parts = [
        Section("success", "Success", sections.success(methods, out_dir)),
        Section("difference", "Difference between methods", sections.comparison(methods, out_dir)),
        Section("types", "Task types", sections.kinds(methods, out_dir)),
        Section("credit", "Credit", sections.credit(methods, out_dir)),
        Section("training", "Training", sections.optimisation(methods, out_dir)),
        Section("cost", "Time and tokens", sections.cost(methods, out_dir / "cost.png")),
        Section("transcripts", "Transcripts", transcripts_html(methods)),
        Section("provenance", "How it ran", sections.how_it_ran(methods)),
    ]
    path = out_dir / "report.html"
    path.write_text(page(title, lead, parts), encoding="utf-8")
    return path
