"""The reasons of skipped tests name extras that bring what is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.extras import BROUGHT_BY, missing

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.mark.parametrize("package", BROUGHT_BY)
def test_the_extra_brings_the_package(package):
    listed = re.search(rf"^{BROUGHT_BY[package]} = \[(.*?)\]$", PROJECT.read_text(), re.DOTALL | re.MULTILINE)
    assert listed, f"pyproject.toml has no extra {BROUGHT_BY[package]}"
    assert f'"{package}' in listed[1]


def test_the_reason_is_a_command():
    assert missing("tantivy") == "tantivy is not installed: pip install 'stepopsd[retrieval]'"
