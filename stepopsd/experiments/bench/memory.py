"""Free memory, and the peak that one call needs beyond its inputs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def free_memory(device: str) -> int:
    """Bytes that can be allocated on ``device``; on a CPU an estimate of the system's."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo names no MemAvailable")


def cache_bytes(device: str) -> int:
    """The last-level cache, beyond which inputs rotate."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(ValueError, OSError, KeyError):
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes)


def extra_memory(device: str, call: Callable[[], object], *, native: bool = False) -> int | None:
    """Peak bytes that a call allocates beyond what is there; call it once before.

    Args:
        device: ``cpu`` or ``cuda``.
        call: What is measured.
        native: On a CPU, look at the peak of resident memory too, which native code does not get past.

    Returns:
        From torch's allocator; None where native memory is asked for and the system does not tell.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    allocated = _allocator_peak(call)
    if not native:
        return allocated
    resident = [_resident_peak(call) for _ in range(3)]
    seen = [peak for peak in resident if peak is not None]
    return max(allocated, min(seen)) if seen else None  # what else the process does meanwhile adds to a peak


def _allocator_peak(call: Callable[[], object]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _no_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as run:
        call()
    results: Any = run.profiler.kineto_results
    changes = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """The profiler writes lines to the process's standard error that no setting turns off."""
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


def _resident_peak(call: Callable[[], object]) -> int | None:
    """Growth of the process's resident memory, to within about a hundred KiB."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or memory that malloc kept would be used and not seen
    try:
        _CLEAR.write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
