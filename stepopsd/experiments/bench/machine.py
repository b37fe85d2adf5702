"""What was measured on: chip, versions, clocks, load."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import stepopsd

PACKAGES = ("torch", "triton", "numpy", "trl", "liger-kernel", "flash-attn", "quack-kernels", "cut-cross-entropy")


def describe(device: str) -> dict[str, Any]:
    """Chip, cores or multiprocessors, cache, versions and day, for the head of a report."""
    from stepopsd.experiments.bench.memory import cache_bytes

    about: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "chip": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "cache_bytes": cache_bytes(device),
        "versions": versions(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about["multiprocessors"] = properties.multi_processor_count
        about["driver"] = nvidia_smi("driver_version")
        return about
    from stepopsd.ops import native

    about["cores"] = os.cpu_count()
    about["threads"] = torch.get_num_threads()
    about["instruction_set"] = native.isa() if native.availability("cpu") is None else None
    about["load"] = os.getloadavg()[0]
    return about


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what was found beside it."""
    found = {"python": platform.python_version(), "stepopsd": stepopsd.__version__ + commit()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def commit() -> str:
    """``+g1234567`` in a checkout, with ``.changed`` after local edits of code; else nothing."""
    root = Path(stepopsd.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    revision = _output(["git", "-C", str(root), "rev-parse", "--short=9", "HEAD"])
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--", "stepopsd/ops", "csrc"])
    return f"+g{revision}{'.changed' if changed else ''}" if revision else ""


def cpu_name() -> str:
    """The processor's name, with family and model where the name alone says little."""
    info: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    name = info.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in info and not re.search(r"\d", name):
        name += f" (family {info['cpu family']}, model {info['model']})"
    return name


def nvidia_smi(fields: str) -> str | None:
    """One line of ``nvidia-smi --query-gpu``, or None where that does not answer."""
    return _output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", _smi_index()]) or None


def clocks_under(work: Callable[[], object], seconds: float = 0.4) -> dict[str, float] | None:
    """SM and memory clock in MHz, power in W and temperature in °C while ``work`` runs on the GPU; None if unreadable.

    Args:
        work: Queues some work on the device without waiting for it.
        seconds: How long to keep the device busy.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    for _ in range(min(2000, max(1, round(seconds * 1e3 / max(begin.elapsed_time(end), 1e-3))))):
        work()
    line = nvidia_smi("clocks.sm,clocks.mem,power.draw,temperature.gpu")
    torch.cuda.synchronize()
    try:
        sm, memory, power, temperature = (float(x) for x in (line or "").split(","))
    except ValueError:
        return None
    return {"sm_mhz": sm, "memory_mhz": memory, "power_w": power, "temperature_c": temperature}


def slug(text: str) -> str:
    """A file name part from a chip's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _smi_index() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return visible or "0"


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
