"""What the score kernels compile to, for chips that need not be here: with the launch shapes that they run with.

The limits hold for every loop over logits, one for each shift of a row against the 16-byte blocks. They are far below
what an H200 leaves at its copy bandwidth, 15.6 instructions and 1.95 exponentials per bf16 logit (132 multiprocessors,
4 instructions per clock and multiprocessor, 1.98 GHz, 4.3 TB/s).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

GROUPS = 4
# Instructions per logit of the main loop, without and with entropies. Triton 3.7.1 needs at most 6.0 and 8.0, there
# with a polynomial among the exponentials, and 5.8 and 7.8 without.
LIMIT = {False: 7.0, True: 8.2}
REST_LIMIT = 10.0  # for the up to three trips that follow, with one group per thread


def ask(*command: str) -> dict[str, Any]:
    """What a module of the tests prints, in a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def compiled() -> dict[str, Any]:
    return ask("tests.ops.sass", "--json")


def main_loops(compiled: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for report in compiled["nvidia"]:
        for loop in report["main"]:
            yield report, loop


def all_loops(compiled: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    yield from main_loops(compiled)
    for report in compiled["nvidia"]:
        for loop in report["rest"]:
            yield report, loop


def test_every_target_and_every_copy_of_the_loop_is_there(compiled: dict[str, Any]) -> None:
    assert {report["target"] for report in compiled["nvidia"]} == {"sm_80", "sm_90", "sm_100"}
    for report in compiled["nvidia"]:
        shifts = (4 if "fp32" in report["variant"] else 8) if "shifted" in report["variant"] else 1
        assert len(report["main"]) == shifts, report
        assert len(report["rest"]) >= shifts, report  # the compiler may unroll some of these


def test_nothing_spills(compiled: dict[str, Any]) -> None:
    for report in [*compiled["nvidia"], *compiled["merge"]]:
        assert (report["stack"], report["spills"]) == (0, 0), report
    for report, loop in all_loops(compiled):
        assert loop["spills"] == 0, report


def test_a_group_of_logits_is_one_load_or_two_where_it_straddles_blocks(compiled: dict[str, Any]) -> None:
    for report, loop in all_loops(compiled):
        shifted = "shifted" in report["variant"]
        assert loop["loads"] in [n * loop["groups"] for n in ((1, 2) if shifted else (1,))], (report, loop)
        if report["target"] != "sm_100" or "fp32" in report["variant"]:  # see score_kernels.py for the polynomial
            assert loop["wide_loads"] == loop["loads"], (report, loop)
    for report in compiled["nvidia"]:
        whole = [loop for loop in report["main"] if loop["loads"] == loop["groups"]]
        assert len(whole) == 1, report  # the copy for rows on a boundary reads nothing twice


def test_threads_do_not_meet_inside_the_loops(compiled: dict[str, Any]) -> None:
    for report, loop in all_loops(compiled):
        assert loop["meetings"] == 0, report


def test_a_trip_is_four_groups_and_one_change_of_the_maximum(compiled: dict[str, Any]) -> None:
    for report, loop in main_loops(compiled):
        width = 4 if report["variant"].startswith("fp32") else 8
        polynomial = 1 if report["target"] == "sm_100" else 0
        assert loop["groups"] == GROUPS, report
        want = (GROUPS * (width - polynomial) + 1) / (GROUPS * width)
        assert loop["exponentials"] == pytest.approx(want, abs=1e-3), report
        assert loop["exponentials"] < (0.92 if polynomial else 1.15), report


def test_registers_and_instructions_stay_within_the_limits(compiled: dict[str, Any]) -> None:
    for report, loop in main_loops(compiled):
        assert report["registers"] <= 64, report
        assert 3 < loop["per_logit"] <= LIMIT["entropy" in report["variant"]], (report, loop)
    for report, loop in all_loops(compiled):
        assert loop["per_logit"] <= REST_LIMIT, (report, loop)


def test_the_merge_of_splits_is_work_of_each_thread_alone(compiled: dict[str, Any]) -> None:
    assert len(compiled["merge"]) == 3
    for report in compiled["merge"]:
        assert report["meetings"] == 0, report
        assert report["registers"] <= 64, report


def test_it_compiles_for_an_amd_chip_without_scratch(compiled: dict[str, Any]) -> None:
    for report in compiled["amd"]:
        assert report["scratch"] == 0, report
        assert report["registers"] <= 128, report
        assert report["wide_loads"] > GROUPS, report


def test_launches_compile_once_whatever_the_sizes_strides_and_alignments() -> None:
    found = ask("tests.ops.jit")
    counts = list(found["score"].items())
    assert counts[0] == ("first", [1, 1])
    changes = [name for (_, before), (name, after) in pairwise(counts) if after != before]
    assert changes == ["shifted", "entropy", "own temperatures"]
    assert found["shape"] == 1
