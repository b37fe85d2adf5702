"""Device time of calls, and the two ceilings of a memory-bound kernel: a copy and a read. Needs a CUDA device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import triton
import triton.language as tl

T = TypeVar("T")
SAMPLES = 20
SAMPLE_SECONDS = 0.01


def per_call(function: Callable[[T], object], inputs: Sequence[T]) -> list[float]:
    """Seconds per call, sorted, from calls queued back to back over rotating inputs."""
    for x in (*inputs, *inputs):
        function(x)
    return _samples(lambda i: function(inputs[i % len(inputs)]))


def per_replay(function: Callable[[T], object], inputs: Sequence[T]) -> list[float]:
    """Seconds per call, sorted, from a replayed graph: without what the host spends on launching."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for x in inputs:
            function(x)
    torch.cuda.current_stream().wait_stream(side)
    calls = max(len(inputs), 8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            function(inputs[i % len(inputs)])
    graph.replay()
    return [seconds / calls for seconds in _samples(lambda _: graph.replay())]


def _samples(call: Callable[[int], object]) -> list[float]:
    calls = 1
    while (seconds := _elapsed(call, calls)) < SAMPLE_SECONDS:
        calls = max(calls + 1, min(10 * calls, round(1.2 * calls * SAMPLE_SECONDS / seconds)))
    return sorted(_elapsed(call, calls) / calls for _ in range(SAMPLES))


def _elapsed(call: Callable[[int], object], calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for i in range(calls):
        call(i)
    end.record()
    end.synchronize()
    return max(begin.elapsed_time(end), 1e-4) / 1e3


@triton.jit
def read_kernel(x, out, TRIPS: tl.constexpr, BLOCK: tl.constexpr):
    """Read TRIPS blocks with 16-byte loads and keep one number."""
    program = tl.program_id(0).to(tl.int64)
    start = x + program * TRIPS * BLOCK
    total = tl.zeros((BLOCK,), tl.int32)
    for trip in tl.range(0, TRIPS, loop_unroll_factor=4):
        total += tl.load(start + trip * BLOCK + tl.arange(0, BLOCK), eviction_policy="evict_first")
    tl.store(out + program, tl.sum(total, axis=0))


def ceilings(size: int = 4 << 30) -> dict[str, float]:
    """Bytes per second of a device-to-device copy (read plus written) and of a kernel that only reads."""
    trips, block = 64, 1024
    size = min(size, torch.cuda.mem_get_info()[0] // 4)
    programs = size // (4 * trips * block)
    source = torch.randint(-(2**31), 2**31, (programs * trips * block,), dtype=torch.int32, device="cuda")
    target, sums = torch.empty_like(source), torch.empty(programs, dtype=torch.int32, device="cuda")

    def read(x: torch.Tensor) -> None:
        read_kernel[(programs,)](x, sums, TRIPS=trips, BLOCK=block, num_warps=8)

    read(source)
    if not torch.equal(sums[:8], source.view(programs, -1)[:8].sum(1, dtype=torch.int32)):
        raise RuntimeError("the read kernel does not read what it should")
    moved = source.numel() * 4
    return {
        "copy": 2 * moved / statistics.median(per_call(target.copy_, [source])),
        "read": moved / statistics.median(per_call(read, [source])),
    }
