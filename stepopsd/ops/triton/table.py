"""Launch shapes of the pair kernel by architecture: a short table instead of an autotuner."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Launch:
    """How the pair kernel is launched.

    The shape is a function of the device alone, never of the number of rows: the order in which a row is summed
    follows from ``threads``, and a row's bits must not depend on its batch.

    Attributes:
        threads: threads per row, a power of two and a whole number of warps.
        warp: threads per warp, 32 on NVIDIA and 64 on CDNA.
        unroll: loop iterations whose loads are in flight together.
    """

    threads: int = 256
    warp: int = 32
    unroll: int = 2

    @property
    def num_warps(self) -> int:
        return self.threads // self.warp


DEFAULT = Launch()
TABLE = {
    "cuda:80": Launch(threads=256, unroll=2),
    "cuda:90": Launch(threads=256, unroll=2),
    "cuda:100": Launch(threads=256, unroll=2),
    "hip": Launch(threads=256, warp=64, unroll=2),
    # No warps there: the time goes by loop iterations, so fewer and wider ones.
    "interpreter": Launch(threads=512, unroll=1),
}


def launch_for(device: torch.device) -> Launch:
    """Give the launch shape for a device: its own row of the table, or that of the nearest older chip."""
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
