"""What the pair kernel compiles to, for chips that need not be here: with the launch shapes that it runs with.

The bounds on instructions are budgets, not records: at its copy bandwidth an H200 leaves 15.6 instructions per bf16
logit (132 multiprocessors, 4 instructions per clock and multiprocessor, 1.98 GHz, 4.3 TB/s).
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

# variant: (registers, instructions per logit). Triton 3.7.1 gives at most 52, 80, 96, 96 and 6.5, 8.7, 10.6, 11.9.
BUDGET = {"": (64, 7.5), "shifted": (104, 9.5), "entropy": (112, 11.5), "shifted entropy": (128, 13.0)}


@pytest.fixture(scope="session")
def compiled() -> dict[str, Any]:
    """Reports by target and variant, from a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.sass", "--json"],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_nvidia_target_is_there(compiled: dict[str, Any]) -> None:
    targets = {report["target"] for report in compiled["nvidia"]}
    assert targets == {"sm_80", "sm_90", "sm_100"}
    assert len(compiled["nvidia"]) == 12


def test_nothing_spills(compiled: dict[str, Any]) -> None:
    for report in compiled["nvidia"]:
        assert (report["stack"], report["spills"]) == (0, 0), report


def test_logits_are_read_sixteen_bytes_at_a_time_at_any_alignment(compiled: dict[str, Any]) -> None:
    for report in compiled["nvidia"]:
        assert report["wide_loads"] == (16 if "shifted" in report["variant"] else 8), report
        assert report["narrow_loads"] == 0, report


def test_threads_do_not_meet_inside_the_loop(compiled: dict[str, Any]) -> None:
    for report in compiled["nvidia"]:
        assert (report["barriers"], report["shuffles"]) == (0, 0), report


def test_one_exponential_per_logit_and_one_per_vector(compiled: dict[str, Any]) -> None:
    for report in compiled["nvidia"]:
        vector = 4 if report["variant"].startswith("fp32") else 8
        assert report["exponentials"] == 1 + 1 / vector, report


def test_registers_and_instructions_stay_within_budget(compiled: dict[str, Any]) -> None:
    for report in compiled["nvidia"]:
        registers, per_logit = BUDGET[report["variant"].partition(" ")[2]]
        assert report["registers"] <= registers, report
        assert 3 < report["per_logit"] <= per_logit, report


def test_it_compiles_for_an_amd_chip_without_scratch(compiled: dict[str, Any]) -> None:
    assert compiled["amd"]["scratch"] == 0
    assert compiled["amd"]["wide_loads"] >= 8
