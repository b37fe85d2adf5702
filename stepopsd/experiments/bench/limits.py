"""What the memory allows: a read of the same bytes and a copy, timed beside the contenders."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stepopsd.experiments.bench.rows import Case, Rows, as_words
from stepopsd.experiments.bench.timing import Clock, CpuClock, CudaClock, Settings, interleaved, typical

READ = "read only"


def reader(case: Case, device: str) -> Callable[[Rows], object]:
    """Reads as many bytes of the inputs as the op must: every tensor's share of active rows, without arithmetic."""
    read = cuda_read() if device == "cuda" else cpu_read()

    def run(x: Rows) -> object:
        stores = (x.student_store, x.teacher_store)[: case.tensors]
        return read([store[0, : case.active] for store in stores])

    return run


def cuda_read() -> Callable[[list[torch.Tensor]], object]:
    from stepopsd.experiments.bench import read_kernel

    read_kernel.check(torch.randint(-(2**31), 2**31, (1 << 20,), dtype=torch.int32, device="cuda"))
    return read_kernel.read_all


def cpu_read() -> Callable[[list[torch.Tensor]], object]:
    from stepopsd.ops import native

    if native.availability("cpu") is None:
        return lambda tensors: [native.read_probe(x) for x in tensors]
    # without the native module: an integer maximum, which runs at the speed of memory too
    return lambda tensors: [as_words(x).amax() for x in tensors]


def ceilings(device: str, *, size: int | None = None) -> dict[str, float]:
    """Bytes per second of a large copy (read plus written bytes) and of a large read on ``device``.

    Args:
        device: ``cpu`` or ``cuda``.
        size: Bytes of the buffer, far beyond the cache; 4 GiB and 256 MiB where not given, less where memory is short.
    """
    from stepopsd.experiments.bench.memory import free_memory

    size = min(size or (4 << 30 if device == "cuda" else 256 << 20), free_memory(device) // 4)
    source = torch.ones(size // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    read = cuda_read() if device == "cuda" else cpu_read()
    calls: dict[str, Callable[[int], object]] = {
        "copy": lambda _: target.copy_(source),
        "read": lambda _: read([source]),
    }
    for call in calls.values():
        call(0)
    clock: Clock = CudaClock() if device == "cuda" else CpuClock()
    samples = interleaved(clock, calls, Settings(rounds=9))
    moved, threads = source.numel() * 4, torch.get_num_threads()
    seconds = {name: typical(taken.summary(), device, threads) for name, taken in samples.items()}
    return {"copy": 2 * moved / seconds["copy"], "read": moved / seconds["read"]}
