"""Launch shapes of the score kernel by architecture: a short table instead of an autotuner.

For experiments the variable STEPOPSD_TRITON_LAUNCH changes entries of the device's row, as in
``STEPOPSD_TRITON_LAUNCH=threads=128,groups=2``; it is read at every call.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch

OVERRIDE = "STEPOPSD_TRITON_LAUNCH"
CHUNK = 1024  # logits of a split are a multiple of this
SPLITS = ((16_384, 1), (32_768, 2), (65_536, 4))  # below how many logits, how many splits
MOST_SPLITS = 8


@dataclass(frozen=True)
class Launch:
    """How the score kernel is launched.

    The shape is a function of the device alone, and the number of splits of the vocabulary alone, never of the number
    of rows: the order in which a row is summed follows from them, and a row's bits must not depend on its batch.

    Attributes:
        threads: threads per row and split, a power of two and a whole number of warps.
        warp: threads per warp, 32 on NVIDIA and 64 on CDNA.
        groups: 16-byte groups of logits that a thread reads and adds in one trip of the loop: 1, 2, 4 or 8.
        polynomial: of each 8 exponentials of half-precision logits, how many are computed on the FMA units. Worth its
            instructions where the special-function unit is what limits the loop.
        splits: parts of the vocabulary that are read in parallel: 1, 2, 4 or 8; 0 chooses by the vocabulary.
    """

    threads: int = 64
    warp: int = 32
    groups: int = 4
    polynomial: int = 0
    splits: int = 0

    @property
    def num_warps(self) -> int:
        return self.threads // self.warp

    def split(self, vocab: int) -> tuple[int, int]:
        """The number of splits of a row, and the logits in each but the last."""
        splits = self.splits or next((few for below, few in SPLITS if vocab < below), MOST_SPLITS)
        chunk = -(-vocab // splits)
        return splits, -(-chunk // CHUNK) * CHUNK


DEFAULT = Launch()
TABLE = {
    "cuda:80": Launch(),
    "cuda:90": Launch(),
    "cuda:100": Launch(polynomial=1),
    "hip": Launch(threads=128, warp=64),
    # No threads there: the time goes by operations on whole arrays, so fewer and wider ones.
    "interpreter": Launch(threads=512, groups=2),
}


def launch_for(device: torch.device) -> Launch:
    """Give the launch shape for a device: its own row of the table, or that of the nearest older chip."""
    launch = _row(device)
    changes = os.environ.get(OVERRIDE)
    return _changed(launch, changes) if changes else launch


def _row(device: torch.device) -> Launch:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return TABLE["interpreter"]
    if torch.version.hip is not None:
        return TABLE["hip"]
    return _cuda_launch(torch.cuda.get_device_capability(device))


@lru_cache
def _cuda_launch(capability: tuple[int, int]) -> Launch:
    wanted = capability[0] * 10 + capability[1]
    older = [int(name.split(":")[1]) for name in TABLE if name.startswith("cuda:")]
    fitting = [number for number in older if number <= wanted]
    return TABLE[f"cuda:{max(fitting)}"] if fitting else DEFAULT


@lru_cache
def _changed(launch: Launch, changes: str) -> Launch:
    names = {field.name for field in fields(Launch)}
    pairs = [change.partition("=")[::2] for change in changes.split(",")]
    if any(name not in names or not number.isdigit() for name, number in pairs):
        wanted = ", ".join(sorted(names))
        raise ValueError(f"{OVERRIDE} must look like name=number,name=number with names of {wanted}, got {changes!r}")
    return replace(launch, **{name: int(number) for name, number in pairs})
