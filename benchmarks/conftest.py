"""Benchmarks are files called bench_*.py; `pytest benchmarks` collects them."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    named_by_hand = parent.session.isinitpath(file_path)
    if file_path.match("bench_*.py") and not named_by_hand:
        return pytest.Module.from_parent(parent, path=file_path)
    return None
