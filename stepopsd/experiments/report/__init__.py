"""The report: run directories in, one self-contained HTML page and its figures out."""

from __future__ import annotations

from stepopsd.experiments.report.command import report_from_arguments
from stepopsd.experiments.report.write import write_report

__all__ = ["report_from_arguments", "write_report"]
