"""What the memory allows: a read of the same bytes and a copy, timed beside the contenders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from stepopsd.experiments.bench.rows import Case, Rows, as_words
from stepopsd.experiments.bench.timing import Clock, CpuClock, CudaClock, Samples, Settings, interleaved, typical

READ = "read only"

Read = Callable[[list[torch.Tensor]], object]


def readers(case: Case, device: str) -> dict[str, Callable[[Rows], object]]:
    """Name -> call that reads as many bytes of the inputs as the op must: every tensor's share of active rows, without
    arithmetic. On a CPU several loops, as which is fastest depends on the machine and the moment."""

    def run(x: Rows, read: Read) -> object:
        stores = (x.student_store, x.teacher_store)[: case.tensors]
        return read([store[0, : case.active] for store in stores])

    loops = {READ: cuda_read()} if device == "cuda" else cpu_reads()
    return {name: partial(run, read=read) for name, read in loops.items()}


def fastest(taken: Mapping[str, Samples], device: str) -> dict[str, Any]:
    """The record of the read: times of the fastest loop, and what each loop took."""
    times = {name: samples.summary() for name, samples in taken.items()}
    seconds = {name: typical(summary, device, torch.get_num_threads()) for name, summary in times.items()}
    middle = {name: summary["median"] for name, summary in times.items()}
    best = min(middle, key=middle.__getitem__)  # a minimum could be of a moment that only this loop met
    return {"seconds": times[best]} | ({"loop": best, "loops": seconds} if len(times) > 1 else {})


def cuda_read() -> Read:
    from stepopsd.experiments.bench import read_kernel

    read_kernel.check(torch.randint(-(2**31), 2**31, (1 << 20,), dtype=torch.int32, device="cuda"))
    return read_kernel.read_all


def cpu_reads() -> dict[str, Read]:
    from stepopsd.ops import native

    def run(tensors: list[torch.Tensor], loop: int) -> object:
        return [native.read_probe(x, loop=loop) for x in tensors]

    if native.availability("cpu") is None:
        return {f"{READ}: {name}": partial(run, loop=loop) for loop, name in enumerate(native.read_loops())}
    # without the native module: an integer maximum, which runs at the speed of memory too
    return {READ: lambda tensors: [as_words(x).amax() for x in tensors]}


def cpu_read() -> Read:
    """One way to read, for limits that do more than read."""
    return next(iter(cpu_reads().values()))


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
    reads = {READ: cuda_read()} if device == "cuda" else cpu_reads()
    calls: dict[str, Callable[[int], object]] = {"copy": lambda _: target.copy_(source)}
    calls |= {name: lambda _, read=read: read([source]) for name, read in reads.items()}  # type: ignore[misc]
    for call in calls.values():
        call(0)
    clock: Clock = CudaClock() if device == "cuda" else CpuClock()
    samples = interleaved(clock, calls, Settings(rounds=9))
    moved, threads = source.numel() * 4, torch.get_num_threads()
    seconds = {name: typical(taken.summary(), device, threads) for name, taken in samples.items()}
    return {"copy": 2 * moved / seconds["copy"], "read": moved / min(seconds[name] for name in reads)}
