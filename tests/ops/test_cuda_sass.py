"""What the CUDA kernels compile to, for chips that need not be here: in the module as setup.py builds it.

The bounds are budgets, not records: at its copy bandwidth an H200 leaves 15.6 instructions per bf16 logit (132
multiprocessors, 4 instructions per clock and multiprocessor, 1.98 GHz, 4.3 TB/s).
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="the machine code is read with what Triton brings")

from tests.ops import cuda_sass
from tests.ops.cuda_sass import Kernel, Loop

# (target, dtype, entropy): instructions per logit in each hot loop. nvcc 13.0 stays some 5 % below.
PER_LOGIT = {
    ("sm_80", "bf16", False): 5.6, ("sm_80", "bf16", True): 7.1,
    ("sm_80", "fp16", False): 5.6, ("sm_80", "fp16", True): 7.6,
    ("sm_80", "fp32", False): 5.5, ("sm_80", "fp32", True): 7.4,
    ("sm_90", "bf16", False): 5.6, ("sm_90", "bf16", True): 6.7,
    ("sm_90", "fp16", False): 5.6, ("sm_90", "fp16", True): 7.4,
    ("sm_90", "fp32", False): 5.5, ("sm_90", "fp32", True): 7.4,
    ("sm_100", "bf16", False): 4.3, ("sm_100", "bf16", True): 5.4,
    ("sm_100", "fp16", False): 4.3, ("sm_100", "fp16", True): 5.9,
    ("sm_100", "fp32", False): 4.7, ("sm_100", "fp32", True): 6.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    reason = cuda_sass.missing()
    if reason and not os.environ.get("STEPOPSD_REQUIRE_NVCC"):
        pytest.skip(reason)
    assert reason is None
    return cuda_sass.inspect()


@pytest.fixture(scope="module")
def loops(kernels: list[Kernel]) -> list[tuple[Kernel, Loop]]:
    """The hot loops, each with its kernel."""
    return [(kernel, loop) for kernel in kernels for loop in kernel.loops]


def test_every_kernel_is_there_for_every_target(kernels: list[Kernel]) -> None:
    scores = {(k.target, k.dtype, k.entropy) for k in kernels if "score_kernel" in k.name}
    assert scores == set(PER_LOGIT)
    for target in ("sm_80", "sm_90", "sm_100"):
        others = [k.name for k in kernels if k.target == target and "score_kernel" not in k.name]
        assert sum("merge_kernel" in name for name in others) == 2, others
        assert sum("shape_kernel" in name for name in others) >= 1, others
        assert sum("gradient_kernel" in name for name in others) == 3, others
        assert sum("scale_kernel" in name for name in others) == 3, others
        assert sum("loss_kernel" in name for name in others) == 3, others


def test_nothing_spills(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        assert (kernel.stack, kernel.local) == (0, 0), kernel


def test_each_alignment_of_a_row_has_its_hot_loop(kernels: list[Kernel]) -> None:
    for kernel in (k for k in kernels if k.dtype):
        shifts = [loop.shifted for loop in kernel.loops]
        assert shifts == [False] + [True] * (3 if kernel.dtype == "fp32" else 7), kernel


def test_sixteen_bytes_take_one_load_or_two_where_rows_are_shifted(loops: list[tuple[Kernel, Loop]]) -> None:
    for kernel, loop in loops:
        assert loop.groups == 4, (kernel, loop)
        assert loop.loads == (8 if loop.shifted else 4), (kernel, loop)
        # On sm_100 the compiler loads no more of a shifted row's blocks than the shift asks for.
        part = loop.shifted and kernel.target == "sm_100"
        assert part or loop.wide_loads == loop.loads, (kernel, loop)


def test_blocks_of_logits_are_loaded_whole_outside_the_hot_loops_too(kernels: list[Kernel]) -> None:
    for kernel in (k for k in kernels if k.dtype and k.target != "sm_100"):
        assert kernel.part_loads == 0, kernel


def test_threads_do_not_meet_inside_the_loop(loops: list[tuple[Kernel, Loop]]) -> None:
    for kernel, loop in loops:
        assert (loop.meetings, loop.local) == (0, 0), (kernel, loop)


def test_one_exponential_per_logit(loops: list[tuple[Kernel, Loop]]) -> None:
    for kernel, loop in loops:
        assert 1 <= loop.exponentials <= 1.15, (kernel, loop)


def test_instructions_stay_within_budget(loops: list[tuple[Kernel, Loop]]) -> None:
    for kernel, loop in loops:
        budget = PER_LOGIT[kernel.target, kernel.dtype, kernel.entropy]
        assert 3 < loop.per_logit <= budget, (kernel, loop)


def test_gradients_take_sixteen_bytes_at_a_time(kernels: list[Kernel]) -> None:
    """Of aligned rows; with the entropy's slope, and of shifted rows, the loops come after these."""
    for kernel in kernels:
        if "gradient_kernel" in kernel.name:
            plain, with_entropy, *shifted = kernel.rewrites
            assert len(shifted) == 2, kernel
            assert 3 < plain.per_element <= 6.5, kernel
            assert plain.per_element < with_entropy.per_element <= 8.6, kernel
            aligned = [plain, with_entropy]
            assert all(loop.exponentials == 1 for loop in kernel.rewrites), kernel
        elif "scale_kernel" in kernel.name:
            aligned = kernel.rewrites
            assert len(aligned) == 1, kernel
            assert aligned[0].per_element <= 3.5, kernel
        else:
            continue
        for loop in aligned:
            assert loop.loads == loop.wide_loads == loop.stores == loop.wide_stores == 4, kernel
        for loop in kernel.rewrites:
            assert (loop.meetings, loop.stores) == (0, loop.wide_stores), kernel


def test_the_loss_kernel_writes_from_shared_memory(kernels: list[Kernel]) -> None:
    for kernel in (k for k in kernels if "loss_kernel" in k.name):
        aligned = [loop for loop in kernel.rewrites if loop.stores == 4]
        assert len(aligned) == 2, kernel
        assert [loop.shared_loads for loop in aligned] == [4, 4], kernel
        assert aligned[-1].per_element <= 9, kernel
        for loop in kernel.rewrites:
            assert loop.loads == loop.meetings == 0, kernel
            assert loop.stores == loop.wide_stores, kernel
            assert loop.per_element <= 12.5, kernel


def test_registers_leave_room_for_many_threads(kernels: list[Kernel]) -> None:
    """A multiprocessor has 65,536: room for 1024 threads of most kernels, 768 of the loss, 512 of the shaping."""
    for kernel in kernels:
        allowed = 128 if "shape_kernel" in kernel.name else 80 if "loss_kernel" in kernel.name else 64
        assert kernel.registers <= allowed, kernel
