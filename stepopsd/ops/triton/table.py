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
        vectors: 16-byte vectors per thread and tensor in one trip of the unrolled loop.
    """

    threads: int = 128
    warp: int = 32
    vectors: int = 4

    @property
    def num_warps(self) -> int:
        return self.threads // self.warp

    def unroll(self, itemsize: int) -> int:
        """Loop iterations (of 8 logits per thread) in one trip, for logits of ``itemsize`` bytes."""
        return max(1, self.vectors * 2 // itemsize)


DEFAULT = Launch()
TABLE = {
    "cuda:80": Launch(threads=128, vectors=4),
    "cuda:90": Launch(threads=128, vectors=4),
    "cuda:100": Launch(threads=128, vectors=4),
    "hip": Launch(threads=256, warp=64, vectors=2),
    # No warps there: the time goes by loop iterations, so fewer and wider ones.
    "interpreter": Launch(threads=512, vectors=1),
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
