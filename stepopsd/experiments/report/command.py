"""The ``stepopsd report`` command."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from stepopsd.experiments.report.write import write_report


def report_from_arguments(
    runs: Positional[tuple[str, ...]], *, out: Path = Path("runs/report"), title: str = "StepOPSD report"
) -> Path:
    """Build report.html from run directories.

    Args:
        runs: LABEL=DIRECTORY, once per run; the same label again adds a seed. The first label is the baseline.
        out: Folder for the page and its figures.
        title: Heading of the page.

    Returns:
        Path of ``report.html``.

    Raises:
        ValueError: An argument that is not LABEL=DIRECTORY, or a broken run.
        FileNotFoundError: A run directory does not exist.
    """
    path = write_report(parse_runs(runs), out, title=title)
    print(f"report: {path}")
    return path


def parse_runs(arguments: tuple[str, ...]) -> dict[str, list[Path]]:
    """Label -> run directories, labels in the order of their first argument."""
    runs: dict[str, list[Path]] = {}
    for argument in arguments:
        label, separator, directory = argument.partition("=")
        if not (label and separator and directory):
            raise ValueError(f"runs must be LABEL=DIRECTORY, e.g. GRPO=runs/grpo, got {argument!r}")
        runs.setdefault(label, []).append(Path(directory))
    return runs
