"""Clocks for calls on a CPU and on a CUDA device, and the interleaving of contenders."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Call = Callable[[int], object]  # takes the number of the call, to rotate inputs

SHORT_CALL = 0.05  # seconds


@dataclass(frozen=True)
class Staged:
    """A call with work before it that is not timed, such as writing the logits that the call overwrites."""

    before: Callable[[], object]
    run: Callable[[], object]

    def __call__(self, _: int) -> object:
        self.before()
        return self.run()


class Clock(Protocol):
    """Seconds that calls take."""

    def elapsed(self, call: Call, calls: int) -> tuple[float, float]:
        """Seconds of ``calls`` calls back to back: by the wall (or the device's clock), and of this process's CPU."""


class CpuClock:
    """Wall and CPU time of this process."""

    def elapsed(self, call: Call, calls: int) -> tuple[float, float]:
        if isinstance(call, Staged):
            return self._staged(call, calls)
        cpu, wall = time.process_time(), time.perf_counter()
        for i in range(calls):
            call(i)
        return time.perf_counter() - wall, time.process_time() - cpu

    def _staged(self, call: Staged, calls: int) -> tuple[float, float]:
        total = [0.0, 0.0]
        for _ in range(calls):
            call.before()
            cpu, wall = time.process_time(), time.perf_counter()
            call.run()
            total[0] += time.perf_counter() - wall
            total[1] += time.process_time() - cpu
        return total[0], total[1]


class CudaClock:
    """Device events around the calls: the host's cost shows only where the device waits for it."""

    def elapsed(self, call: Call, calls: int) -> tuple[float, float]:
        if isinstance(call, Staged):
            return self._staged(call, calls)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cpu = time.process_time()
        begin.record()
        for i in range(calls):
            call(i)
        end.record()
        end.synchronize()
        return max(begin.elapsed_time(end), 1e-4) / 1e3, time.process_time() - cpu

    def _staged(self, call: Staged, calls: int) -> tuple[float, float]:
        # the work before keeps the device busy meanwhile, so that launches are hidden where it is longer than they are
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        cpu = time.process_time()
        for begin, end in pairs:
            call.before()
            begin.record()
            call.run()
            end.record()
        torch.cuda.synchronize()
        took = sum(begin.elapsed_time(end) for begin, end in pairs)
        return max(took, 1e-4) / 1e3, time.process_time() - cpu


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Args:
        rounds: Samples per call.
        sample_seconds: Least length of a sample; short calls are repeated to fill it.
        seconds: After that long no further round begins; three rounds are always made.
    """

    rounds: int = 15
    sample_seconds: float = 0.01
    seconds: float = 10.0


@dataclass
class Samples:
    """Seconds per call of one contender."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Extremes, quartiles and count of the samples, and the fewest CPU seconds of one."""
        low, middle, high = quartiles(self.seconds)
        return {
            "min": min(self.seconds), "q1": low, "median": middle, "q3": high, "max": max(self.seconds),
            "samples": len(self.seconds), "cpu": min(self.cpu_seconds),
        }  # fmt: skip

    def rounds(self, threads: int) -> list[float]:
        """Seconds of every round on a CPU, see ``typical``."""
        return list(map(min, self.seconds, self.cpu_seconds)) if threads == 1 else self.seconds


def paired(taken: Mapping[str, Samples], threads: int) -> dict[str, dict[str, float]]:
    """Contender -> other contender -> how many times as long the other takes: the median over rounds of the ratio
    within the round. What changes from one second to the next, such as the speed of a shared memory, meets both."""
    rounds = {name: samples.rounds(threads) for name, samples in taken.items()}
    return {
        name: {other: statistics.median(x / y for x, y in zip(rounds[other], mine, strict=True)) for other in rounds}
        for name, mine in rounds.items()
    }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def typical(summary: Mapping[str, float], device: str, threads: int | None) -> float:
    """The figure that stands for ``Samples.summary``.

    On a GPU the median. On a CPU the minimum, as other processes can only add to it; with one thread the CPU time where
    that is less, as others then take turns on the core.
    """
    if device == "cuda":
        return summary["median"]
    return min(summary["min"], summary["cpu"]) if threads == 1 else summary["min"]


def interleaved(clock: Clock, calls: Mapping[str, Call], settings: Settings) -> dict[str, Samples]:
    """Time every call in every round, in a new order each time, so that drift and what the one before left behind meet
    all alike. A short call is made once before its sample: freed memory, for example, is cleared by the system later.

    Args:
        clock: How to time.
        calls: Name -> call; each was called before, so that nothing is built or loaded any more.
        settings: How long.
    """
    begin = time.perf_counter()
    repeats = {name: _repeats(clock, call, settings.sample_seconds) for name, call in calls.items()}
    samples = {name: Samples() for name in calls}
    names, shuffled = list(calls), random.Random(0)
    for number in range(settings.rounds):
        if number >= 3 and time.perf_counter() - begin > settings.seconds:
            break
        shuffled.shuffle(names)
        for name in names:
            if samples[name].seconds and samples[name].seconds[-1] < SHORT_CALL:
                calls[name](repeats[name])
            took, cpu = clock.elapsed(calls[name], repeats[name])
            samples[name].seconds.append(took / repeats[name])
            samples[name].cpu_seconds.append(cpu / repeats[name])
    return samples


def _repeats(clock: Clock, call: Call, sample_seconds: float) -> int:
    calls = 1
    while (took := clock.elapsed(call, calls)[0]) < 0.8 * sample_seconds:
        calls = max(calls + 1, min(10 * calls, round(1.1 * calls * sample_seconds / took)))
    return calls


def captured(call: Call, calls: int) -> Call:
    """A CUDA graph of ``calls`` calls, replayed: device time without what the host spends on launching.

    Raises:
        RuntimeError: The call cannot be captured, for example because it waits for the device.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(calls):
            call(i)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(i)

    def replay(_: int) -> Any:
        graph.replay()

    return replay


def host_seconds(call: Call, *, calls: int = 20) -> float | None:
    """Seconds that the host spends on one call while the device is busy with something else.

    Returns:
        The median of five runs of ``calls`` calls, or None where the call waits for the device.
    """
    for cycles in (1 << 26, 1 << 29):  # some 30 and 270 ms
        took: list[float] = []
        while len(took) < 5 and (seconds := _host_run(call, calls, cycles)) is not None:
            took.append(seconds)
        if len(took) == 5:
            return statistics.median(took)
    return None


def _host_run(call: Call, calls: int, cycles: int) -> float | None:
    """Seconds per call, or None when the device ran out of other work meanwhile."""
    done = torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda._sleep(cycles)
    done.record()
    begin = time.perf_counter()
    for i in range(calls):
        call(i)
    took = time.perf_counter() - begin
    hidden = not done.query()
    torch.cuda.synchronize()
    return took / calls if hidden else None
