"""What the configuration's ``device`` means on this machine."""

from __future__ import annotations

import torch


def device_of(device: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here; ValueError where there is none."""
    return torch.device("cpu" if wants_cpu(device) else "cuda")


def wants_cpu(device: str) -> bool:
    """Whether it means the CPU. Raises ValueError for another name, and for CUDA where there is none."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be one of auto, cpu, cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda but torch sees no CUDA device; use auto or cpu")
    return device == "cpu" or not torch.cuda.is_available()
