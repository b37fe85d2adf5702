"""A Triton kernel that reads tensors and does nothing else: what a kernel that reads them can reach at best."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from stepopsd.experiments.bench.rows import as_words

BLOCK = 1024  # 32-bit words per trip of a program


@triton.jit
def _read(x, y, out, blocks, trips, BLOCK: tl.constexpr):
    """XOR ``trips`` blocks of one of two tensors with 16-byte loads and keep one number per program."""
    program, tensor = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = program * trips
    last = tl.minimum(first + trips, blocks)
    total = tl.zeros((BLOCK,), tl.int32)
    if tensor == 0:
        for block in tl.range(first, last, loop_unroll_factor=4):
            total ^= tl.load(x + block * BLOCK + tl.arange(0, BLOCK), eviction_policy="evict_first")
    else:
        for block in tl.range(first, last, loop_unroll_factor=4):
            total ^= tl.load(y + block * BLOCK + tl.arange(0, BLOCK), eviction_policy="evict_first")
    tl.store(out + tensor * tl.num_programs(0) + program, tl.xor_sum(total, axis=0))


def read_all(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Read one or two contiguous tensors of one size, but for a rest of less than 4 KiB each, in one launch.

    Returns:
        (K, P) int32, per tensor the XOR of the 32-bit words that each program read.
    """
    words = [as_words(x) for x in tensors]
    blocks = words[0].numel() // BLOCK
    # Enough programs that every multiprocessor holds several, each long enough to be worth its start.
    trips = max(1, min(64, blocks * len(words) // 2048))
    programs = -(-blocks // trips)
    parts = torch.empty((len(words), programs), dtype=torch.int32, device=words[0].device)
    if programs:
        _read[(programs, len(words))](words[0], words[-1], parts, blocks, trips, BLOCK=BLOCK, num_warps=8)
    return parts


def check(tensor: torch.Tensor) -> None:
    """Raise RuntimeError unless the kernel reads every word of what it should."""
    words = as_words(tensor)
    want = np.bitwise_xor.reduce(words[: words.numel() // BLOCK * BLOCK].cpu().numpy())
    for parts in read_all([tensor, tensor]).cpu().numpy():
        if np.bitwise_xor.reduce(parts) != want:
            raise RuntimeError("the read kernel does not read what it should")
