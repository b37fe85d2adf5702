"""What the kernels on token values compile to, for chips that need not be here, with the launchers' constants.

Triton 3.7.1 gives at most 87 registers and 2,600 instructions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """Reports from a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.token_sass"],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_spills(compiled: dict[str, Any]) -> None:
    assert {report["target"] for report in compiled["nvidia"]} == {"sm_80", "sm_90", "sm_100"}
    for report in compiled["nvidia"]:
        assert report["stack"] == 0, report
        assert not {"LDL", "STL"} & report["count"].keys(), report
    assert [report["ScratchSize"] for report in compiled["amd"]] == [0, 0]


def test_registers_and_code_stay_within_budget(compiled: dict[str, Any]) -> None:
    for report in compiled["nvidia"]:
        assert report["registers"] <= 112, report
        assert 500 < report["instructions"] <= 3200, report
        assert report["shared"] <= 1024, report  # partial sums only: rows stay in the caches
    assert all(0 < report["NumVgprs"] <= 128 for report in compiled["amd"])


def test_no_atomics_so_the_order_of_additions_is_fixed(compiled: dict[str, Any]) -> None:
    for report in compiled["nvidia"]:
        assert not {"ATOM", "ATOMG", "ATOMS", "RED", "REDUX"} & report["count"].keys() - {"REDUX"}, report


def test_the_quantile_is_found_in_sixteen_counts_not_by_sorting(compiled: dict[str, Any]) -> None:
    with_quantile, without = (
        next(r for r in compiled["nvidia"] if (r["variant"], r["target"]) == (name, "sm_90"))
        for name in ("oar", "oar absolute")
    )
    assert with_quantile["instructions"] < 2.5 * without["instructions"]
    assert with_quantile["count"]["STG"] == without["count"]["STG"]
