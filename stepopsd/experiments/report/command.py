"""The ``stepopsd report`` command."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from stepopsd.experiments.report.load import load_run
from stepopsd.experiments.report.write import write_report

OUT = Path("runs/report")


def report_from_arguments(
    runs: Positional[tuple[str, ...]],
    *,
    out: Path | None = None,
    title: str = "StepOPSD report",
    probe: tuple[Path, ...] = (),
) -> Path:
    """Build report.html from run directories, or from a study.

    Args:
        runs: A study's directory or records; or a run's directory; or LABEL=DIRECTORY once per run, where the same
            label again adds a seed and the first one is the baseline.
        out: Folder for the page and its figures; ``DIRECTORY/report`` for a study or a single run, else
            ``runs/report``.
        title: Heading of the page; a study has its own.
        probe: Results of the credit probe for a study's page; those that lie beside its records or a folder above
            where not given.

    Returns:
        Path of ``report.html``.

    Raises:
        ValueError: No argument, or a broken run; a study beside something else, or without records.
        FileNotFoundError: A run directory does not exist.
    """
    records = [found for argument in runs if (found := records_of(Path(argument))) is not None]
    if records:
        if len(runs) > 1:
            raise ValueError(f"a study is reported alone: got {records[0]} and {len(runs) - 1} other arguments")
        path = _report_study(records[0], out or Path(runs[0]) / "report", probe)
        print(f"report: {path}")
        return path
    methods = parse_runs(runs)
    single = [paths[0] for paths in methods.values()] if len(runs) == 1 and "=" not in runs[0] else []
    path = write_report(methods, out or (single[0] / "report" if single else OUT), title=title)
    print(f"report: {path}")
    return path


def records_of(path: Path) -> Path | None:
    """The records of a study in a folder: its own or those below it; None where it is no study.

    Raises:
        ValueError: A study's directory whose records were not gathered.
    """
    for folder in (path, path / "records"):
        if (folder / "study.yaml").is_file():
            return folder
    if (path / "cells").is_dir():
        raise ValueError(f"{path} holds cells of a study but no records: run stepopsd study table first")
    return None


def _report_study(records: Path, out: Path, probes: tuple[Path, ...]) -> Path:
    from stepopsd.experiments.study.page import write_study_page  # imports this room

    beside = sorted({file for folder in (records, records.parent) for file in folder.glob("credit-probe-*.json")})
    return write_study_page(records, out, probes=probes or beside)


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
