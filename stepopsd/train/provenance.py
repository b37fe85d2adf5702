"""What a result depends on besides its configuration: versions, device, commit, command."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("stepopsd", "torch", "triton", "transformers", "accelerate", "textworld", "alfworld")


def provenance(model: torch.nn.Module) -> dict[str, Any]:
    """Plain data for ``environment.json``."""
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["stepopsd", *sys.argv[1:]]),
        "git": git_commit(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "device": f"{device.type} ({name})",
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
    }


def git_commit() -> str | None:
    """Commit of the source tree, with a mark for local changes; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=root, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if dirty else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
