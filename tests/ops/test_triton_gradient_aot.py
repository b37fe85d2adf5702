"""What the gradient kernels compile to, for chips that need not be here, with the launch shape that they run with.

Each bf16 logit is 2 bytes read and 2 written. At a copy bandwidth of 4.3 TB/s an H200 can issue 31 instructions in that
time (132 multiprocessors, 4 instructions per clock and multiprocessor, 1.98 GHz), and 3.9 exponentials; a loop below
takes at most 12.5, and 1.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest

from tests.ops.test_triton_aot import ask

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

GROUPS = 4  # blocks of 16 bytes that a thread reads and writes in one trip
WIDTH = {"bf16": 8, "fp16": 8, "fp32": 4}
# Instructions per logit, without and with the term of the entropy. Triton 3.7.1 needs at most 9.5 and 11.6 where rows
# lie alike in memory, 9.5 and 12.7 where they do not.
LIMIT = {True: (10.0, 12.5), False: (10.5, 13.5)}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return ask("tests.ops.gradient_sass")


def count(codes: dict[str, int], *starts: str) -> int:
    return sum(number for code, number in codes.items() if code.startswith(starts))


def wide(codes: dict[str, int], start: str) -> int:
    return sum(number for code, number in codes.items() if code.startswith(start) and code.endswith(".128"))


def test_nothing_spills(compiled: dict[str, Any]) -> None:
    assert {report["target"] for report in compiled["gradient"]} == {"sm_80", "sm_90", "sm_100"}
    for report in [*compiled["gradient"], *compiled["scale"]]:
        assert report["stack"] == 0, report
        assert count(report["whole"], "LDL", "STL") == 0, report
        assert report["registers"] <= 64, report
    for report in [*compiled["amd"], compiled["amd_scale"]]:
        assert report["ScratchSize"] == 0, report
        assert 0 < report["NumVgprs"] <= 64, report


def test_loads_and_stores_of_rows_that_lie_alike_take_16_bytes(compiled: dict[str, Any]) -> None:
    for report in compiled["gradient"]:
        assert len(report["loops"]) == 2, report  # without and with the term of the entropy
        for loop in report["loops"]:
            assert wide(loop, "STG") == count(loop, "STG") == GROUPS, report
            if report["MATCHED"]:
                assert wide(loop, "LDG") == count(loop, "LDG") == GROUPS, report
            else:
                assert count(loop, "LDG") == GROUPS * WIDTH[report["dtype"]], report
    for report in compiled["scale"]:
        assert wide(report["whole"], "LDG") == wide(report["whole"], "STG") == GROUPS, report
        assert count(report["whole"], "STG") == GROUPS + 1, report  # and the elements at a row's ends


def test_an_amd_chip_too_takes_16_bytes(compiled: dict[str, Any]) -> None:
    alike, apart = (report["accesses"] for report in compiled["amd"])
    assert alike["load_dwordx4"] == alike["store_dwordx4"] == apart["store_dwordx4"] == 2 * GROUPS
    assert apart["load_ushort"] >= 2 * GROUPS * WIDTH["bf16"]
    scale = compiled["amd_scale"]["accesses"]
    assert scale["load_dwordx4"] == scale["store_dwordx4"] == GROUPS


def test_a_logit_costs_one_exponential_and_few_instructions(compiled: dict[str, Any]) -> None:
    for report in compiled["gradient"]:
        logits = GROUPS * WIDTH[report["dtype"]]
        rates = sorted(sum(loop.values()) / logits for loop in report["loops"])
        assert 6 < rates[0] <= LIMIT[report["MATCHED"]][0], (rates, report)
        assert rates[0] + 1.5 < rates[1] <= LIMIT[report["MATCHED"]][1], (rates, report)
        for loop in report["loops"]:
            assert count(loop, "MUFU") == loop["MUFU.EX2"] == logits, report


def test_threads_do_not_meet(compiled: dict[str, Any]) -> None:
    for report in compiled["gradient"]:
        for loop in report["loops"]:
            assert count(loop, "BAR", "SHFL", "WARPSYNC", "LDS", "STS", "ATOM", "RED") == 0, report


def test_results_are_rounded_to_nearest(compiled: dict[str, Any]) -> None:
    for report in [*compiled["gradient"], *compiled["scale"]]:
        packing = [code for code in report["whole"] if code.startswith("F2F")]
        assert bool(packing) == (report["dtype"] != "fp32"), report
        assert not any(".RZ" in code or ".RM" in code or ".RP" in code for code in packing), report


def test_launches_compile_once_whatever_the_sizes_strides_and_alignments(compiled: dict[str, Any]) -> None:
    counts = list(compiled["binaries"].items())
    assert counts[0] == ("gradient", [1, 0])
    changes = [name for (_, before), (name, after) in pairwise(counts) if after != before]
    assert changes == ["moved apart", "own temperatures", "scale"]
