"""What the shape kernel compiles to, for chips that need not be here, with the launcher's constants.

Triton 3.7.1 gives at most 194 registers and 3,800 instructions with the budget, 80 and 2,050 without.
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
        [sys.executable, "-m", "tests.ops.shape_sass"],
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
        registers, instructions = (232, 4400) if report["budget"] else (112, 2400)
        assert report["registers"] <= registers, report
        assert 500 < report["instructions"] <= instructions, report
    assert all(0 < report["NumVgprs"] <= 256 for report in compiled["amd"])


def test_threads_meet_a_few_dozen_times(compiled: dict[str, Any]) -> None:
    for report in compiled["nvidia"]:
        assert 2 < report["count"]["BAR"] <= (48 if report["budget"] else 32), report


def test_one_integer_atomic_orders_the_records(compiled: dict[str, Any]) -> None:
    for report in compiled["nvidia"]:
        order = report["order"]
        atomics = [i for i, code in enumerate(order) if code.startswith(("ATOM", "RED."))]
        assert len(atomics) == 1, report
        place = atomics[0]
        assert ".ADD." in order[place], report
        assert not any(kind in order[place] for kind in (".F16", ".F32", ".F64")), report
        # All of the program's stores before, nothing stale after: barrier, fence, add, invalidate, barrier.
        kinds = [code.split(".")[0] for code in order[place - 2 : place + 3]]
        assert kinds == ["BAR", "MEMBAR", kinds[2], "CCTL", "BAR"], report
