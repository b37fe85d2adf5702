"""The ``stepopsd report`` command."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from stepopsd.experiments.report.load import load_run
from stepopsd.experiments.report.write import write_report

OUT = Path("runs/report")


def report_from_arguments(
    runs: Positional[tuple[str, ...]], *, out: Path | None = None, title: str = "StepOPSD report"
) -> Path:
    """Build report.html from run directories.

    Args:
        runs: A run's directory, or LABEL=DIRECTORY once per run; the same label again adds a seed. The first label is
            the baseline.
        out: Folder for the page and its figures; ``DIRECTORY/report`` for a single run, else ``runs/report``.
        title: Heading of the page.

    Returns:
        Path of ``report.html``.

    Raises:
        ValueError: No argument, or a broken run.
        FileNotFoundError: A run directory does not exist.
    """
    methods = parse_runs(runs)
    single = [paths[0] for paths in methods.values()] if len(runs) == 1 and "=" not in runs[0] else []
    path = write_report(methods, out or (single[0] / "report" if single else OUT), title=title)
    print(f"report: {path}")
    return path


def parse_runs(arguments: tuple[str, ...]) -> dict[str, list[Path]]:
    """Label -> run directories, labels in the order of their first argument; without one the run's method is it."""
    runs: dict[str, list[Path]] = {}
    if not arguments:
        raise ValueError("runs must name at least one run: a directory, or LABEL=DIRECTORY, e.g. GRPO=runs/grpo")
    for argument in arguments:
        label, separator, directory = argument.partition("=")
        if separator and not (label and directory):
            raise ValueError(f"runs must be directories or LABEL=DIRECTORY, e.g. GRPO=runs/grpo, got {argument!r}")
        path = Path(directory) if separator else Path(argument)
        if not separator:
            label = str(load_run(path, method=path.name).setting("credit.name", path.name))
        runs.setdefault(label, []).append(path)
    return runs
