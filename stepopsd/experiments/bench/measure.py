"""One case measured: every contender checked, then all of them and the memory's limit timed in turns."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from stepopsd.experiments.bench import machine
from stepopsd.experiments.bench.check import tried, verify
from stepopsd.experiments.bench.contenders import Contender, Field
from stepopsd.experiments.bench.limits import READ, fastest, readers
from stepopsd.experiments.bench.memory import cache_bytes, extra_memory, free_memory
from stepopsd.experiments.bench.rows import Case, Rows, make_rows
from stepopsd.experiments.bench.timing import (
    Call,
    Clock,
    CpuClock,
    CudaClock,
    Settings,
    captured,
    host_seconds,
    interleaved,
    paired,
)

# Above this the launches of a call are hidden behind the device's work; graphs would only hold memory.
REPLAYED_BYTES = 1 << 29
# Below a few hundred KiB a call's time is that of its launches, wherever the logits lie.
MOST_SETS = 512


def measure(case: Case, device: str, field: Field, settings: Settings) -> dict[str, Any]:
    """Everything about one case as plain data: a ``results`` list, or ``skipped`` with the reason.

    A contender that is wrong, runs out of memory or fails has an ``error`` instead of times.

    Raises:
        RuntimeError: The device no longer works (a kernel went wrong in a way that ends the process's work).
    """
    record: dict[str, Any] = {**case.as_dict(), "bytes": case.bytes_read}
    free, sets = free_memory(device), _sets(case, device)
    if sets * case.input_bytes > 0.9 * free:
        record["skipped"] = f"inputs of {sets * case.input_bytes / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free"
        return record
    inputs = [make_rows(case, device, seed=seed) for seed in range(sets)]
    results = {c.name: _checked(c, case, device, inputs[0]) for c in field.contenders}
    results = {READ: {"contender": READ}, **results}
    reads = readers(case, device)
    for read in reads.values():
        read(inputs[0])
    runs = reads | {c.name: c.run for c in field.contenders if "error" not in results[c.name]}
    turns = itertools.cycle(inputs)  # shared: nobody finds in the cache what another one has just read
    calls = {name: _rotating(run, turns) for name, run in runs.items()}
    clock: Clock = CudaClock() if device == "cuda" else CpuClock()
    taken = interleaved(clock, calls, settings)
    loops = {name: taken.pop(name) for name in reads}
    results[READ] |= fastest(loops, device)
    for name, samples in taken.items():
        results[name]["seconds"] = samples.summary()
    if device == "cpu":
        beside = {**loops, READ: loops[results[READ].get("loop", READ)], **taken}
        for name, ratios in paired(beside, torch.get_num_threads()).items():
            if name in results:
                results[name]["as_long"] = ratios
    if device == "cuda":
        if case.bytes_read < REPLAYED_BYTES:
            for name, call in calls.items():
                results[name]["host_seconds"] = host_seconds(call)
            may = {c.name for c in field.contenders if c.capture} | {READ}
            quick = {name: call for name, call in calls.items() if name in may and results[name]["host_seconds"]}
            _add_replays(results, quick, len(inputs), settings)
        record["clocks"] = machine.clocks_under(lambda: calls[READ](0))
    for name, run in runs.items():
        if name not in reads:
            call = functools.partial(run, inputs[0])
            results[name]["extra_bytes"] = extra_memory(device, call, native=results[name]["ours"])
    return {**record, "results": list(results.values())}


def _sets(case: Case, device: str) -> int:
    """Sets of inputs to rotate over, so that none is left in the cache when its turn comes again."""
    return max(1, min(MOST_SETS, math.ceil(4 * cache_bytes(device) / case.bytes_read)))


def _checked(contender: Contender, case: Case, device: str, x: Rows) -> dict[str, Any]:
    """The contender's record with its error against float64, or with the reason why it is not timed."""
    record: dict[str, Any] = {"contender": contender.name, "ours": contender.ours}
    agreement = tried(lambda: verify(contender, case, x), contender.workspace * case.rows * case.vocab, device)
    if isinstance(agreement, dict):
        return record | agreement
    return {**record, "difference": agreement.error, "allowed": agreement.allowed}


def _rotating(run: Callable[[Rows], object], turns: Iterator[Rows]) -> Call:
    return lambda _: run(next(turns))


def _add_replays(results: dict[str, Any], calls: dict[str, Call], sets: int, settings: Settings) -> None:
    """Times of replayed graphs, of calls that do not wait for the device."""
    length = max(sets, 4)
    replays = {}
    for name, call in calls.items():
        try:
            replays[name] = captured(call, length)
            replays[name](0)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        except Exception as error:  # a call that waits for the device, for example
            torch.cuda.synchronize()
            results[name]["replay_error"] = (str(error).splitlines() or [""])[0][:200]
    for name, samples in interleaved(CudaClock(), replays, settings).items():
        summary = samples.summary()
        results[name]["replay_seconds"] = {
            key: value if key == "samples" else value / length for key, value in summary.items()
        }
